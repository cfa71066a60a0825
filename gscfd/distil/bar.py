"""The bar that shows the steps of a stage on standard error."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn

from tqdm import tqdm

from gscfd.distil.stage import StepReport


class StepBar:
    """A progress bar for one stage after another."""

    def __init__(self, on: bool = True):
        """on: whether to show anything."""
        self.on = on
        self.stage = ""
        self.bar: tqdm[NoReturn] | None = None

    def show(self, report: StepReport) -> None:
        """Shows a step, in a bar of its own for each stage."""
        if self.bar is None or self.stage != report.stage:
            self.close()
            self.stage = report.stage
            self.bar = tqdm(
                total=report.steps,
                initial=report.step,
                desc=report.stage,
                unit="step",
                dynamic_ncols=True,
                disable=not self.on,
            )
        self.bar.set_postfix(t=f"{report.t:.2f}", gaussians=report.count, refresh=False)
        self.bar.update(report.state.step - self.bar.n)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def __enter__(self) -> StepBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
