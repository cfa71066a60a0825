"""Turntable images of a finished splat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.gaussians import Gaussians
from gscfd.types import Render

WHOLE_RADIUS = 1.3
"""Half the width of an image in world units. Objects fill the teachers' views, and their tips reach beyond."""


def turntable_frames(
    gaussians: Gaussians,
    frames: int,
    size: int,
    background: float | Sequence[float] | None = 1.0,
    radius: float = WHOLE_RADIUS,
) -> np.ndarray:
    """Renders one turn, [frames, size, size, 3] uint8, starting at the front, counter-clockwise seen from above.

    background: a gray level or RGB in [0, 1]; None: transparent, with opacity as a fourth channel. radius: half the
    width of an image in world units.
    """
    cameras = turntable(frames, size=size, radius=radius)
    chunks = [gaussians.render(cameras[i : i + 8]) for i in range(0, frames, 8)]
    images = [_transparent(chunk) if background is None else _over(chunk, background) for chunk in chunks]
    return np.concatenate([(image.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8) for image in images])


def _over(render: Render, background: float | Sequence[float]) -> Tensor:
    return render.over(torch.as_tensor(background, dtype=render.rgb.dtype, device=render.rgb.device))


def _transparent(render: Render) -> Tensor:
    """Returns straight (not premultiplied) color and opacity, [V, H, W, 4], as .png files store them."""
    return torch.cat([render.rgb / render.opacity.clamp_min(1e-6), render.opacity], -1)
