"""What the regularizers cost, and that none takes over as the distillation loss falls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scenes import render_scene, sphere, views
from tiny import TinyTeacher, stage_config, tiny_stage
from torch import Tensor

from gscfd import gaussians as splats
from gscfd.cameras import camera_to_world, turntable
from gscfd.config import DensifyConfig
from gscfd.distil.regularizers import layer_variance, normal_roughness, regularizers
from gscfd.gaussians import Gaussians, ball, rasterize
from gscfd.rasterize import rasterization, reference
from gscfd.types import Cameras, Render

CAMERA = turntable(1, size=16)


def cost(opacity: Tensor, **weights: Any) -> float:
    gaussians = ball(10, radius=0.6, opacity=0.3, generator=torch.Generator().manual_seed(0))
    render = Render(torch.zeros(*opacity.shape[:3], 3), torch.ones_like(opacity), opacity, None)
    cameras = turntable(len(opacity), size=opacity.shape[1])
    return regularizers(gaussians, render, cameras, stage_config(**weights)).item()


@pytest.mark.parametrize("name", ["opacity_reg", "sparsity_reg"])
def test_renders_of_another_size_and_more_views_cost_the_same(name: str) -> None:
    small = torch.rand(2, 4, 4, 1, generator=torch.Generator().manual_seed(0))
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for other in (large, torch.cat([small, small])):
        assert cost(small, **{name: 2.0}) == pytest.approx(cost(other, **{name: 2.0}))
    assert cost(small.round(), **{name: 2.0}) != pytest.approx(cost(small, **{name: 2.0})), "the control"


def test_half_opaque_pixels_cost_and_sure_ones_do_not() -> None:
    opacity = torch.zeros(1, 4, 4, 1)
    opacity[:, 0] = 0.5
    assert cost(opacity, opacity_reg=2.0) == pytest.approx(2.0 * 0.25 * 0.25)
    assert cost(opacity.round(), opacity_reg=2.0) == 0


def test_sparsity_costs_what_is_covered() -> None:
    empty, full = torch.zeros(1, 4, 4, 1), torch.ones(1, 4, 4, 1)
    assert cost(empty, sparsity_reg=2.0) == pytest.approx(2.0 * 0.1)
    assert cost(full, sparsity_reg=2.0) == pytest.approx(2.0 * 1.01**0.5)
    assert cost(full) == 0


def test_large_gaussians_cost_their_size() -> None:
    gaussians = ball(10, radius=0.6, opacity=0.3, generator=torch.Generator().manual_seed(0))
    largest = gaussians.scales.exp().amax(-1).mean().item()
    assert cost(torch.ones(1, 4, 4, 1), scale_reg=3.0) == pytest.approx(3.0 * largest)


# ---------------------------------------------------------------------------------------------- a share that stays


def shares(factor: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The regularizer's share of the loss in every step of a stage whose gradients are `factor` as large and whose
    splat stays as it is."""

    def scaled(self: TinyTeacher, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        # z - z0_hat is factor (z - target), for any t.
        alpha, sigma = self.alpha_sigma(t)
        noise = torch.zeros_like(x_t)
        return noise + factor * (x_t / alpha - self.target) * alpha / max(sigma, 0.01)

    found: list[float] = []
    monkeypatch.setattr(TinyTeacher, "predict_eps", scaled)
    tiny_stage(
        stage_config(opacity_reg=2.0, densify=DensifyConfig(start=1.0, stop=1.0)),
        noise=lambda cameras, render, step: torch.zeros(len(cameras), 3, 8, 8),
        on_step=lambda report: found.append(float(report.regularizer) / float(report.loss)),
    )
    return found


def test_a_loss_a_ten_thousandth_as_large_gives_the_regularizer_the_same_share(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = shares(1.0, monkeypatch), shares(0.01, monkeypatch)
    assert small[0] == pytest.approx(large[0], rel=1e-5), "of one splat, in the first step"
    assert max(small) < 2 * small[0] and max(large) < 2 * large[0]


def test_the_direction_of_a_step_does_not_depend_on_the_unit_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam sees only the ratio of the two gradients, and it falls with the root of the loss, never the other way."""

    def ratio(loss: float) -> float:
        gaussians = ball(20, radius=0.6, opacity=0.3, generator=torch.Generator().manual_seed(0))
        render = rasterize(gaussians, CAMERA)
        value = loss * regularizers(gaussians, render, CAMERA, stage_config(opacity_reg=2.0))
        (gradient,) = torch.autograd.grad(value, gaussians.params["opacities"])
        return float(gradient.norm()) / math.sqrt(loss)

    assert ratio(1.0) == pytest.approx(10 * ratio(0.01), rel=1e-4)


# --------------------------------------------------------------------------------------------------------- smoothness


def plane(cameras: Cameras, tilt: float, bumps: float = 0.0) -> Render:
    """A plane through the origin, tilted about the image's vertical axis, that fills the view."""
    forward, right = camera_to_world(cameras)[0, :3, 2], camera_to_world(cameras)[0, :3, 0]
    normal = math.cos(tilt) * forward + math.sin(tilt) * right
    origin = camera_to_world(cameras)[0, :3, 3]
    rows, columns = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing="ij")
    pixels = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)], -1).to(cameras.Ks)
    rays = pixels @ torch.linalg.inv(cameras.Ks[0]).T @ camera_to_world(cameras)[0, :3, :3].T
    depth = (-(origin @ normal) / (rays @ normal))[None, ..., None]
    generator = torch.Generator().manual_seed(0)
    depth = depth + bumps * torch.randn(depth.shape, generator=generator, dtype=torch.float64)
    return Render(depth.expand(-1, -1, -1, 3), depth, torch.ones_like(depth), None)


EXACT = Cameras(CAMERA.viewmats.double(), CAMERA.Ks.double(), 16, 16)


@pytest.mark.parametrize("tilt", [0.0, 0.5, -1.0])
def test_a_plane_is_smooth_however_it_is_tilted(tilt: float) -> None:
    assert normal_roughness(plane(EXACT, tilt), EXACT).item() < 1e-20
    assert normal_roughness(plane(EXACT, tilt, bumps=0.01), EXACT).item() > 1e-4, "the control"


def test_the_outline_of_a_plane_costs_nothing() -> None:
    render = plane(EXACT, 0.5)
    render.opacity[:, :, :7] = 0
    assert normal_roughness(render, EXACT).item() < 1e-20


def test_a_sphere_costs_the_same_at_every_size_and_more_than_a_plane() -> None:
    """The integral of the squared change of the normals over an area has no unit."""
    cameras = views(20.0, size=64)
    large, small = (normal_roughness(render_scene(sphere(radius=r), cameras), cameras).item() for r in (0.9, 0.45))
    assert small == pytest.approx(large, rel=0.1) and large > 1e-5


def test_the_gradient_of_the_roughness_is_that_of_finite_differences() -> None:
    render = plane(EXACT, 0.5, bumps=0.01)

    def of_depth(depth: Tensor) -> Tensor:
        return normal_roughness(Render(render.rgb, depth, render.opacity, None), EXACT)

    assert torch.autograd.gradcheck(of_depth, render.depth.clone().requires_grad_(), eps=1e-7, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- layers


def layers(*placed: tuple[float, float]) -> Gaussians:
    """Discs much wider than the view, at distances along the camera's axis from the origin, with opacities."""
    away = camera_to_world(CAMERA)[0, :3, 2]
    count = len(placed)
    turned = torch.tensor([[math.cos(math.pi / 4 - math.radians(15) / 2), 0.0, 1.0, 0.0]]).repeat(count, 1)
    turned[:, 2] = -math.sin(math.pi / 4 - math.radians(15) / 2)
    opacity = torch.tensor([p for _, p in placed])
    return Gaussians(
        means=torch.stack([distance * away for distance, _ in placed]),
        quats=turned,
        scales=torch.tensor([[3.0, 3.0, 0.001]]).log().repeat(count, 1),
        opacities=torch.logit(opacity),
        sh0=torch.zeros(count, 1, 3),
        shN=torch.zeros(count, 0, 3),
    )


def depth_variance(gaussians: Gaussians, cameras: Cameras = CAMERA) -> Tensor:
    found = rasterize(gaussians, cameras, depth_variance=True).depth_variance
    assert found is not None
    return found


def test_one_layer_has_no_variance_however_faint_it_is() -> None:
    for opacity in (0.999, 0.6):
        gaussians = layers((0.2, opacity))
        render = rasterize(gaussians, CAMERA, depth_variance=True)
        assert render.opacity.max().item() == pytest.approx(opacity, abs=1e-3)
        assert layer_variance(render).item() < 1e-6


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("distance", [0.1, 0.8])
def test_two_layers_have_the_variance_of_a_coin(p: float, distance: float) -> None:
    gaussians = layers((-distance / 2, p), (distance / 2, 0.999))
    middle = depth_variance(gaussians)[0, 8, 8, 0].item()
    assert middle == pytest.approx(p * (1 - p) * distance**2, rel=0.02)
    assert p * (1 - p) * distance != pytest.approx(p * (1 - p) * distance**2, rel=0.02), "the control"


def test_the_variance_does_not_depend_on_where_the_object_is() -> None:
    near, far = layers((-0.2, 0.5), (0.2, 0.999)), layers((0.6, 0.5), (1.0, 0.999))
    found = [depth_variance(gaussians)[0, 8, 8, 0].item() for gaussians in (near, far)]
    assert found[1] == pytest.approx(found[0], rel=0.01)


@pytest.mark.parametrize("degree", [0, 2])
def test_a_render_with_the_variance_shows_what_one_without_it_shows(degree: int) -> None:
    generator = torch.Generator().manual_seed(4)
    gaussians = ball(50, radius=0.5, opacity=0.6, sh_degree=degree, generator=generator)
    gaussians.shN.data.normal_(generator=generator)
    with_it, without = (rasterize(gaussians, turntable(3, size=16), depth_variance=wanted) for wanted in (True, False))
    for name in ("rgb", "depth", "opacity", "median_depth"):
        assert torch.equal(getattr(with_it, name), getattr(without, name)), name
    assert with_it.depth_variance is not None and with_it.depth_variance.shape == without.depth.shape
    assert without.depth_variance is None
    assert not torch.allclose(with_it.depth_variance, without.depth), "the control"


def test_what_shows_no_surface_has_no_variance() -> None:
    gaussians = layers((-0.4, 0.2), (0.4, 0.2))
    render = rasterize(gaussians, CAMERA, depth_variance=True)
    assert render.depth_variance is not None and render.depth_variance.max() > 0.1
    assert layer_variance(render).item() == 0


def reference_rasterization(*inputs: Any, absgrad: bool, **options: Any) -> Any:
    return reference.rasterization(*inputs, **options)


def variance(drawn_by: Callable[..., Any], inputs: dict[str, Tensor], cameras: Cameras) -> Tensor:
    """A number that depends on the variance in every pixel, of Gaussians that are not parameters."""
    splat = ball(8, radius=0.4, opacity=0.85, generator=torch.Generator().manual_seed(1))
    splat.params = inputs  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splats, "rasterization", drawn_by)
        patch.setattr(splats, "view_colors", lambda means, *rest: torch.zeros_like(means)[None])  # float64 too
        found = depth_variance(splat, cameras)
    weights = torch.rand(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (found * weights.to(found)).sum()


def test_the_gradient_of_the_variance_is_that_of_finite_differences() -> None:
    """The reference rasterizer in float64 against finite differences, then the one that runs use against it."""
    splat = ball(8, radius=0.4, opacity=0.85, generator=torch.Generator().manual_seed(1))
    inputs = {name: splat.params[name].detach().double().requires_grad_() for name in ("means", "scales", "opacities")}
    fixed = {name: splat.params[name].detach().double() for name in ("quats", "sh0", "shN")}
    gradients = torch.autograd.grad(variance(reference_rasterization, {**inputs, **fixed}, EXACT), [*inputs.values()])
    step = 1e-6
    for name, gradient in zip(inputs, gradients, strict=True):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = {**inputs, **fixed, name: inputs[name] + sign * step * direction}
            ends.append(variance(reference_rasterization, moved, EXACT).item())
        assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4), name
    single = {name: value.detach().float().requires_grad_() for name, value in {**inputs, **fixed}.items()}
    native = variance(rasterization, single, CAMERA)
    found = torch.autograd.grad(native, [single[name] for name in inputs])
    for name, ours, right in zip(inputs, found, gradients, strict=True):
        assert (ours - right).norm() < 5e-3 * right.norm(), name


@pytest.mark.requires_cuda
def test_cuda_gives_the_variance_and_the_roughness_of_the_cpu() -> None:
    found: list[tuple[float, float, Tensor]] = []
    for device in ("cpu", "cuda"):
        gaussians = ball(200, radius=0.5, opacity=0.6, generator=torch.Generator().manual_seed(0))
        gaussians.params.to(device)
        cameras = CAMERA.to(device)
        render = rasterize(gaussians, cameras, depth_variance=True)
        layered, rough = layer_variance(render), normal_roughness(render, cameras)
        (gradient,) = torch.autograd.grad(layered + rough, gaussians.params["means"])
        found.append((layered.item(), rough.item(), gradient.cpu()))
    (layers_here, rough_here, gradient), (layers_there, rough_there, gradient_there) = found
    assert layers_there == pytest.approx(layers_here, rel=1e-3) and rough_there == pytest.approx(rough_here, rel=1e-2)
    assert (gradient_there - gradient).norm() < 0.02 * gradient.norm()
