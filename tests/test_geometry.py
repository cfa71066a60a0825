"""Normals from depth."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scenes import render_scene, sphere, views
from torch import Tensor

from gscfd.cameras import camera_to_world, turntable
from gscfd.gaussians import ball
from gscfd.geometry import normal_map, normals
from gscfd.rasterize import rasterization, reference
from gscfd.types import Cameras, Render

NAMES = ("means", "quats", "scales", "opacities")


def points(render: Render, cameras: Cameras) -> Tensor:
    """[V, H, W, 3] in the world, where there is a surface."""
    rows, columns = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing="ij")
    pixels = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)], -1)
    rays = torch.einsum("hwj,vij->vhwi", pixels.to(cameras.Ks), torch.linalg.inv(cameras.Ks))
    poses = camera_to_world(cameras)
    return torch.einsum("vhwj,vij->vhwi", rays * render.depth, poses[:, :3, :3]) + poses[:, None, None, :3, 3]


def facing(found: Tensor, expected: Tensor, where: Tensor | tuple[int | slice, ...]) -> Tensor:
    return (found * expected).sum(-1)[where]


def test_a_spheres_normals_are_its_directions_in_every_view() -> None:
    cameras = views(20.0, 130.0, 250.0, size=128)
    cameras = Cameras(cameras.viewmats.float(), cameras.Ks.float(), 128, 128)
    render = render_scene(sphere(), cameras)
    outward = points(render, cameras) / 0.9
    towards = camera_to_world(cameras)[:, None, None, :3, 3] - 0.9 * outward
    inside = (render.opacity[..., 0] > 0) & ((outward * towards).sum(-1) / towards.norm(dim=-1) > 0.3)
    found = normals(render, cameras)
    assert facing(found, outward, inside).min() > 0.995
    assert (found[render.opacity[..., 0] == 0] == 0).all()
    unturned = found @ cameras.viewmats[:, None, :3, :3].transpose(-1, -2)
    assert facing(unturned, outward, inside).mean() < 0.5, "the control: normals in the camera's axes"


def test_a_normal_does_not_reach_across_an_edge() -> None:
    """Two parallel planes, one behind the other: both face the camera, up to the edge between them."""
    cameras = turntable(1, size=16)
    depth = torch.full((1, 16, 16, 1), 2.0)
    depth[:, :, 8:] = 9.0
    back = camera_to_world(cameras)[:, None, None, :3, 2]
    found = normals(Render(depth, depth, torch.ones_like(depth)), cameras)
    assert torch.allclose(found, -back.expand_as(found), atol=1e-5)
    near = torch.where(depth > 2, 2.02, depth)
    across = normals(Render(near, near, torch.ones_like(near)), cameras)
    assert facing(across, -back, (0, slice(None), 8)).max() < 0.999, "the control: a step that is no edge"


def scene(dtype: torch.dtype) -> dict[str, Tensor]:
    """A few large Gaussians, nearly opaque in the middle."""
    gaussians = ball(8, radius=0.4, opacity=0.85, generator=torch.Generator().manual_seed(1))
    values = {name: value.detach().to(dtype) for name, value in gaussians.params.items()}
    inputs = {
        "means": values["means"],
        "quats": values["quats"],
        "scales": values["scales"].exp() * torch.tensor([1.2, 0.8, 0.5], dtype=dtype),
        "opacities": values["opacities"].sigmoid(),
    }
    return {name: value.requires_grad_() for name, value in inputs.items()}


def shown(rasterize: Callable[..., Any], inputs: dict[str, Tensor], cameras: Cameras) -> Tensor:
    """A number that depends on every pixel of the normal maps."""
    settings = {"viewmats": cameras.viewmats, "Ks": cameras.Ks, "width": cameras.width, "height": cameras.height}
    rendered, opacity, _ = rasterize(**inputs, colors=torch.zeros_like(inputs["means"]), **settings)
    images = normal_map(Render(rendered[..., :3], rendered[..., 3:], opacity), cameras)
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (images * weights.to(images)).sum()


def test_the_gradient_reaches_the_gaussians_through_depth() -> None:
    """The reference rasterizer in float64 against finite differences, then the one that runs use against it."""
    cameras = turntable(2, size=16)
    exact = Cameras(cameras.viewmats.double(), cameras.Ks.double(), 16, 16)
    inputs = scene(torch.float64)
    gradients = torch.autograd.grad(shown(reference.rasterization, inputs, exact), list(inputs.values()))
    step = 1e-6
    for name, gradient in zip(inputs, gradients, strict=True):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = {**inputs, name: inputs[name] + sign * step * direction}
            ends.append(shown(reference.rasterization, moved, exact).item())
        assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5), name
    single = scene(torch.float32)
    found = torch.autograd.grad(shown(rasterization, single, cameras), list(single.values()))
    for name, ours, right in zip(inputs, found, gradients, strict=True):
        assert (ours - right).norm() < 2e-3 * right.norm(), name
    flat = {**single, "opacities": single["opacities"].detach()}
    without = torch.autograd.grad(
        shown(lambda **kw: cut_depth(*rasterization(**kw)), flat, cameras), flat["means"], allow_unused=True
    )[0]
    assert (without - found[0]).norm() > 0.1 * found[0].norm(), "the control: no gradient through depth"


def cut_depth(rendered: Tensor, opacity: Tensor, info: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    return torch.cat([rendered[..., :3], rendered[..., 3:].detach()], -1), opacity, info
