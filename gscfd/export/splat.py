"""The formats that gsplat's exporter writes: .compressed.ply (PlayCanvas) and .splat (antimatter15)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import gsplat

from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians


def write_compressed_ply(gaussians: Gaussians, path: str | Path) -> None:
    """16 bytes for each Gaussian, and one for each further coefficient; those below opacity 1/255 are left out."""
    _write(gaussians, path, "ply_compressed")


def write_splat(gaussians: Gaussians, path: str | Path) -> None:
    """32 bytes for each Gaussian, without view-dependent color."""
    _write(gaussians, path, "splat")


def _write(gaussians: Gaussians, path: str | Path, kind: Literal["ply_compressed", "splat"]) -> None:
    data = gsplat.export_splats(**gaussians.tensors(), format=kind)
    if kind == "ply_compressed":
        # At degree 0 gsplat declares harmonics that have no properties, which PlayCanvas' reader refuses.
        data = re.sub(rb"element sh \d+\n(?=end_header\n)", b"", data, count=1)
    with atomic_write(path) as file:
        file.write(data)
