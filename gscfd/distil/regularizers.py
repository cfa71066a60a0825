"""Regularizers of the splat and its renders.

Their weights are relative to the distillation loss L: the stage minimizes L + sg(L) (weighted sum), so that a
regularizer's share depends on the splat alone. L falls a hundredfold in a stage, and differs as much between teachers,
guidance scales and methods; a constant weight would be nothing at the start and most of the loss at the end.
"""

from __future__ import annotations

from torch import Tensor

from gscfd.config import StageConfig
from gscfd.gaussians import Gaussians
from gscfd.geometry import SURFACE_OPACITY, normals
from gscfd.types import Cameras, Render


def regularizers(gaussians: Gaussians, render: Render, cameras: Cameras, config: StageConfig) -> Tensor:
    """Returns the weighted sum of the stage's regularizers, a scalar, to be multiplied by the distillation loss.

    render: of the cameras, with the depth's variance if depth_reg is not 0.
    """
    opacity = render.opacity
    total = config.opacity_reg * (opacity * (1 - opacity)).mean()
    if config.sparsity_reg:
        total = total + config.sparsity_reg * (opacity.square() + 0.01).sqrt().mean()
    if config.scale_reg:
        total = total + config.scale_reg * gaussians.scales.exp().amax(-1).mean()
    if config.normal_reg:
        total = total + config.normal_reg * normal_roughness(render, cameras)
    if config.depth_reg:
        total = total + config.depth_reg * layer_variance(render)
    return total


def normal_roughness(render: Render, cameras: Cameras) -> Tensor:
    """Returns the mean squared difference of the normal maps, (n + 1) / 2, of neighbors in a row plus that in a column,
    a scalar: 0 for a plane (CFD's code).

    Pairs of which one shows no surface count as 0; in CFD's code they pull the outline inwards.
    """
    facing = normals(render, cameras) / 2
    surface = render.opacity.detach() > SURFACE_OPACITY
    roughness = render.depth.new_zeros(())
    for dim in (1, 2):
        count = facing.shape[dim] - 1
        both = surface.narrow(dim, 0, count) & surface.narrow(dim, 1, count)
        roughness = roughness + (facing.diff(dim=dim).square() * both).mean()
    return roughness


def layer_variance(render: Render) -> Tensor:
    """Returns the mean over the surface of the variance of the depths that a pixel shows, a scalar in square world
    units (HiFA, Zhu & Zhuang 2023; CFD's code): 0 for one layer, p (1 - p) d^2 for two at a distance d."""
    assert render.depth_variance is not None
    surface = render.opacity.detach() > SURFACE_OPACITY
    return (render.depth_variance * surface).sum() / surface.sum().clamp(min=1)
