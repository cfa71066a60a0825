"""Regularisers on the splat and on its renders."""

from __future__ import annotations

from torch import Tensor

from gscfd.config import StageConfig
from gscfd.gaussians import Gaussians
from gscfd.types import Render


def regularisers(gaussians: Gaussians, render: Render, config: StageConfig) -> Tensor:
    """The weighted sum of the stage's regularisers, a scalar; per view, as the distillation loss is."""
    half_opaque = (render.opacity * (1 - render.opacity)).sum() / len(render.opacity)
    largest = gaussians.scales.exp().amax(-1).mean()
    return config.opacity_reg * half_opaque + config.scale_reg * largest
