"""Pictures of the finished splat, going round it once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians
from gscfd.types import Render

WHOLE = 1.3
"""World units from the middle to the edge of a picture: objects fill what teachers see, and tips reach beyond."""


def turntable_frames(
    gaussians: Gaussians,
    frames: int,
    size: int,
    background: float | Sequence[float] | None = 1.0,
    radius: float = WHOLE,
) -> np.ndarray:
    """[frames, size, size, 3] uint8, from the front, counter-clockwise from above.

    background: a grey or three colours in [0, 1]; None: none, and a fourth channel for the opacity. radius: world units
    from the middle to the edge of a picture.
    """
    cameras = turntable(frames, size=size, radius=radius)
    chunks = [gaussians.render(cameras[i : i + 8]) for i in range(0, frames, 8)]
    images = [_transparent(chunk) if background is None else _over(chunk, background) for chunk in chunks]
    return np.concatenate([(image.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8) for image in images])


def _over(render: Render, background: float | Sequence[float]) -> Tensor:
    return render.over(torch.as_tensor(background, dtype=render.rgb.dtype, device=render.rgb.device))


def _transparent(render: Render) -> Tensor:
    """[V, H, W, 4] colour not multiplied by opacity, as .png files have it, and opacity."""
    return torch.cat([render.rgb / render.opacity.clamp_min(1e-6), render.opacity], -1)


def write_contact_sheet(frames: np.ndarray, path: str | Path, columns: int = 4) -> None:
    """A .png with frames [F, H, W, 3 or 4] in rows of `columns`."""
    rows = frames.reshape(-1, columns, *frames.shape[1:]).transpose(0, 2, 1, 3, 4)
    sheet = rows.reshape(rows.shape[0] * rows.shape[1], -1, frames.shape[-1])
    with atomic_write(path) as file:
        Image.fromarray(sheet).save(file, format="PNG")


def write_video(frames: np.ndarray, path: str | Path, fps: int = 20) -> None:
    """An H.264 .mp4 of frames [F, H, W, 3] uint8, H and W even."""
    encoded = iio.imwrite("<bytes>", frames, extension=".mp4", plugin="FFMPEG", fps=fps, quality=8, macro_block_size=2)
    with atomic_write(path) as file:
        file.write(encoded)
