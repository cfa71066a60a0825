"""Meshes from a splat: depth images from all sides, fused in a signed distance volume (Curless and Levoy 1996)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plyfile import PlyData, PlyElement
from torch import Tensor

from gscfd.cameras import orbit
from gscfd.errors import UserError
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians
from gscfd.types import Cameras, Render

ELEVATIONS = (-75.0, -40.0, 0.0, 40.0, 75.0)
AZIMUTHS = 12
FOV, DISTANCE = 40.0, 3.0
TRUNCATION = 4.0
"""Truncation distance of the signed distance, in voxels on each side of the surface."""
BLOCK = 16
"""Edge length in voxels of a block of the sparse volume."""
FEWEST_VIEWS = 3.0
"""Minimum number of views that must see a surface; the rest is dropped."""
SMALLEST_PART = 0.05
"""Connected parts with fewer triangles than this share of the largest part are floaters and are removed."""


@dataclass(frozen=True)
class Mesh:
    """Triangles with vertex colors."""

    vertices: np.ndarray
    """[V, 3] float32."""
    triangles: np.ndarray
    """[F, 3] int32, counter-clockwise from outside."""
    colors: np.ndarray
    """[V, 3] float64 sRGB in [0, 1]."""

    def transformed(self, rotation: Tensor, scale: float) -> Mesh:
        """Returns the mesh rotated by `rotation` [3, 3] about the origin, then scaled."""
        vertices = scale * self.vertices.astype(np.float64) @ rotation.numpy().T
        return Mesh(vertices.astype(np.float32), self.triangles, self.colors)


def extract_mesh(gaussians: Gaussians, resolution: int) -> Mesh:
    """Extracts the surface inside the ball of radius 1, where rays from outside lose half of their light.

    gaussians: on the CPU. resolution: voxels along the ball's diameter. Raises UserError if open3d is missing or
    nothing is opaque enough to have a surface.
    """
    o3d = _open3d()
    float32 = o3d.core.float32
    grid = o3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"), (float32, float32, float32), ((1,), (1,), (3,)), 2 / resolution, BLOCK
    )
    cameras = surround(2 * resolution)
    for i in range(len(cameras)):
        _integrate(o3d, grid, cameras[i : i + 1], gaussians.render(cameras[i : i + 1]))
    mesh = grid.extract_triangle_mesh(FEWEST_VIEWS).to_legacy()
    if len(mesh.triangles) == 0:
        raise UserError(
            "source: expected a splat with an opaque surface in the ball of radius 1, got none; see --scale"
        )
    return _cleaned(mesh)


def surround(size: int) -> Cameras:
    """Returns views of the ball of radius 1 from all sides."""
    azimuth = torch.arange(AZIMUTHS).repeat(len(ELEVATIONS)) * (360.0 / AZIMUTHS)
    elevation = torch.tensor(ELEVATIONS).repeat_interleave(AZIMUTHS)
    ones = torch.ones(len(azimuth))
    return orbit(azimuth, elevation, DISTANCE * ones, FOV * ones, size, size)


def _open3d() -> Any:
    try:
        import open3d
    except ModuleNotFoundError as error:
        raise UserError(f"to: a mesh needs open3d, got {error}; pip install 'gscfd[mesh]'") from None
    except (ImportError, OSError) as error:
        raise UserError(
            f"to: a mesh needs open3d, which is installed but does not load ({error}); install the system library it "
            "names (on Debian and Ubuntu: apt install libusb-1.0-0 libgl1 libgomp1 libx11-6)"
        ) from None
    return open3d


def _integrate(o3d: Any, grid: Any, camera: Cameras, render: Render) -> None:
    """Integrates one view. Depth is where transmittance falls below one half, 0 where it never does."""
    assert render.median_depth is not None
    color = (render.rgb / render.opacity.clamp_min(1e-6)).clamp(0, 1)[0].numpy()
    depth_image = o3d.t.geometry.Image(o3d.core.Tensor(render.median_depth[0].numpy()))
    color_image = o3d.t.geometry.Image(o3d.core.Tensor(color))
    matrices = [o3d.core.Tensor(matrix.double().numpy()) for matrix in (camera.Ks[0], camera.viewmats[0])]
    limits = (1.0, 2 * DISTANCE, TRUNCATION)
    blocks = grid.compute_unique_block_coordinates(depth_image, *matrices, *limits)
    grid.integrate(blocks, depth_image, color_image, *matrices, *limits)


def _cleaned(mesh: Any) -> Mesh:
    """Returns the mesh without duplicate vertices, degenerate triangles and floaters."""
    mesh.remove_duplicated_vertices()
    mesh.remove_degenerate_triangles()
    part, sizes, _ = mesh.cluster_connected_triangles()
    sizes = np.asarray(sizes)
    mesh.remove_triangles_by_mask(sizes[np.asarray(part)] < SMALLEST_PART * sizes.max())
    mesh.remove_unreferenced_vertices()
    vertices, triangles = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.triangles, np.int32)
    return Mesh(vertices, triangles, np.asarray(mesh.vertex_colors).clip(0, 1))


def write_mesh_obj(mesh: Mesh, path: str | Path) -> None:
    """Writes .obj; vertex lines end with a color, which Blender, MeshLab and others read."""
    with atomic_write(path) as file:
        np.savetxt(file, np.column_stack([mesh.vertices, mesh.colors]), fmt="v %.7g %.7g %.7g %.4f %.4f %.4f")
        np.savetxt(file, mesh.triangles + 1, fmt="f %d %d %d")


def write_mesh_ply(mesh: Mesh, path: str | Path) -> None:
    """Writes a binary little-endian .ply with colors as bytes."""
    vertices = np.empty(
        len(mesh.vertices), [(n, "<f4") for n in ("x", "y", "z")] + [(n, "u1") for n in ("red", "green", "blue")]
    )
    for i, name in enumerate(("x", "y", "z")):
        vertices[name] = mesh.vertices[:, i]
    for i, name in enumerate(("red", "green", "blue")):
        vertices[name] = np.round(255 * mesh.colors[:, i])
    faces = np.empty(len(mesh.triangles), [("vertex_indices", "<i4", (3,))])
    faces["vertex_indices"] = mesh.triangles
    ply = PlyData([PlyElement.describe(vertices, "vertex"), PlyElement.describe(faces, "face")], byte_order="<")
    with atomic_write(path) as file:
        ply.write(file)
