"""Options of `gscfd export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gscfd.export import Axes, Format


@dataclass(kw_only=True)
class ExportOptions:
    """Export a splat for other programs: as Gaussians, an HTML page, triangles or images."""

    source: Annotated[Path, tyro.conf.Positional]
    """Run folder, or a 3DGS .ply from any program."""
    to: Format
    """Output format. obj, mesh.glb and mesh.ply are triangles with a texture (pip install 'gscfd[mesh]')."""
    out: Path | None = None
    """Output file; unset: next to the source, with its name and the format's extension."""
    overwrite: bool = False
    """Replace the output file if it exists."""
    axes: Axes | None = None
    """Axes of the output; unset: z-up for ply, y-up for glb, spz and triangles, y-down for compressed.ply, splat,
    sog."""
    source_axes: Axes = "z-up"
    """Axes of the source; captures from other programs are usually y-down."""
    scale: float = 1.0
    """Length of one source unit in the output, for example in meters; gscfd's objects have a radius of about 1. Images
    and pages show a ball of radius 1."""
    sh_degree: Literal[0, 1, 2, 3] | None = None
    """Degree of the spherical harmonics in the output; unset: the source's. Some .ply readers require 3."""
    frames: int | None = None
    """Number of images of one turn; unset: 80 for mp4, four seconds, 8 for png, which arranges them in rows of four."""
    size: int | None = None
    """Width and height of an image in pixels; unset: 512."""
    background: tuple[float, float, float] | None = None
    """Red, green and blue in [0, 1]; unset: white."""
    shadow: bool = False
    """Put a soft shadow on the ground below the object."""
    alpha: bool = False
    """Make the background transparent."""
    resolution: int | None = None
    """Cells along the diameter of the ball of radius 1 from which triangles are extracted; unset: 128."""
    triangles: int | None = None
    """Number of triangles, at most; unset: 20000."""
