"""Files that other programs open."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal[
    "ply", "compressed.ply", "splat", "spz", "sog", "glb", "html", "obj", "mesh.glb", "mesh.ply", "mp4", "png"
]
FORMATS: tuple[Format, ...] = get_args(Format)
"""Formats that `gscfd export` writes: obj and mesh.* are triangles, mp4 and png are images, the others are
Gaussians."""
Axes = Literal["z-up", "y-up", "y-down"]
"""Axis conventions: gscfd's (z-up, front +x), glTF's (y-up, front +z) and that of 3DGS captures (y-down, front +z; y-up
rotated by half a turn about z)."""
