"""Regularizers of the splat and its renders."""

from __future__ import annotations

from torch import Tensor

from gscfd.config import StageConfig
from gscfd.gaussians import Gaussians
from gscfd.types import Render


def regularizers(gaussians: Gaussians, render: Render, config: StageConfig, *, image_size: int) -> Tensor:
    """The weighted sum of the stage's regularizers, a scalar; per view, as the distillation loss is.

    image_size: pixels, both ways, of the image whose sums over pixels the weights are for, whatever was rendered.
    """
    views, height, width, _ = render.opacity.shape
    pixels = image_size**2 / (height * width)
    half_opaque = pixels * (render.opacity * (1 - render.opacity)).sum() / views
    largest = gaussians.scales.exp().amax(-1).mean()
    total = config.opacity_reg * half_opaque + config.scale_reg * largest
    if config.sparsity_reg:
        total = total + config.sparsity_reg * pixels * (render.opacity.square() + 0.01).sqrt().sum() / views
    return total
