"""Niantic's .spz, version 3: gzip over bytes stored by attribute, y up (https://github.com/nianticlabs/spz)."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from gscfd.errors import UserError
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians

MAGIC = 0x5053474E
VERSION = 3
MOST_FRACTIONAL_BITS = 20
LARGEST = 2**23 - 1
"""Largest signed 24-bit number."""
LOG_SCALES = (-10.0, 255 / 16 - 10)
"""Range of the log sizes, which are bytes: 1/16 per level."""


def write_spz(gaussians: Gaussians, path: str | Path) -> None:
    """Writes 20 bytes per Gaussian before gzip, plus one per higher-degree coefficient.

    The Gaussians must be in the format's axes: x right, y up, z back. Raises UserError for positions or sizes beyond
    the format's range.
    """
    check_sizes(gaussians)
    values = {name: value.cpu().double().numpy() for name, value in gaussians.tensors().items()}
    bits = fractional_bits(float(np.abs(values["means"]).max()))
    header = (MAGIC, VERSION, len(gaussians), gaussians.sh_degree, bits, 0, 0)
    columns = [
        struct.pack("<IIIBBBB", *header),
        fixed_point(values["means"], bits),
        _bytes(255 * expit(values["opacities"])),
        _bytes(255 * (0.15 * values["sh0"] + 0.5)),
        _bytes(16 * (values["scales"] - LOG_SCALES[0])),
        smallest_three(values["quats"]),
        _bytes(128 * values["shN"] + 128),
    ]
    with atomic_write(path) as file:
        file.write(gzip.compress(b"".join(columns), mtime=0))


def check_sizes(gaussians: Gaussians) -> None:
    """Raises UserError if a Gaussian is larger than the format holds, or if most are smaller along all axes."""
    sizes = gaussians.scales.detach().amax(1)
    low, high = LOG_SCALES
    what = f"to: spz holds sizes from {math.exp(low):.2g} to {math.exp(high):.0f}, got"
    if sizes.max() > high:
        count, largest = int((sizes > high).sum()), math.exp(sizes.max())
        raise UserError(f"{what} {count} Gaussians of up to {largest:.3g}; use a smaller --scale, or --to sog")
    if sizes.median() < low:
        raise UserError(f"{what} a median of {math.exp(sizes.median()):.2g}; use a larger --scale, or --to sog")


def fractional_bits(extent: float) -> int:
    """Returns the largest number of fractional bits with which a signed 24-bit number still covers `extent`. Raises
    UserError if none does."""
    fitting = [bits for bits in range(MOST_FRACTIONAL_BITS + 1) if round(extent * 2**bits) <= LARGEST]
    if not fitting:
        raise UserError(
            f"to: spz holds positions up to {LARGEST}, got {extent:.6g}; use a smaller --scale, or --to sog"
        )
    return fitting[-1]


def fixed_point(means: np.ndarray, bits: int) -> bytes:
    """Encodes each number in three bytes, least significant first."""
    whole = np.round(means * 2**bits).astype("<i4")
    columns: NDArray[np.uint8] = whole.reshape(-1, 1).view(np.uint8)[:, :3]
    return columns.tobytes()


def smallest_three(quats: np.ndarray) -> bytes:
    """Encodes rotations, wxyz [N, 4] of any length, in four bytes each: the index of the largest component of xyzw in
    the top two bits, then sign and 9 bits of magnitude / sqrt(1/2) for each other component, in order."""
    xyzw = np.roll(quats, -1, axis=1) / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(xyzw).argmax(1)
    xyzw *= np.where(np.take_along_axis(xyzw, largest[:, None], 1) < 0, -1, 1)
    packed = largest.astype(np.uint32)
    for i in range(4):
        magnitude = np.round(511 * np.abs(xyzw[:, i]) * math.sqrt(2)).clip(0, 511).astype(np.uint32)
        shifted = (packed << np.uint32(10)) | ((xyzw[:, i] < 0).astype(np.uint32) << np.uint32(9)) | magnitude
        packed = np.where(largest == i, packed, shifted)
    words: NDArray[np.uint32] = packed.astype("<u4")
    return words.tobytes()


def _bytes(values: np.ndarray) -> bytes:
    levels: NDArray[np.uint8] = values.round().clip(0, 255).astype(np.uint8)
    return levels.tobytes()
