"""Analytic scenes ray-cast in float64: depth and opacity images whose surface is known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gscfd.cameras import camera_to_world, orbit
from gscfd.types import Cameras, Render

Hit = Callable[[Tensor, Tensor], Tensor]
"""(origins [N, 3], unit directions [N, 3]) -> distance to the first hit [N], inf where none."""


def sphere(center: tuple[float, float, float] = (0.0, 0.0, 0.0), radius: float = 0.9) -> Hit:
    def hit(origin: Tensor, direction: Tensor) -> Tensor:
        offset = origin - torch.tensor(center, dtype=origin.dtype)
        b, c = (offset * direction).sum(-1), (offset**2).sum(-1) - radius**2
        return _first_root(b, c)

    return hit


def capsule(start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Hit:
    def hit(origin: Tensor, direction: Tensor) -> Tensor:
        a, b = torch.tensor(start, dtype=origin.dtype), torch.tensor(end, dtype=origin.dtype)
        length = (b - a).norm()
        axis = (b - a) / length
        offset = origin - a
        along_d, along_o = direction @ axis, offset @ axis
        d, o = direction - along_d[:, None] * axis, offset - along_o[:, None] * axis
        scale = (d**2).sum(-1).clamp(min=1e-12)
        t = _first_root((d * o).sum(-1) / scale, ((o**2).sum(-1) - radius**2) / scale)
        on_side = (along_o + t * along_d >= 0) & (along_o + t * along_d <= length)
        side = torch.where(on_side & t.isfinite(), t, math.inf)
        return torch.minimum(
            side, torch.minimum(sphere(start, radius)(origin, direction), sphere(end, radius)(origin, direction))
        )

    return hit


def ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> Hit:
    def hit(origin: Tensor, direction: Tensor) -> Tensor:
        scale = torch.tensor(radii, dtype=origin.dtype)
        o, d = (origin - torch.tensor(center, dtype=origin.dtype)) / scale, direction / scale
        dd = (d**2).sum(-1)
        return _first_root((o * d).sum(-1) / dd, ((o**2).sum(-1) - 1) / dd)

    return hit


def torus(major: float = 0.65, minor: float = 0.25) -> Hit:
    """A torus around the z axis, by sphere tracing to 1e-6."""

    def distance(p: Tensor) -> Tensor:
        return torch.hypot(torch.hypot(p[:, 0], p[:, 1]) - major, p[:, 2]) - minor

    def hit(origin: Tensor, direction: Tensor) -> Tensor:
        t = sphere((0.0, 0.0, 0.0), major + minor + 0.01)(origin, direction)
        alive = t.isfinite()
        origin, direction, near = origin[alive], direction[alive], t[alive]
        for _ in range(60):
            near = near + distance(origin + near[:, None] * direction)
        t[alive] = torch.where(distance(origin + near[:, None] * direction).abs() < 1e-6, near, math.inf)
        return t

    return hit


def union(*hits: Hit) -> Hit:
    return lambda origin, direction: torch.stack([hit(origin, direction) for hit in hits]).amin(0)


def figure() -> Hit:
    """A body of spheres and capsules with arms and legs."""
    return union(
        sphere((0.0, 0.0, 0.0), 0.38),
        sphere((0.05, 0.0, 0.55), 0.27),
        capsule((0.0, 0.3, 0.15), (0.25, 0.75, 0.0), 0.1),
        capsule((0.0, -0.3, 0.15), (0.1, -0.75, 0.3), 0.1),
        capsule((0.0, 0.17, -0.3), (0.05, 0.2, -0.8), 0.13),
        capsule((0.0, -0.17, -0.3), (-0.05, -0.2, -0.8), 0.13),
    )


def wing() -> Hit:
    """A thin tilted wing: .06 thick, so that front and back lie closer than a layer of cells."""
    return ellipsoid((0.0, 0.0, 0.0), (0.03, 0.9, 0.6))


def render_scene(hit: Hit, cameras: Cameras) -> Render:
    """Depth and opacity (0 or 1) of the scene through the pixel centers, float32 from float64 rays."""
    rows, columns = torch.meshgrid(
        torch.arange(cameras.height, dtype=torch.float64),
        torch.arange(cameras.width, dtype=torch.float64),
        indexing="ij",
    )
    depths = []
    for pose, K in zip(camera_to_world(cameras).double(), cameras.Ks.double(), strict=True):
        x, y = (columns + 0.5 - K[0, 2]) / K[0, 0], (rows + 0.5 - K[1, 2]) / K[1, 1]
        ray = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
        direction = ray / ray.norm(dim=-1, keepdim=True) @ pose[:3, :3].T
        t = hit(pose[:3, 3].expand_as(direction), direction)
        depth = torch.where(t.isfinite(), t, 0.0) / ray.norm(dim=-1)
        depths.append(depth.reshape(cameras.height, cameras.width, 1))
    depth = torch.stack(depths)
    opacity = (depth > 0).double()
    return Render(rgb=opacity.expand(-1, -1, -1, 3).float(), depth=depth.float(), opacity=opacity.float())


def views(*azimuths: float, size: int | tuple[int, int] = 256, elevation: float = 15.0, fov: float = 40.0) -> Cameras:
    """Orbit cameras, azimuths in degrees, that just frame the unit ball; size: pixels, or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    azimuth = torch.tensor(azimuths, dtype=torch.float64)
    ones = torch.ones_like(azimuth)
    distance = 1.0 / math.sin(math.radians(fov / 2))
    return orbit(azimuth, elevation * ones, distance * ones, fov * ones, width, height)


def _first_root(b: Tensor, c: Tensor) -> Tensor:
    """Smallest positive t with t^2 + 2 b t + c = 0, inf where there is none."""
    disc = b**2 - c
    t = -b - disc.clamp(min=0).sqrt()
    return torch.where((disc > 0) & (t > 0), t, math.inf)
