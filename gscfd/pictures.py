"""Random backgrounds, image and video files, and sRGB."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gscfd.errors import UserError
from gscfd.files import atomic_write


def random_background(generator: torch.Generator) -> Tensor:
    """Returns a random, slightly tinted gray [3] in [0, 1]; a fixed background would hide parts of its own color.

    The toybox teachers are trained on these backgrounds.
    """
    gray = torch.rand(1, generator=generator)
    tint = 0.16 * (torch.rand(3, generator=generator) - 0.5)
    return (gray + tint).clamp(0, 1)


def write_contact_sheet(frames: np.ndarray, path: str | Path, columns: int = 4) -> None:
    """Writes frames [F, H, W, 3 or 4] uint8 to a .png, in rows of `columns`. F must be a multiple of `columns`."""
    rows = frames.reshape(-1, columns, *frames.shape[1:]).transpose(0, 2, 1, 3, 4)
    sheet = rows.reshape(rows.shape[0] * rows.shape[1], -1, frames.shape[-1])
    with atomic_write(path) as file:
        Image.fromarray(sheet).save(file, format="PNG")


def write_picture(frame: np.ndarray, path: str | Path) -> None:
    """Writes one frame [H, W, 3 or 4] uint8 to a .png."""
    write_contact_sheet(frame[None], path, columns=1)


def write_video(frames: np.ndarray, path: str | Path, fps: int = 20) -> None:
    """Writes frames [F, H, W, 3] uint8, with even H and W, to an H.264 .mp4.

    Raises UserError without ffmpeg, OSError if the file cannot be written, or if ffmpeg, which writes to the temporary
    folder first, could not finish it.
    """
    try:
        encoded = iio.imwrite(
            "<bytes>", frames, extension=".mp4", plugin="FFMPEG", fps=fps, quality=8, macro_block_size=2
        )
    except (ImportError, RuntimeError, FileNotFoundError) as error:
        raise UserError(
            f"mp4: expected ffmpeg, got none ({error}); `pip install imageio-ffmpeg` brings it; or take another format"
        ) from None
    if b"moov" not in encoded:  # the table of contents, which ffmpeg writes last
        reason = f"ffmpeg could not finish the video; is there room in {tempfile.gettempdir()}?"
        raise OSError(errno.EIO, reason, str(path))
    with atomic_write(path) as file:
        file.write(encoded)


def as_bytes(image: Tensor) -> np.ndarray:
    """Converts an image of any shape from [0, 1] to uint8."""
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def displayed(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns sRGB values of linear light, both in [0, 1] (IEC 61966-2-1)."""
    found: NDArray[np.float64] = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return found


def linear(color: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the linear light of sRGB values: the inverse of `displayed`."""
    found: NDArray[np.float64] = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return found
