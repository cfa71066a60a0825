"""The ideal teacher: its denoised images are posterior means, in every space, for every schedule."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from present import as_a, present
from torch import Tensor

from gscfd.cameras import sample_group, turntable
from gscfd.distil.sampling import clean_flow, ddim, falling_times
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.lab.assets import find_assets, toybox_assets
from gscfd.lab.coverage import coverage_p
from gscfd.lab.ideal import (
    Cosines,
    IdealDenoiser,
    border_color,
    cosine_basis,
    ideal_teacher,
    posterior_mean,
    posterior_weights,
)
from gscfd.teachers.base import Prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.schedules import Diffusion, Flow, Schedule
from gscfd.teachers.spaces import Pixels, Space
from gscfd.types import Cameras

ALPHAS = torch.linspace(0.9999, 0.0005, 200)
SCHEDULES: dict[str, Schedule] = {
    "epsilon": Diffusion(ALPHAS, "epsilon"),
    "v": Diffusion(ALPHAS, "v_prediction"),
    "flow": Flow(200),
}
SPACES: dict[str, Space] = {"pixels": Pixels(16), "cosines": Cosines(16, patch=4, channels=7)}


@pytest.fixture(scope="module")
def ducks() -> list[Gaussians]:
    return [asset.gaussians for asset in toybox_assets("a yellow duck", 3, spacing=0.15)]


def asked(teacher: GuidedTeacher, rescale: float = 0.5) -> GuidedTeacher:
    teacher.set_prompt(Prompt(text="anything", cfg=3.0, cfg_rescale=rescale))
    return teacher


def denoised(teacher: GuidedTeacher, x: Tensor, t: int, cameras: Cameras) -> Tensor:
    alpha, sigma = teacher.alpha_sigma(t)
    return (x - sigma * teacher.predict_eps(x, t, cameras)) / alpha


def views_of(thing: Gaussians, cameras: Cameras, background: Tensor) -> Tensor:
    return thing.render(cameras).over(background).clamp(0, 1).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------------------ posterior mean


@pytest.mark.parametrize("joint", [True, False])
def test_weights_and_mean_are_those_of_bayes_rule(joint: bool) -> None:
    """Against sums of densities, in float64, written out."""
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(5, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 2, 2, 2, generator=generator, dtype=torch.float64)
    shares, alpha, sigma = torch.tensor([5.0, 1.0, 2.0, 1.0, 1.0], dtype=torch.float64), 0.6, 0.8
    density = torch.zeros(5, 3, dtype=torch.float64)
    for k in range(5):
        for v in range(3):
            shown = range(3) if joint else [v]
            normal = torch.distributions.Normal(alpha * known[k], sigma)
            density[k, v] = shares[k] * math.exp(sum(normal.log_prob(x)[u].sum().item() for u in shown))
    expected = density / density.sum(0)
    weights = posterior_weights(x, known, alpha, sigma, joint=joint, shares=shares)
    assert torch.allclose(weights, expected, rtol=1e-9) and torch.allclose(weights.sum(0), torch.ones(3).double())
    mean = posterior_mean(x, known, alpha, sigma, joint=joint, shares=shares)
    assert torch.allclose(mean, (expected[..., None, None, None] * known).sum(0), rtol=1e-9)
    other = posterior_mean(x, known, alpha, sigma, joint=not joint, shares=shares)
    assert not torch.allclose(mean, other, rtol=1e-3), "control: one object in all views is not one in each"


def test_two_opposite_points_have_the_hyperbolic_tangent() -> None:
    """E[z | x] = m tanh(alpha <m, x> / sigma^2) for z = +m or -m."""
    generator = torch.Generator().manual_seed(1)
    m, x = torch.randn(2, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    for alpha, sigma in ((0.1, 0.995), (0.6, 0.8), (0.99, 0.14)):
        expected = m * torch.tanh(alpha * (m * x).sum() / sigma**2)
        assert torch.allclose(posterior_mean(x, torch.stack([m, -m]), alpha, sigma, joint=True), expected)


def test_a_gaussian_has_the_wiener_filter() -> None:
    """Points on a fine grid, each with the density there: E[z | x] = alpha s^2 x / (alpha^2 s^2 + sigma^2)."""
    spread, alpha, sigma = 0.7, 0.8, 0.6
    grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    shares = torch.exp(-((grid / spread) ** 2) / 2)
    for x in (-1.0, 0.2, 1.5):
        seen = torch.full((1, 1, 1, 1), x, dtype=torch.float64)
        found = posterior_mean(seen, grid[:, None, None, None, None], alpha, sigma, joint=True, shares=shares).item()
        assert found == pytest.approx(alpha * spread**2 * x / (alpha**2 * spread**2 + sigma**2), abs=1e-9)
        flat = posterior_mean(seen, grid[:, None, None, None, None], alpha, sigma, joint=True).item()
        assert abs(flat - found) > 0.05, "control: without shares it is another distribution"


# ------------------------------------------------------------------------------------------------------------- teacher


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("multiview", [True, False], ids=["group", "single"])
def test_one_asset_is_what_every_noise_is_denoised_to(
    ducks: list[Gaussians], space: Space, schedule: Schedule, multiview: bool
) -> None:
    teacher = asked(ideal_teacher(ducks[:1], space=space, schedule=schedule, multiview=multiview))
    generator = torch.Generator().manual_seed(2)
    for t in (1, 50, 120, 195):
        cameras = sample_group(2, elevation=(0, 30), fov=(40, 40), radius=(1.05, 1.05), size=16, generator=generator)
        background = torch.rand(3, generator=generator)
        teacher.encode(background[:, None, None].expand(2, 3, 24, 24))
        z = denoised(teacher, torch.randn(2, *teacher.latent_shape, generator=generator), t, cameras)
        assert torch.allclose(z, space.encode(views_of(ducks[0], cameras, background)), atol=2e-3)
        other = space.encode(views_of(ducks[1], cameras, background))
        assert not torch.allclose(z, other, atol=0.05), "control: another asset"


def test_all_schedules_ask_for_the_same_image_and_a_view_without_noise_stays(ducks: list[Gaussians]) -> None:
    teachers = [
        asked(ideal_teacher(ducks, space=Pixels(16), schedule=SCHEDULES[name], multiview=True))
        for name in ("epsilon", "v")
    ]
    cameras, x = turntable(2, size=16), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    for teacher in teachers:
        teacher.encode(torch.full((2, 3, 16, 16), 0.5))
    one, other = (denoised(teacher, x, 190, cameras) for teacher in teachers)
    assert torch.allclose(one, other, atol=1e-4)
    flow = asked(ideal_teacher(ducks, space=Pixels(16), schedule=Flow(200), multiview=True), rescale=0.0)
    assert torch.allclose(denoised(flow, x, 0, cameras), x)


def test_sampling_gives_one_of_the_assets(ducks: list[Gaussians]) -> None:
    teacher = asked(ideal_teacher(ducks, space=Pixels(16), schedule=SCHEDULES["epsilon"], multiview=True))
    cameras, gray = turntable(4, size=16), torch.full((3,), 0.5)
    teacher.encode(gray[:, None, None].expand(4, 3, 16, 16))
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    images = teacher.decode(ddim(teacher, x, list(range(198, 0, -10)), cameras))
    errors = [(images - views_of(duck, cameras, gray)).abs().max().item() for duck in ducks]
    assert sorted(errors)[0] < 0.02 < sorted(errors)[1]


def test_views_are_rendered_once_for_a_group_and_again_for_another_background(ducks: list[Gaussians]) -> None:
    teacher = ideal_teacher(ducks, space=Pixels(16), schedule=Flow(200), multiview=True)
    denoiser = as_a(IdealDenoiser, teacher.denoiser)
    with pytest.raises(RuntimeError, match="encode"):
        denoiser.known(turntable(2, size=16))
    teacher.encode(torch.full((2, 3, 16, 16), 0.5))
    first = denoiser.known(turntable(2, size=16))
    assert denoiser.known(turntable(2, size=64)) is first, "the size of the views is the teacher's"
    assert denoiser.known(turntable(2, size=16, elevation=20)) is not first
    teacher.encode(torch.full((2, 3, 16, 16), 0.2))
    dark = denoiser.known(turntable(2, size=16))
    assert dark[0, 0, :, 0, 0].tolist() == pytest.approx([2 * 0.2 - 1] * 3)


def test_the_background_is_found_behind_an_object_that_reaches_the_border() -> None:
    images = torch.tensor([0.2, 0.6, 0.4])[:, None, None].repeat(2, 1, 1, 1).expand(2, 3, 16, 16).clone()
    images[:, :, :6, :10] = 0.9
    assert border_color(images).tolist() == pytest.approx([0.2, 0.6, 0.4])


# --------------------------------------------------------------------------------------------------------------- modes


def modes_of_the_flow(shares: list[float], gamma: float, draws: int) -> list[int]:
    """How often the clean flow of an image ends at each of two modes, far apart and of different brightness."""
    points = torch.tensor([[0.9, -0.2, 0.4], [-0.7, 0.1, 0.3]])
    # Views of nothing: the "assets" are two colors, given as latents.
    teacher = ideal_teacher(
        toybox_gray(), space=Pixels(1), schedule=SCHEDULES["epsilon"], multiview=False, shares=shares
    )
    denoiser = as_a(IdealDenoiser, teacher.denoiser)
    known = points[:, None, :, None, None].expand(2, draws, 3, 1, 1)
    denoiser.known = lambda cameras: known  # type: ignore[method-assign]
    generator, cameras = torch.Generator().manual_seed(5), turntable(draws, size=1)

    def noise(step: int) -> Tensor:
        return torch.randn(draws, 3, 1, 1, generator=generator)

    times = falling_times(60, teacher.timesteps)
    z = clean_flow(asked(teacher), noise(0), noise, times, cameras, gamma=gamma)
    picked = (z[None] - known).square().sum((2, 3, 4)).argmin(0)
    return torch.bincount(picked, minlength=2).tolist()


def toybox_gray() -> list[Gaussians]:
    return [asset.gaussians for asset in toybox_assets("a gray mug", 2, spacing=0.3)]


def test_the_clean_flow_picks_modes_in_their_proportions_and_sds_does_not() -> None:
    for shares in ([0.5, 0.5], [0.7, 0.3]):
        assert coverage_p(modes_of_the_flow(shares, 0.0, 512), shares) > 0.05
    assert coverage_p(modes_of_the_flow([0.7, 0.3], 1.0, 512), [0.7, 0.3]) < 1e-3


# -------------------------------------------------------------------------------------------------------------- spaces


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_linear_space_is_an_orthogonal_projection_that_keeps_mean_colors(patch: int) -> None:
    basis = cosine_basis(patch).flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(patch**2), atol=1e-6)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    whole = Cosines(8, patch=patch, channels=3 * patch**2)
    assert torch.allclose(whole.decode(whole.encode(images)), images, atol=1e-5)
    few = Cosines(8, patch=patch, channels=3)
    means = torch.nn.functional.avg_pool2d(images, patch)
    assert few.latent_shape == (3, 8 // patch, 8 // patch)
    assert torch.allclose(few.encode(images), 2 * means - 1, atol=1e-5)
    z = few.encode(images)
    assert torch.allclose(few.encode(few.decode(z)), z, atol=1e-5)
    if patch > 1:
        faint, four = 0.4 + 0.2 * images, Cosines(8, patch=patch, channels=4)
        assert torch.allclose(four.encode(faint)[:, :3], few.encode(faint), atol=1e-6), "the fourth is gray"
        assert torch.allclose(four.encode(four.decode(four.encode(faint))), four.encode(faint), atol=1e-5)
        errors = [(space.decode(space.encode(faint)) - faint).norm() for space in (four, few)]
        assert errors[0] < 0.999 * errors[1], "and not nothing"


def test_a_linear_space_of_impossible_size_is_refused() -> None:
    for size, channels in ((10, 3), (8, 2), (8, 49)):
        with pytest.raises(ValueError, match="size, channels"):
            Cosines(size, patch=4, channels=channels)


# -------------------------------------------------------------------------------------------------------------- assets


def test_assets_are_the_objects_of_a_caption_or_a_file_in_the_unit_ball(tmp_path: Path) -> None:
    things = find_assets("a red mushroom with a white stem", 2, spacing=0.2)
    assert [thing.name for thing in things] == ["a red mushroom with a white stem"] * 2
    values = things[0].gaussians.tensors()
    Gaussians(**{**values, "means": values["means"] * 7, "scales": values["scales"] + math.log(7)}).save_ply(
        tmp_path / "large.ply"
    )
    (large,) = find_assets(str(tmp_path / "large.ply"), 1, spacing=0.2)
    assert large.name == "large.ply" and present(large.gaussians.means.norm(dim=1).max()).item() <= 1.0


@pytest.mark.parametrize("source", ["gone.ply", "broken.ply", "a yellow submarine", "a duck on a table", ""])
def test_an_asset_that_cannot_be_read_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.ply").write_bytes(b"ply\nformat")
    with pytest.raises(UserError, match=r"^assets: expected") as caught:
        find_assets(source, 1, spacing=0.2)
    assert source in str(caught.value) and "\n" not in str(caught.value)


def test_no_asset_too_few_and_shares_that_do_not_fit_are_refused(ducks: list[Gaussians]) -> None:
    with pytest.raises(UserError, match="known: expected at least 1"):
        find_assets("a yellow duck", 0, spacing=0.2)
    with pytest.raises(UserError, match="assets: expected 2000 objects"):
        find_assets("a yellow duck", 2000, spacing=0.5)
    for things, shares in (([], None), (ducks, [1.0]), (ducks, [1.0, 0.0, 1.0])):
        with pytest.raises(UserError, match="^assets|^shares"):
            ideal_teacher(things, space=Pixels(8), schedule=Flow(10), multiview=True, shares=shares)
