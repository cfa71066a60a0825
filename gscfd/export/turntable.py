"""Pictures of the finished splat, going round it once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.gaussians import Gaussians
from gscfd.types import Render

WHOLE_RADIUS = 1.3
"""World units from the middle to the edge of a picture: objects fill what teachers see, and tips reach beyond."""


def turntable_frames(
    gaussians: Gaussians,
    frames: int,
    size: int,
    background: float | Sequence[float] | None = 1.0,
    radius: float = WHOLE_RADIUS,
) -> np.ndarray:
    """[frames, size, size, 3] uint8, from the front, counter-clockwise from above.

    background: a gray or three colors in [0, 1]; None: none, and a fourth channel for the opacity. radius: world units
    from the middle to the edge of a picture.
    """
    cameras = turntable(frames, size=size, radius=radius)
    chunks = [gaussians.render(cameras[i : i + 8]) for i in range(0, frames, 8)]
    images = [_transparent(chunk) if background is None else _over(chunk, background) for chunk in chunks]
    return np.concatenate([(image.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8) for image in images])


def _over(render: Render, background: float | Sequence[float]) -> Tensor:
    return render.over(torch.as_tensor(background, dtype=render.rgb.dtype, device=render.rgb.device))


def _transparent(render: Render) -> Tensor:
    """[V, H, W, 4] color not multiplied by opacity, as .png files have it, and opacity."""
    return torch.cat([render.rgb / render.opacity.clamp_min(1e-6), render.opacity], -1)
