"""Files that other programs open."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal[
    "ply", "compressed.ply", "splat", "spz", "sog", "glb", "html", "obj", "mesh.glb", "mesh.ply", "mp4", "png"
]
FORMATS: tuple[Format, ...] = get_args(Format)
"""What `python -m gscfd.export` writes; obj and mesh.* triangles, mp4 and png pictures, the others Gaussians."""
Axes = Literal["z-up", "y-up", "y-down"]
"""gscfd's own (front +x), glTF's (front +z), and that of 3DGS captures (front +z; half a turn about z from y-up)."""
