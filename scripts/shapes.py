"""Objects that benchmarks and checks on a GPU render: a ball of Gaussians, and the depth of a sphere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gscfd.types import Cameras, Render

Scene = dict[str, Tensor]
"""Gaussians, by the names of `rasterization`."""


def ball(count: int, seed: int = 0) -> Scene:
    """Returns Gaussians spread over a ball of radius 0.8, standard deviations about 0.027, opacities 0.05 to 0.95."""
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    return {
        "means": 0.8 * direction * torch.rand(count, 1, generator=g) ** (1 / 3),
        "quats": torch.randn(count, 4, generator=g),
        "scales": torch.exp(0.3 * torch.randn(count, 3, generator=g) - 3.6),
        "opacities": 0.05 + 0.9 * torch.rand(count, generator=g),
        "colors": torch.rand(count, 3, generator=g),
    }


def render(function: Callable[..., Any], scene: Scene, cameras: Cameras, **settings: Any) -> tuple[Tensor, Tensor]:
    size = {"width": cameras.width, "height": cameras.height}
    colors, alphas, _ = function(**scene, viewmats=cameras.viewmats, Ks=cameras.Ks, **size, **settings)
    return colors, alphas


def sphere(cameras: Cameras, radius: float = 0.9) -> Render:
    """Returns depth and opacity of a sphere around the origin, seen by cameras that look at it."""
    rows, columns = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing="ij")
    pixels = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)], -1)
    rays = torch.einsum("hwj,vij->vhwi", pixels, torch.linalg.inv(cameras.Ks))
    distance = cameras.viewmats[:, 2, 3, None, None]
    a, b, c = (rays**2).sum(-1), distance * rays[..., 2], distance**2 - radius**2
    discriminant = b**2 - a * c
    depth = torch.where(discriminant > 0, (b - discriminant.clamp(min=0).sqrt()) / a, 0.0)[..., None]
    opacity = (depth > 0).float()
    return Render(rgb=opacity.expand(-1, -1, -1, 3), depth=depth, opacity=opacity)
