"""Formats written by gsplat's exporter: .compressed.ply (PlayCanvas) and .splat (antimatter15)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import gsplat

from gscfd.errors import UserError
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians

FAINTEST = 1 / 255
"""Opacity up to which gsplat's exporter drops a Gaussian from a compressed .ply."""


def visible(gaussians: Gaussians) -> Gaussians:
    """Returns the Gaussians that a compressed .ply keeps. Raises UserError if there are none."""
    kept = gaussians.opacities.detach().sigmoid() > FAINTEST
    if not kept.any():
        raise UserError(
            f"to: compressed.ply drops Gaussians of an opacity up to 1/255, and all {len(gaussians)} are so faint; use "
            "--to sog or --to spz"
        )
    return Gaussians(**{name: value[kept] for name, value in gaussians.tensors().items()})


def write_compressed_ply(gaussians: Gaussians, path: str | Path) -> None:
    """Writes 16 bytes per Gaussian, plus one per higher-degree coefficient. gaussians: from `visible`."""
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
