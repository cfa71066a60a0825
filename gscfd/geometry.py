"""Surface normals of a render."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gscfd.types import Cameras, Render

SURFACE_OPACITY = 0.5
"""Opacity above which a pixel shows a surface, as in the noise."""
MAX_TANGENT = 99.0**0.5
"""Slope above which neighboring pixels belong to different surfaces, as in the noise."""


def normal_map(render: Render, cameras: Cameras) -> Tensor:
    """Returns the surface normals as colors [V, H, W, 3] in [0, 1]: (n + 1) / 2 over black, as in CFD's code.
    Differentiable with respect to depth and opacity."""
    return (normals(render, cameras) + 1) / 2 * render.opacity


def normals(render: Render, cameras: Cameras) -> Tensor:
    """Returns unit normals [V, H, W, 3] in world axes, facing the camera; 0 where there is no surface.

    On a plane, 1 / z = a x + b y + c is linear in the ray (x, y, 1), and (a, b, c) is its normal (docs/noise.md). The
    gradient flows to render.depth.
    """
    surface = render.opacity.detach()[..., 0] > SURFACE_OPACITY
    inverse = 1 / torch.where(surface, render.depth[..., 0], 1.0)
    Ks, (height, width) = cameras.Ks[:, :, :, None, None], inverse.shape[1:]
    a = slope(inverse, surface, Ks[:, 0, 0], dim=2)
    b = slope(inverse, surface, Ks[:, 1, 1], dim=1)
    x = (torch.arange(width, device=inverse.device) + 0.5 - Ks[:, 0, 2]) / Ks[:, 0, 0]
    y = (torch.arange(height, device=inverse.device)[:, None] + 0.5 - Ks[:, 1, 2]) / Ks[:, 1, 1]
    away = F.normalize(torch.stack([a, b, inverse - a * x - b * y], -1), dim=-1)
    return torch.where(surface[..., None], -away @ cameras.viewmats[:, None, :3, :3], 0.0)


def slope(inverse: Tensor, surface: Tensor, focal: Tensor, dim: int) -> Tensor:
    """Returns the derivative [V, H, W] of 1 / depth with respect to the ray's x (dim 2) or y (dim 1): the mean over
    those of the two neighbors that are on the same surface, or 0 if neither is.

    inverse: [V, H, W] 1 / depth. surface: [V, H, W] surface mask. focal: [V, 1, 1] focal length in pixels.
    """
    count = inverse.shape[dim] - 1
    change = focal * inverse.diff(dim=dim)
    limit = MAX_TANGENT * inverse.detach().narrow(dim, 0, count)
    same = surface.narrow(dim, 0, count) & surface.narrow(dim, 1, count) & (change.detach().abs() <= limit)
    change = torch.where(same, change, 0.0)
    before, after = ((1, 0), (0, 1)) if dim == 2 else ((0, 0, 1, 0), (0, 0, 0, 1))
    neighbors = F.pad(same.to(inverse.dtype), before) + F.pad(same.to(inverse.dtype), after)
    return (F.pad(change, before) + F.pad(change, after)) / neighbors.clamp(min=1)
