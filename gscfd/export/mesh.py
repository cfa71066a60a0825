"""Meshes of a splat: closed, simplified, with a texture; and their files."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from plyfile import PlyData, PlyElement
from torch import Tensor

from gscfd.errors import UserError
from gscfd.export.surface import EXTENT, closed_surface, views_of
from gscfd.export.texture import painted, unwrapped
from gscfd.files import atomic_writes
from gscfd.gaussians import Gaussians

VIEW_SIZE = 320
"""Pixels of the views that the mesh is made of."""
TEXTURE_SIZE = 1024
SIMPLIFYING = 0.03
"""Growth of the tolerance from one round of simplification to the next, in cells of the grid."""
TOUCHING = 1e-5
"""Distance in world units below which vertices are at one place."""
SHARES = (0.02, 0.03, 0.05)
"""Share of the way to its neighbors by which a vertex leaves another one, in each attempt."""
SMALLEST_VOLUME = 1e-3
"""Share of the largest part's volume below which a part is removed after the simplification."""


@dataclass(frozen=True)
class Mesh:
    """A closed surface with a texture. Vertices on the seams of the texture have several wedges, one for each place in
    it."""

    vertices: np.ndarray
    """[V, 3] float32."""
    wedges: np.ndarray
    """[W] index of each wedge's vertex."""
    uvs: np.ndarray
    """[W, 2] float32 texture coordinates in [0, 1], from the lower left corner."""
    faces: np.ndarray
    """[F, 3] uint32 wedges, counter-clockwise from outside."""
    texture: np.ndarray
    """[S, S, 3] uint8 sRGB, first row at the top."""

    @property
    def triangles(self) -> np.ndarray:
        """[F, 3] vertices of the triangles."""
        found: np.ndarray = self.wedges[self.faces]
        return found

    @property
    def normals(self) -> np.ndarray:
        """[V, 3] float32 unit normals, means over the adjoining triangles by their areas."""
        return vertex_normals(self.vertices, self.triangles)

    @property
    def colors(self) -> np.ndarray:
        """[V, 3] uint8 color of the texture at the vertices."""
        size = len(self.texture)
        places = (np.clip(self.uvs, 0, 1 - 1e-6) * size).astype(int)
        found = np.zeros((len(self.vertices), 3), np.uint8)
        found[self.wedges] = self.texture[size - 1 - places[:, 1], places[:, 0]]
        return found

    def transformed(self, rotation: Tensor, scale: float) -> Mesh:
        """Returns the mesh rotated by `rotation` [3, 3] about the origin, then scaled."""
        vertices = scale * self.vertices.astype(np.float64) @ rotation.numpy().T
        return replace(self, vertices=vertices.astype(np.float32))


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Returns unit normals [V, 3] float32, means over the adjoining triangles by their areas."""
    a, b, c = (vertices[triangles[:, i]].astype(np.float64) for i in range(3))
    total = np.zeros((len(vertices), 3))
    for i in range(3):
        np.add.at(total, triangles[:, i], np.cross(b - a, c - a))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return (total / np.where(length == 0, 1, length)).astype(np.float32)


def extract_mesh(gaussians: Gaussians, resolution: int, triangles: int) -> Mesh:
    """Extracts the surface inside the ball of radius 1, where rays from outside lose half of their light.

    gaussians: on the CPU. resolution: grid cells along the ball's diameter. triangles: how many at most. The mesh is
    closed; floaters are removed. Raises UserError if a package of the extra `mesh` is missing, nothing is opaque enough
    to have a surface, or it cannot be that simple.
    """
    manifold3d = _manifold3d()
    views = views_of(gaussians, VIEW_SIZE)
    vertices, faces = simplified(manifold3d, *closed_surface(views, resolution), triangles, 2 / resolution)
    wedges, uvs, faces = unwrapped(vertices, faces, TEXTURE_SIZE)
    normals = vertex_normals(vertices, wedges[faces])
    texture = painted(vertices[wedges], normals[wedges], uvs, faces, views, TEXTURE_SIZE)
    return Mesh(vertices, wedges, uvs, faces, texture)


def _manifold3d() -> Any:
    try:
        import manifold3d
    except ImportError as error:
        raise UserError(f"to: a mesh needs manifold3d, got {error}; pip install 'gscfd[mesh]'") from None
    return manifold3d


def simplified(
    manifold3d: Any, vertices: np.ndarray, triangles: np.ndarray, most: int, cell: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a closed mesh of at most `most` triangles: edges collapse as long as nothing moves by more than a
    tolerance, which grows until the mesh is small enough.

    cell: edge of a grid cell in world units. Raises UserError if the tolerance reaches a tenth of the object.
    """
    solid, tolerance = manifold3d.Manifold(manifold3d.Mesh(vertices, triangles)), 0.0
    while solid.num_tri() > most:
        tolerance += SIMPLIFYING * cell
        if tolerance > 0.1 * EXTENT:
            raise UserError(
                f"triangles: expected at least {solid.num_tri()} for this splat, got {most}; raise --triangles"
            )
        solid = solid.simplify(tolerance)
    # Where something thin collapses, a few triangles without volume may break off.
    parts = solid.decompose()
    largest = max(part.volume() for part in parts)
    mesh = manifold3d.Manifold.compose([part for part in parts if part.volume() > SMALLEST_VOLUME * largest]).to_mesh()
    triangles = np.array(mesh.tri_verts, np.uint32)
    return apart(np.array(mesh.vert_properties[:, :3], np.float32), triangles), triangles


def apart(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Returns the vertices [V, 3] float32 of a closed mesh with no two at one place: where the surface touches itself,
    each is moved toward its own neighbors by a share of the way. Readers that join equal vertices would otherwise find
    edges of four triangles."""
    places = vertices.astype(np.float64)
    for share in SHARES:
        _, place, count = np.unique(np.round(places / TOUCHING), axis=0, return_inverse=True, return_counts=True)
        double = count[place.ravel()] > 1
        if not double.any():
            break
        ends = np.concatenate([triangles[:, [i, (i + 1) % 3]] for i in range(3)]).astype(int)
        total, links = np.zeros_like(places), np.bincount(ends[:, 0], minlength=len(places))
        np.add.at(total, ends[:, 0], places[ends[:, 1]])
        places[double] += share * (total[double] / links[double, None] - places[double])
    return places.astype(np.float32)


def texture_png(mesh: Mesh) -> bytes:
    """Returns the texture as a .png file."""
    file = BytesIO()
    Image.fromarray(mesh.texture).save(file, format="PNG", optimize=True)
    return file.getvalue()


SIDES = {"obj": (".mtl", ".texture.png"), "mesh.ply": (".texture.png",)}
"""Endings of the files beside a mesh, by format."""


UNSAFE = re.compile(r"^-|[^!-~]")
"""Characters of a name that a mesh file cannot refer to: the headers of .ply are ASCII, a space ends a name for some
readers, and what begins with - is an option of .mtl."""


def beside(path: str | Path, ending: str) -> Path:
    """Returns the path of a file that belongs to a mesh file: a.obj has a.mtl, a.mesh.ply has a.mesh.texture.png. Its
    name has an underscore for each of UNSAFE."""
    path = Path(path).with_suffix(ending)
    return path.with_name(UNSAFE.sub("_", path.name))


def write_mesh_obj(mesh: Mesh, path: str | Path) -> None:
    """Writes .obj with .mtl and .texture.png beside it."""
    material, texture = (beside(path, ending) for ending in SIDES["obj"])
    with atomic_writes(path, material, texture) as (file, words, picture):
        picture.write(texture_png(mesh))
        words.write(f"newmtl splat\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {texture.name}\n".encode())
        file.write(f"mtllib {material.name}\nusemtl splat\n".encode())
        np.savetxt(file, mesh.vertices, fmt="v %.7g %.7g %.7g")
        np.savetxt(file, mesh.normals, fmt="vn %.4f %.4f %.4f")
        np.savetxt(file, mesh.uvs, fmt="vt %.6f %.6f")
        corners = np.stack([mesh.triangles, mesh.faces, mesh.triangles], -1).astype(np.int64) + 1
        np.savetxt(file, corners.reshape(len(corners), 9), fmt="f %d/%d/%d %d/%d/%d %d/%d/%d")


def write_mesh_ply(mesh: Mesh, path: str | Path) -> None:
    """Writes a binary little-endian .ply with colors as bytes and texture coordinates s, t, and .texture.png beside it.
    A vertex on a seam is written once for each of its wedges."""
    (texture,) = (beside(path, ending) for ending in SIDES["mesh.ply"])
    floats, places = ("x", "y", "z", "nx", "ny", "nz", "s", "t"), mesh.wedges
    vertices = np.empty(len(places), [(n, "<f4") for n in floats] + [(n, "u1") for n in ("red", "green", "blue")])
    values = np.column_stack([mesh.vertices[places], mesh.normals[places], mesh.uvs, mesh.colors[places]])
    for i, name in enumerate(vertices.dtype.names or ()):
        vertices[name] = values[:, i]
    faces = np.empty(len(mesh.faces), [("vertex_indices", "<i4", (3,))])
    faces["vertex_indices"] = mesh.faces
    parts = [PlyElement.describe(vertices, "vertex"), PlyElement.describe(faces, "face")]
    ply = PlyData(parts, byte_order="<", comments=[f"TextureFile {texture.name}"])
    with atomic_writes(path, texture) as (file, picture):
        picture.write(texture_png(mesh))
        ply.write(file)
