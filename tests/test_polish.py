"""The polish: what the teacher paints over a splat is what the splat becomes, with sharp edges and no fine speckle."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import drawn
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.config import Config, InitConfig, LearningRates, PolishConfig, StageConfig, WatchdogConfig, merged, plain
from gscfd.distil import loading
from gscfd.distil.polish import (
    Album,
    Pictures,
    backgrounds_of,
    fineness,
    fit,
    painted_over,
    picture_loss,
    pictures_of,
    run_polish,
)
from gscfd.distil.protocols import Rasterize
from gscfd.distil.stage import PARTS, StepReport
from gscfd.distil.state import StageState, StateDict
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians, ball, rasterize
from gscfd.rasterize import EPS2D
from gscfd.runs import plan
from gscfd.teachers.base import Prompt
from gscfd.types import Cameras, Render

SIZE = 32
SCALE = fineness(SIZE)


class Painter:
    """Wants a splat of its own from every side, and sees pixels as they are; its pictures have another background."""

    multiview, image_size, latent_shape, timesteps = False, SIZE, (3, SIZE, SIZE), 100

    def __init__(self, wanted: Gaussians, shade: float = 0.0):
        self.wanted, self.shade = wanted, shade

    def set_prompt(self, prompt: Prompt) -> None: ...

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        angle = math.pi / 2 * t / self.timesteps
        return math.cos(angle), math.sin(angle)

    def encode(self, images: Tensor) -> Tensor:
        self.behind = images[:, :, 0, 0]
        return images

    def decode(self, z: Tensor) -> Tensor:
        return z.clamp(0, 1)

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        render = self.wanted.render(cameras)
        background = (self.behind + self.shade).clamp(0, 1)[:, None, None]
        return (x_t - alpha * render.over(background).permute(0, 3, 1, 2)) / sigma


def splat(seed: int = 0, color: tuple[float, float, float] = (0.9, 0.1, 0.1), radius: float = 0.6) -> Gaussians:
    gaussians = ball(400, radius=radius, opacity=0.9, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        gaussians.sh0.copy_((torch.tensor(color) - 0.5) / 0.2821)
    return gaussians


def noise(cameras: Cameras, render: Render, step: int) -> Tensor:
    return drawn(cameras, render, step).repeat_interleave(4, 2).repeat_interleave(4, 3)


def polish_config(**changes: Any) -> PolishConfig:
    rates = LearningRates(means=2e-3, quats=2e-3, scales=5e-3, opacities=2e-2, sh0=5e-2, end=0.3)
    values: dict[str, Any] = {
        "teacher": "",
        "steps": 6,
        "views": 2,
        "cfg": 1.0,
        "t_max": 0.5,
        "t_min": 0.2,
        "lr": rates,
    }
    return PolishConfig(**{**values, "asks": 2, "album": 3, "fits": 8, **changes})


def polished(gaussians: Gaussians, teacher: Painter, config: PolishConfig | None = None, **options: Any) -> Gaussians:
    config = config or polish_config()
    parts: dict[str, Any] = {
        "name": "polish",
        "rasterize": rasterize,
        "noise": noise,
        "seed": 5,
        "watchdog": WatchdogConfig(),
    }
    parts |= {"time": lambda done: 0.5 - 0.3 * done, "keep_every": 2, "on_step": lambda report: None}
    run_polish(gaussians, config, teacher=teacher, **parts | options)
    return gaussians


def distance(one: Gaussians, other: Gaussians) -> float:
    cameras = turntable(4, size=SIZE)
    gray = torch.full((3,), 0.5)
    return (one.render(cameras).over(gray) - other.render(cameras).over(gray)).abs().mean().item()


def test_the_splat_becomes_what_the_teacher_paints() -> None:
    wanted, start = splat(color=(0.1, 0.1, 0.9)), splat()
    before = distance(start, wanted)
    assert distance(polished(splat(), Painter(wanted)), wanted) < 0.5 * before
    assert distance(polished(splat(), Painter(start)), wanted) > 0.9 * before, "control: a teacher that wants no change"


def test_the_parts_of_a_step_are_named_and_ordered_as_those_of_the_other_stages() -> None:
    reports: list[StepReport] = []
    polished(splat(), Painter(splat()), polish_config(steps=1, fits=1), on_step=reports.append)
    named = list(reports[0].seconds)
    assert named == [part for part in PARTS if part in named]
    assert "optimize" in named and "densify" not in named, "the control"


def narrow(gaussians: Gaussians, cameras: Cameras, *, eps2d: float = EPS2D) -> Render:
    """Widens every splat by as many pixels, whatever their size."""
    return rasterize(gaussians, cameras)


@pytest.mark.parametrize("rasterize, most", [(rasterize, 0.02), (narrow, math.inf)])
def test_a_splat_that_the_teacher_likes_keeps_its_outline_at_every_resolution(
    rasterize: Rasterize, most: float
) -> None:
    fine, wanted, found = turntable(4, size=8 * SIZE), splat(), splat()
    for gaussians in (wanted, found):
        gaussians.scales.data -= 1.0
    polished(found, Painter(wanted), rasterize=rasterize)
    wider = found.render(fine).opacity.mean() / wanted.render(fine).opacity.mean() - 1
    assert abs(wider) < most
    assert most < math.inf or wider > 0.05, "control: splats of the finer render are less wide than the picture's"


@pytest.mark.parametrize("asks", [1, 2, 5])
def test_painting_over_ends_at_the_picture_that_the_teacher_sees_in_all_noise(asks: int) -> None:
    wanted, cameras = splat(), turntable(2, size=SIZE)
    teacher, z = Painter(wanted), torch.full((2, 3, SIZE, SIZE), 0.3)
    teacher.encode(z)
    picture = wanted.render(cameras).over(torch.full((3,), 0.3)).permute(0, 3, 1, 2)
    found = painted_over(teacher, z, torch.randn(z.shape), 50, asks, cameras)
    assert torch.allclose(found, picture, atol=1e-4)
    assert (z - picture).abs().max() > 0.1, "control: the view that it was made from is another"


def test_a_painted_background_of_another_shade_is_no_reason_to_change_the_splat() -> None:
    gaussians, cameras, asked = splat(radius=0.5), turntable(2, size=SIZE), torch.full((3,), 0.4)
    render = gaussians.render(cameras)
    fine = gaussians.render(cameras.resized(SCALE * SIZE, SCALE * SIZE))
    painted = render.over(asked + 0.2).permute(0, 3, 1, 2)
    pictures = pictures_of(cameras, painted, render.opacity, asked)
    naive = dataclasses.replace(pictures, backgrounds=asked[:, None, None].expand_as(painted))
    own, other = (picture_loss(fine, page, ssim=0.2, smooth=0.5).item() for page in (pictures, naive))
    assert own < 0.1 * other, "control: against the background that was asked for, haze would lower the loss"


def test_the_background_of_a_picture_is_its_own_where_the_object_is_not() -> None:
    images = torch.full((1, 3, SIZE, SIZE), 0.6)
    images[..., 10:20, 10:20] = 0.0
    near = torch.zeros(1, 1, SIZE, SIZE)
    near[..., 8:22, 8:22] = 1.0
    found = backgrounds_of(images, near, torch.zeros(3))
    assert torch.allclose(found[..., 8:22, 8:22], torch.tensor(0.6), atol=0.02), "it goes on behind the object"
    full = backgrounds_of(images, torch.ones_like(near), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.allclose(full[0, :, 5, 5], torch.tensor([0.1, 0.2, 0.3])), "nothing seen: the one that was asked for"
    assert not torch.allclose(found, full)


def test_speckle_that_is_too_fine_for_the_pictures_costs_only_with_the_smooth_term() -> None:
    side = SCALE * SIZE
    checks = (torch.arange(side)[:, None] + torch.arange(side)) % 2 * 0.4 + 0.3
    pictures = pictures_of(
        turntable(1, size=SIZE), torch.full((1, 3, SIZE, SIZE), 0.5), torch.ones(1, SIZE, SIZE, 1), torch.zeros(3)
    )
    rgb = checks[None, :, :, None].expand(1, side, side, 3)
    speckled = Render(rgb, torch.ones(1, side, side, 1), torch.ones(1, side, side, 1))
    even = Render(torch.full_like(rgb, 0.5), speckled.depth, speckled.opacity)
    assert picture_loss(speckled, pictures, ssim=0.2, smooth=0.5).item() > 0.05
    assert picture_loss(even, pictures, ssim=0.2, smooth=0.5).item() == pytest.approx(0, abs=1e-4)
    assert picture_loss(speckled, pictures, ssim=0.2, smooth=0.0).item() == pytest.approx(0, abs=1e-4), "the control"


def test_pictures_that_are_fine_enough_are_fitted_at_their_own_resolution() -> None:
    asked: list[int] = []

    def measured(gaussians: Gaussians, cameras: Cameras, **options: Any) -> Render:
        asked.append(cameras.width)
        return rasterize(gaussians, cameras, **options)

    for side in (64, 128):
        cameras, state = turntable(1, size=side), StageState(splat(), polish_config(), seed=0, keep_every=1)
        picture = torch.full((1, 3, side, side), 0.5)
        page = Pictures(cameras, picture, picture, torch.ones_like(picture[:, :1]))
        fit(state, page, measured, polish_config())
    assert asked == [128, 128], "the coarse ones at twice theirs, against speckle that they are too coarse to show"


def test_an_album_keeps_the_latest_groups_and_comes_back_from_its_tensors() -> None:
    album, cameras = Album(2, splat()), turntable(1, size=SIZE)
    for shade in (0.1, 0.2, 0.3):
        images = torch.full((1, 3, SIZE, SIZE), shade)
        album.add(Pictures(cameras, images, images, images[:, :1]))
    assert [round(page.images.mean().item(), 1) for page in album.pages] == [0.2, 0.3]
    again = Album(2, splat(seed=1))
    assert not torch.equal(again.subject.means, album.subject.means), "control"
    again.load({name: value.clone() for name, value in album.tensors().items()})
    assert all(torch.equal(value, again.tensors()[name]) for name, value in album.tensors().items())
    again.load({name: value for name, value in album.tensors().items() if name.startswith("subject/")})
    assert again.pages == [] and len(again.tensors()) == len(again.subject.params)


def test_the_plan_of_a_run_counts_the_album_in_its_checkpoints() -> None:
    reports: list[StepReport] = []
    config = polish_config(steps=6, album=3, fits=1)
    polished(splat(), Painter(splat()), config, keep_every=5, on_step=reports.append)
    saved = reports[-1].state.state_dict()
    assert saved.numbers["step"] != saved.numbers["good_step"], "both halves have a full album"
    album = sum(value.nbytes for name, value in saved.tensors.items() if "learner/album/" in name)
    assert album == 2 * plan.album_bytes(config, SIZE)
    run = Config(init=InitConfig(count=400))
    trained = plan.splat_bytes(run, {}, first=400)
    whole = sum(value.nbytes for value in saved.tensors.values())
    assert whole == pytest.approx(2 * (plan.SAVED * trained + plan.album_bytes(config, SIZE) + trained), rel=0.05)
    assert whole > 2 * 2 * plan.SAVED * trained, "the control: without the album it would be less than half"


def test_a_polish_that_is_continued_from_a_state_ends_the_same() -> None:
    teacher = Painter(splat(color=(0.1, 0.1, 0.9)))
    states: list[StateDict] = []
    whole = polished(splat(), teacher, on_step=lambda report: states.append(report.state.state_dict()))
    again = polished(splat(seed=1), teacher, resume=states[2])
    assert all(torch.equal(whole.params[name], again.params[name]) for name in whole.params)
    states[2].tensors["now/learner/album/0001/images"] += 0.1
    other = polished(splat(seed=1), teacher, resume=states[2])
    assert not torch.equal(whole.sh0, other.sh0), "control: the album counts"


def test_the_teacher_paints_over_the_splat_as_it_came() -> None:
    seen: list[Tensor] = []
    reports: list[StepReport] = []

    class Watched(Painter):
        def encode(self, images: Tensor) -> Tensor:
            seen.append(images)
            return super().encode(images)

    became = polished(splat(), Watched(splat(color=(0.1, 0.1, 0.9))), on_step=reports.append)

    def shown(gaussians: Gaussians) -> Tensor:
        background = seen[-1][0, :, 0, 0]
        return gaussians.render(reports[-1].cameras).over(background).clamp(0, 1).permute(0, 3, 1, 2)

    assert torch.allclose(seen[-1], shown(splat()), atol=1e-5)
    assert (seen[-1] - shown(became)).abs().mean() > 0.02, "control: the splat has become another"


def test_the_watchdog_takes_a_poisoned_picture_back() -> None:
    teacher = Painter(splat())
    reports: list[StepReport] = []

    class Poisoned(Painter):
        def decode(self, z: Tensor) -> Tensor:
            return z * float("nan") if len(reports) == 3 else z.clamp(0, 1)

    found = polished(splat(), Poisoned(teacher.wanted), on_step=lambda report: reports.append(report))
    assert [bool(report.trouble) for report in reports].count(True) == 1
    assert "album" in reports[3].trouble and found.sh0.isfinite().all()
    assert reports[-1].step == 5, "it goes on to its end"


def test_the_watchdog_sees_the_splat_that_is_fitted_vanish() -> None:
    """Its subject, which the teacher paints over, stays as it came."""
    reports: list[StepReport] = []

    def faded(report: StepReport) -> None:
        reports.append(report)
        if report.step == 2 and len(reports) == 3:
            report.gaussians.params["opacities"].data.fill_(-20.0)

    polished(splat(), Painter(splat()), on_step=faded)
    troubles = [report.trouble for report in reports]
    assert "empty" in str(troubles[3]) and [bool(trouble) for trouble in troubles].count(True) == 1
    assert reports[-1].gaussians.opacities.max() > -10, "it is taken back"


def test_stages_with_one_teacher_share_its_networks_and_are_told_prompts_of_their_own() -> None:
    stage = {"teacher": "toybox/multiview", "cfg": 3.0}
    config = merged(Config(), {"prompt": "a mug", "refine": {"steps": 0}, "polish": stage})
    teachers = loading.load_teachers(config)
    coarse, polish = teachers["coarse"], teachers["polish"]
    assert coarse.denoiser is polish.denoiser and coarse.space is polish.space
    assert coarse.prompt is not None and polish.prompt is not None
    assert (coarse.prompt.cfg, polish.prompt.cfg) == (config.coarse.cfg, 3.0)
    other = loading.load_teachers(merged(config, {"polish": {"teacher": "toybox/singleview"}}))
    assert other["coarse"].denoiser is not other["polish"].denoiser, "the control"


@pytest.mark.parametrize(
    "change, name",
    [
        ({"asks": 0}, "polish.asks"),
        ({"fits": 0}, "polish.fits"),
        ({"album": 0}, "polish.album"),
        ({"ssim": 1.5}, "polish.ssim"),
        ({"smooth": -1.0}, "polish.smooth"),
        ({"t_min": 0.0}, "polish.t_min"),
        ({"t_max": 1.0}, "t_min, t_max"),
        ({"steps": -1}, "steps"),
    ],
)
def test_settings_out_of_range_are_errors_that_name_them(change: dict[str, float], name: str) -> None:
    with pytest.raises(UserError, match=name):
        merged(Config(), {"polish": change})


def test_the_polish_has_no_setting_of_a_distillation() -> None:
    names = set(plain(Config())["polish"])
    assert {"asks", "fits", "t_max", "teacher"} <= names
    own = {field.name for field in dataclasses.fields(StageConfig)} - {
        field.name for field in dataclasses.fields(PolishConfig)
    }
    assert {"cds", "vsd", "densify", "normal_prob"} <= own and not own & names


def test_the_loss_is_that_of_gaussian_splatting() -> None:
    cameras, shade = turntable(1, size=SIZE), torch.rand(1, 3, SIZE, SIZE)
    pictures = Pictures(cameras, shade, torch.zeros_like(shade), torch.zeros_like(shade[:, :1]))
    fine = F.interpolate(torch.rand(1, 3, SIZE, SIZE), scale_factor=SCALE).permute(0, 2, 3, 1)
    render = Render(fine, torch.ones_like(fine[..., :1]), torch.ones_like(fine[..., :1]))
    shown = F.avg_pool2d(fine.permute(0, 3, 1, 2), SCALE)
    assert picture_loss(render, pictures, ssim=0.0, smooth=0.0).item() == pytest.approx(
        (shown - shade).abs().mean().item()
    )
