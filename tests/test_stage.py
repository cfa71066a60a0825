"""What the one loop keeps true of the Gaussians."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tiny import TinyTeacher, drawn, stage_config, tiny_stage
from torch import Tensor
from torch.overrides import TorchFunctionMode

import gscfd
from gscfd.cameras import turntable
from gscfd.config import DensifyConfig, LearningRates
from gscfd.deferred import Clock, Deferred
from gscfd.distil import stage
from gscfd.distil.schedule import render_size
from gscfd.distil.stage import pictures
from gscfd.gaussians import Gaussians, ball
from gscfd.harmonics import SH_C0
from gscfd.pictures import random_background
from gscfd.runs import folder as runs_folder
from gscfd.types import Cameras, Render


def rgb(gaussians: Gaussians) -> Tensor:
    return gaussians.sh0.detach() * SH_C0 + 0.5


def test_no_gaussian_is_brighter_than_white_or_darker_than_black(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyTeacher, "target", torch.ones(3, 8, 8))
    config = stage_config(lr=LearningRates(sh0=1.0))
    colors = rgb(tiny_stage(config))
    assert colors.min() >= -1e-6 and colors.max() <= 1 + 1e-6
    assert colors.max() > 1 - 1e-6, "some reach the limit"
    monkeypatch.setattr("gscfd.gaussians.Gaussians.clip_colors", lambda self: None)
    assert rgb(tiny_stage(config)).max() > 1.1, "control: free colors leave the range"


def test_every_step_size_falls_to_its_share() -> None:
    seen = []
    tiny_stage(
        stage_config(steps=10, lr=LearningRates(end=0.1)),
        on_step=lambda report: seen.append(
            {name: o.param_groups[0]["lr"] for name, o in report.state.optimizers.items()}
        ),
    )
    for name, first in seen[0].items():
        assert first == getattr(LearningRates(), name)
        assert seen[-1][name] == pytest.approx(first * 0.1**0.9)


# --------------------------------------------------------------------------------------------------- coarse to fine


def test_the_render_size_is_the_last_one_reached() -> None:
    sizes = ((0.0, 64), (0.5, 256))
    assert [render_size(share, sizes, 512) for share in (0, 0.49, 0.5, 1)] == [64, 64, 256, 256]
    assert render_size(0.7, (), 512) == 512, "the teacher's own"


def test_the_teacher_and_the_noise_are_given_the_size_of_the_schedule() -> None:
    given, noised = [], []

    def noise(cameras: Cameras, render: Render, step: int) -> Tensor:
        noised.append((cameras.width, *render.depth.shape[1:3]))
        return drawn(cameras, render, step)

    sizes = ((0.0, 8), (0.5, 24))
    tiny_stage(stage_config(steps=4, render_sizes=sizes), noise=noise, on_step=lambda r: given.append(r.images.shape))
    assert [tuple(shape) for shape in given] == [(2, 8, 8, 3)] * 2 + [(2, 24, 24, 3)] * 2
    assert noised == [(8, 8, 8)] * 2 + [(24, 24, 24)] * 2


# -------------------------------------------------------------------------------------------------------- normal maps


def test_normal_maps_move_the_surface_and_leave_its_colors() -> None:
    for share, still in ((1.0, True), (0.0, False)):
        gaussians = tiny_stage(
            stage_config(steps=3, normal_prob=share, densify=DensifyConfig(start=1.0, stop=1.0)),
        )
        start = ball(60, radius=0.6, opacity=0.3, generator=torch.Generator().manual_seed(3))
        assert torch.equal(gaussians.sh0, start.sh0) == still
        assert not torch.equal(gaussians.means, start.means)


def test_normal_maps_are_shown_in_their_share_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, generator = [], torch.Generator().manual_seed(0)
    monkeypatch.setattr("gscfd.distil.stage.normal_map", lambda render, cameras: shown.append(0))
    empty = torch.zeros(1, 2, 2, 3)
    render = Render(empty, empty[..., :1], empty[..., :1])
    for _ in range(1000):
        pictures(render, turntable(1, size=2), stage_config(normal_prob=0.2), generator)
    assert abs(len(shown) - 200) < 4 * math.sqrt(1000 * 0.2 * 0.8)


def test_without_normal_maps_no_number_is_drawn_for_them() -> None:
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    empty = torch.zeros(1, 2, 2, 3)
    for generator, share in zip(generators, (0.0, 1.0), strict=True):
        pictures(
            Render(empty, empty[..., :1], empty[..., :1]),
            turntable(1, size=2),
            stage_config(normal_prob=share),
            generator,
        )
    assert not torch.equal(generators[0].get_state(), generators[1].get_state())
    fresh = torch.Generator().manual_seed(0)
    random_background(fresh)
    assert torch.equal(generators[0].get_state(), fresh.get_state())


# ------------------------------------------------------------------------------------------- nobody waits for a device


class Asked(TorchFunctionMode):
    """Notes every value that gscfd asks a tensor for, outside the rasterizer that is the CPU's."""

    OURS = str(Path(gscfd.__file__).parent)
    WAYS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[tuple[str, str]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asker = sys._getframe(1).f_code.co_filename
        if getattr(func, "__name__", "") in self.WAYS and asker.startswith(self.OURS) and "/rasterize/" not in asker:
            self.names.append((func.__name__, asker))
        return func(*args, **(kwargs or {}))


def test_between_two_looks_of_the_watchdog_no_value_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for the row that a step leaves. gsplat's strategy, which asks in every step, is off; the annealed time is
    drawn from nothing."""
    asked = Asked()
    counts = []
    config = stage_config(
        steps=8, t_schedule="annealed", render_sizes=((0.0, 16),), densify=DensifyConfig(start=0.0, stop=0.0)
    )
    monkeypatch.setattr("gscfd.distil.watchdog.due", lambda state: (state.step + 1) % 4 == 0)
    monkeypatch.setattr(runs_folder, "VARIANCE_EVERY", 1)

    def on_step(report: stage.StepReport) -> None:
        row = runs_folder.row(report)
        counts.append(len(asked.names))
        assert 0 <= row["gradient_variance"]["means"] <= 1 and len(asked.names) > counts[-1], "the control"
        asked.names.clear()

    with asked:
        tiny_stage(config, on_step=on_step)
    assert [count > 0 for count in counts[1:]] == [False, False, True, False, False, False, True], "after the first"


def test_what_was_measured_is_read_when_the_device_has_come_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for CUDA's events, whose times are the numbers of their records."""

    class Event:
        made = 0
        waited: ClassVar[list[int]] = []

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            Event.made += 1
            self.time = Event.made

        def synchronize(self) -> None:
            Event.waited.append(self.time)

        def elapsed_time(self, later: "Event") -> float:
            return 1e3 * (later.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = Clock(torch.device("cuda"))
    for name in ("render", "encode", "noise"):
        clock.lap(name)
    assert Event.made == 4 and Event.waited == []
    assert dict(clock) == {"render": 1.0, "encode": 1.0, "noise": 1.0} and Event.waited == [2, 3, 4]
    assert float(Deferred(torch.tensor(0.5, requires_grad=True))) == 0.5
