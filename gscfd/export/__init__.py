"""Files that other programs open."""

from typing import Literal, get_args

Format = Literal[
    "ply", "compressed.ply", "splat", "spz", "sog", "glb", "html", "obj", "mesh.glb", "mesh.ply", "mp4", "png"
]
FORMATS: tuple[Format, ...] = get_args(Format)
"""What `python -m gscfd.export` writes; obj and mesh.* triangles, mp4 and png pictures, the others Gaussians."""
