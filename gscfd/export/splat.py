"""Formats written by gsplat's exporter: .compressed.ply (PlayCanvas) and .splat (antimatter15)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import gsplat

from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians


def write_compressed_ply(gaussians: Gaussians, path: str | Path) -> None:
    """Writes 16 bytes per Gaussian, plus one per higher-degree coefficient; Gaussians with opacity below 1/255 are
    dropped."""
    _write(gaussians, path, "ply_compressed")


def write_splat(gaussians: Gaussians, path: str | Path) -> None:
    """Writes 32 bytes per Gaussian, without view-dependent color."""
    _write(gaussians, path, "splat")


def _write(gaussians: Gaussians, path: str | Path, kind: Literal["ply_compressed", "splat"]) -> None:
    data = gsplat.export_splats(**gaussians.tensors(), format=kind)
    if kind == "ply_compressed":
        # At degree 0 gsplat declares spherical harmonics without properties, which PlayCanvas' reader rejects.
        data = re.sub(rb"element sh \d+\n(?=end_header\n)", b"", data, count=1)
    with atomic_write(path) as file:
        file.write(data)
