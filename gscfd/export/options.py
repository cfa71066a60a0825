"""Options of `python -m gscfd.export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gscfd.export import Axes, Format


@dataclass(kw_only=True)
class ExportOptions:
    """Write a splat for other programs: as Gaussians, as a page for a browser, as triangles, or as pictures."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or a 3DGS .ply of any program."""
    to: Format
    """What to write. obj, mesh.glb and mesh.ply are triangles with colors (pip install 'gscfd[mesh]')."""
    out: Path | None = None
    """The file; unset: the source's name with the format's ending, beside it."""
    overwrite: bool = False
    """Replace the file if it exists."""
    axes: Axes | None = None
    """Axes of the file; unset: z-up for ply, y-up for glb, spz and triangles, y-down for compressed.ply, splat, sog."""
    source_axes: Axes = "z-up"
    """Axes of the source; captures by other programs are mostly y-down."""
    scale: float = 1.0
    """How long one unit of the source is in the file, say in meters; gscfd's objects have a radius of about 1. Pictures
    and pages look at a ball of radius 1."""
    sh_degree: Literal[0, 1, 2, 3] | None = None
    """Degree of the spherical harmonics in the file; unset: the source's. 3 is what some readers of .ply insist on."""
    frames: int | None = None
    """Pictures of one turn; unset: 96 for mp4, 8 for png, which shows them in rows of four."""
    size: int | None = None
    """Pixels on each side of a picture; unset: 512."""
    background: tuple[float, float, float] | None = None
    """Red, green and blue in [0, 1]; unset: white."""
    alpha: bool = False
    """A transparent background."""
    resolution: int | None = None
    """Voxels along the ball of radius 1 from which triangles are made; unset: 192."""
