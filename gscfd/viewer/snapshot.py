"""What the training thread leaves for the viewer: copies, made between two steps, in which nothing changes any more."""

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
"""Last steps that the speed is the mean of."""


class Point(NamedTuple):
    """Of the plots."""

    step: int
    """Of the run: the refine stage goes on where the coarse one ended."""
    loss: SupportsFloat
    """float() may wait for a CUDA device: not on the training thread."""
    gaussians: int


class History:
    """What is plotted, and how fast the run goes. The training thread alone touches it."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.clocks: deque[Mapping[str, float]] = deque(maxlen=RATE_STEPS + 1)

    def add(self, report: StepReport, config: Config) -> None:
        step = report.step + (config.coarse.steps if report.stage == "refine" else 0)
        while self.points and self.points[-1].step >= step:
            self.points.pop()
        self.points.append(Point(step, report.loss, report.count))
        self.clocks.append(report.seconds)

    @property
    def rate(self) -> float:
        """Steps per second without pauses, of the steps before the last, which a CUDA device may still work on; 0
        before there are any."""
        done = list(self.clocks)[:-1]
        total = sum(sum(clock.values()) for clock in done)
        return len(done) / total if total else 0.0


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One step; the names are StepReport's."""

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
    """The teacher's: [V, C, h, w] to [V, 3, H, W] in [0, 1]."""
    config: Config
    """The settings of the next step."""
    points: tuple[Point, ...]
    rate: float


def take(report: StepReport, live: LiveSettings, history: History) -> Snapshot:
    """Copies the Gaussians, which the next step changes in place; the rest is made anew by every step."""
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
