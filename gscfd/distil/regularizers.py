"""Regularizers of the splat and its renders."""

from __future__ import annotations

from torch import Tensor

from gscfd.config import StageConfig
from gscfd.gaussians import Gaussians
from gscfd.types import Render


def regularizers(gaussians: Gaussians, render: Render, config: StageConfig, *, image_size: int) -> Tensor:
    """Returns the weighted sum of the stage's regularizers, a scalar per view like the distillation loss.

    image_size: width and height in pixels of the image to which the weights of sums over pixels refer, regardless of
    the render size.
    """
    views, height, width, _ = render.opacity.shape
    pixels = image_size**2 / (height * width)
    half_opaque = pixels * (render.opacity * (1 - render.opacity)).sum() / views
    largest = gaussians.scales.exp().amax(-1).mean()
    total = config.opacity_reg * half_opaque + config.scale_reg * largest
    if config.sparsity_reg:
        total = total + config.sparsity_reg * pixels * (render.opacity.square() + 0.01).sqrt().sum() / views
    return total
