"""Pictures of the finished splat, going round it once."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image

from gscfd.cameras import turntable
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians


def turntable_frames(gaussians: Gaussians, frames: int, size: int, background: float = 1.0) -> np.ndarray:
    """[frames, size, size, 3] uint8, from the front, counter-clockwise from above; background: a grey in [0, 1]."""
    cameras = turntable(frames, size=size)
    chunks = [gaussians.render(cameras[i : i + 8]) for i in range(0, frames, 8)]
    images = [render.over(render.rgb.new_tensor(background)).clamp(0, 1) for render in chunks]
    return np.concatenate([(image.cpu().numpy() * 255).round().astype(np.uint8) for image in images])


def write_contact_sheet(frames: np.ndarray, path: str | Path, columns: int = 4) -> None:
    """A .png with frames [F, H, W, 3] in rows of `columns`."""
    rows = frames.reshape(-1, columns, *frames.shape[1:]).transpose(0, 2, 1, 3, 4)
    sheet = rows.reshape(rows.shape[0] * rows.shape[1], -1, 3)
    with atomic_write(path) as file:
        Image.fromarray(sheet).save(file, format="PNG")


def write_video(frames: np.ndarray, path: str | Path, fps: int = 20) -> None:
    """An H.264 .mp4 of frames [F, H, W, 3] uint8, H and W even."""
    encoded = iio.imwrite("<bytes>", frames, extension=".mp4", plugin="FFMPEG", fps=fps, quality=8, macro_block_size=2)
    with atomic_write(path) as file:
        file.write(encoded)
