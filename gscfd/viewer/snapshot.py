"""Immutable copies that the training thread makes between two steps for the viewer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, SupportsFloat

from torch import Tensor

from gscfd.config import Config, StageName
from gscfd.distil.edits import LiveSettings
from gscfd.distil.stage import StepReport
from gscfd.gaussians import Gaussians
from gscfd.types import Cameras

RATE_STEPS = 20
"""Number of recent steps over which the speed is averaged."""


class Point(NamedTuple):
    """A point of the plots."""

    step: int
    """Step of the run; a stage continues counting where the one before it ended."""
    loss: SupportsFloat
    """float() may wait for a CUDA device, so do not call it on the training thread."""
    gaussians: int


class History:
    """Plot data and speed of the run. Used only on the training thread."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.clocks: deque[Mapping[str, float]] = deque(maxlen=RATE_STEPS + 1)

    def add(self, report: StepReport, config: Config) -> None:
        names = list(config.stages())
        before = names[: names.index(report.stage)] if report.stage in names else []
        step = report.step + sum(config.stage(name).steps for name in before)
        while self.points and self.points[-1].step >= step:
            self.points.pop()
        self.points.append(Point(step, report.loss, report.count))
        self.clocks.append(report.seconds)

    @property
    def rate(self) -> float:
        """Steps per second, excluding pauses and the last step, which a CUDA device may still be computing; 0 at the
        start."""
        done = list(self.clocks)[:-1]
        total = sum(sum(clock.values()) for clock in done)
        return len(done) / total if total else 0.0


@dataclass(frozen=True, eq=False)
class Snapshot:
    """State after one step; field names match StepReport."""

    stage: StageName
    step: int
    steps: int
    t: float
    loss: SupportsFloat
    trouble: str
    gaussians: Gaussians
    """A copy."""
    cameras: Cameras
    images: Tensor
    noise: Tensor
    target: Tensor
    decode: Callable[[Tensor], Tensor]
    """The teacher's decoder: [V, C, h, w] to [V, 3, H, W] in [0, 1]."""
    config: Config
    """Settings of the next step."""
    points: tuple[Point, ...]
    rate: float


def take(report: StepReport, live: LiveSettings, history: History) -> Snapshot:
    """Makes a snapshot. Copies the Gaussians, which the next step changes in place; every step creates the rest
    anew."""
    return Snapshot(
        stage=report.stage,
        step=report.step,
        steps=report.steps,
        t=report.t,
        loss=report.loss,
        trouble=report.trouble,
        gaussians=Gaussians(**dict(report.gaussians.params.items())),
        cameras=report.cameras,
        images=report.images,
        noise=report.noise,
        target=report.target,
        decode=live.teachers[report.stage].decode,
        config=live.now,
        points=tuple(history.points),
        rate=history.rate,
    )
