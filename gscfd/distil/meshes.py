"""Starting a run from a triangle mesh: its surface becomes flat Gaussians with the colors of its texture."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image

from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.harmonics import rgb_to_sh0
from gscfd.pictures import displayed, linear

Array = NDArray[np.float64]

MESHES = (".glb", ".obj")
"""Endings of the files that are read as meshes."""
DISC_SIGMA = 0.75
"""Standard deviation of a disc along the surface, in mean distances of neighbors."""
DISC_FLATNESS = 0.12
"""Standard deviation across the surface, relative to the one along it."""
OPACITY = 0.95
PLASTIC = 1.32471795724474602596
"""The plastic number, root of x^3 = x + 1: powers of its inverse give the most even sequence of points in a square
(Roberts 2018)."""


def mesh_gaussians(path: Path, count: int) -> Gaussians:
    """Returns the surface of a mesh as flat Gaussians, spread evenly by area, in the axes and units of the file.

    path: .glb, or .obj with its .mtl and pictures beside it. count: of Gaussians; those where the texture is
    transparent are left out. Colors are the texture's, else those of the vertices, the faces or the material; colors of
    vertices are taken as displayed ones. Raises UserError for a mesh without faces, without area or without colors, and
    for a file that cannot be read.
    """
    check_pictures(path)
    try:
        points, normals, colors, spacing = surface(path, count)
    except UserError:
        raise
    except Exception as error:  # trimesh and Pillow read late, and raise errors of any type for a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"init: expected a mesh (.glb or .obj), got {path}, which cannot be read ({reason}); export it again"
        ) from error
    seen = colors[:, 3] >= 0.5
    if not seen.any():
        raise UserError(f"init: expected a mesh that can be seen, got {path}, which is transparent; choose another")
    return discs(points[seen], normals[seen], colors[seen, :3], spacing)


def surface(path: Path, count: int) -> tuple[Array, Array, Array, float]:
    """Returns points [N, 3], unit normals [N, 3] and RGBA in [0, 1] [N, 4] at N = `count` even places of all parts, and
    the mean distance of neighbors."""
    parts = read_parts(path)
    areas = np.array([part.area for part in parts])
    if not (np.isfinite(areas.sum()) and areas.sum() > 0):
        raise UserError(f"init: expected a mesh with a surface, got {path}, whose faces have no area; export it again")
    counts = shared_out(count, areas)
    samples = [sampled(part, own, path) for part, own in zip(parts, counts, strict=True)]
    points, normals, colors = (np.concatenate(arrays) for arrays in zip(*samples, strict=True))
    if not all(np.isfinite(values).all() for values in (points, normals, colors)):
        raise UserError(f"init: expected a mesh of finite numbers, got {path}, which has others; export it again")
    return points, normals, colors, math.sqrt(areas.sum() / count)


def shared_out(count: int, areas: Array) -> list[int]:
    """Returns whole shares of `count` by area. The sum over parts in a row is right within 1; each rounded alone, many
    small parts would get none."""
    ends: list[int] = np.round(count * np.cumsum(areas) / areas.sum()).astype(int).tolist()
    return [end - start for start, end in pairwise([0, *ends])]


def read_parts(path: Path) -> list[trimesh.Trimesh]:
    """Returns the meshes of a file, each where the scene has it. Raises UserError if none has faces."""
    found = trimesh.load_scene(path, process=False).dump()
    parts = [part for part in found if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not parts:
        raise UserError(
            f"init: expected a mesh with faces, got {path}, which has none; export triangles, or give a 3DGS .ply"
        )
    if any(part.vertices.shape[1:] != (3,) for part in parts):
        raise UserError(
            f"init: expected vertices with three coordinates, got {path}, which has others; export it again"
        )
    return parts


def check_pictures(path: Path) -> None:
    """Raises UserError if an .obj names a material or a color texture that is not there; trimesh would leave it out."""
    if path.suffix.lower() != ".obj" or not path.is_file():
        return
    for material in named_in(path, "mtllib"):
        for file in (material, *named_in(material, "map_Kd")):
            if not file.is_file():
                raise UserError(f"init: expected {file.name} beside {path}, which names it, got none; copy it there")


def named_in(path: Path, keyword: str) -> list[Path]:
    """Returns the files that an .obj or .mtl names after a keyword, beside it; options such as -s 1 1 1 are skipped."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    named = [line.split(maxsplit=1)[1].strip() for line in lines if line.split()[:1] == [keyword] and line.split()[1:]]
    return [path.parent / (name.split()[-1] if name.startswith("-") else name) for name in named]


def sampled(part: trimesh.Trimesh, count: int, path: Path) -> tuple[Array, Array, Array]:
    """Returns points [N, 3], unit normals [N, 3] and RGBA in [0, 1] [N, 4] at `count` places of a part.

    Equal steps through the areas of the faces choose the faces; an even sequence (Roberts 2018) places the points in
    them. So it draws nothing at random.
    """
    index = np.arange(count)
    face = np.searchsorted(np.cumsum(part.area_faces), (index + 0.5) * (part.area / max(count, 1)), side="right")
    face = np.minimum(face, len(part.faces) - 1)
    u, v = (np.modf(0.5 + (index + 1) / power)[0] for power in (PLASTIC, PLASTIC**2))
    # Uniform in a triangle (Osada et al. 2002, Eq. 1).
    weights = np.stack([1 - np.sqrt(u), np.sqrt(u) * (1 - v), np.sqrt(u) * v], 1)
    points = mixed(part.vertices, part.faces[face], weights)
    return points, np.asarray(part.face_normals[face]), colors_at(part, face, weights, path)


def mixed(values: Any, corners: NDArray[np.int64], weights: Array) -> Array:
    """Returns values [V, K] at the corners [N, 3], mixed by the weights [N, 3]: [N, K]."""
    found: Array = np.einsum("nck,nc->nk", np.asarray(values, np.float64)[corners], weights)
    return found


def colors_at(part: trimesh.Trimesh, face: NDArray[np.int64], weights: Array, path: Path) -> Array:
    """Returns RGBA in [0, 1], [N, 4], at barycentric places of faces. Raises UserError if the part has no colors."""
    visual: Any = part.visual
    corners = part.faces[face]
    material = getattr(visual, "material", None)
    image = texture_of(material)
    if image is not None and visual.uv is not None:
        return by_material(looked_up(image, mixed(visual.uv, corners, weights)), material)
    if material is None and visual.kind == "vertex":
        return mixed(visual.vertex_colors / 255, corners, weights)
    if material is None and visual.kind == "face":
        return np.asarray(visual.face_colors, np.float64)[face] / 255
    plain = plain_color(material)
    if plain is None:
        raise UserError(
            f"init: expected a mesh with colors, got {path}, which has no texture (or it is missing beside the file), "
            "no vertex colors and no color in its material; export it with its texture"
        )
    return by_material(np.broadcast_to(plain, (len(face), 4)).astype(np.float64), material)


def texture_of(material: Any) -> Image.Image | None:
    """Returns the picture of a material's base color, or None. trimesh makes a white 2 x 2 picture where a material is
    missing; that is none."""
    name = "baseColorTexture" if isinstance(material, trimesh.visual.material.PBRMaterial) else "image"
    image: Image.Image | None = getattr(material, name, None)
    if image is not None and image.size == (2, 2) and np.asarray(image).min() == 255:
        return None
    return image


def plain_color(material: Any) -> Array | None:
    """Returns RGBA in [0, 1], [4], of a material without a texture, before `by_material`, or None: white with glTF's
    factor, .obj's Kd, which is a displayed color."""
    if isinstance(material, trimesh.visual.material.PBRMaterial):
        return None if material.baseColorFactor is None or material.baseColorTexture is not None else np.ones(4)
    if material is None or material.image is not None:
        return None
    return np.asarray(material.diffuse, np.float64) / 255


def by_material(colors: Array, material: Any) -> Array:
    """Returns RGBA in [0, 1], [N, 4], times glTF's factor, in linear light (its specification, section 3.9.2), with the
    alpha of the material's mode."""
    factor = getattr(material, "baseColorFactor", None)
    if factor is not None:
        share = np.asarray(factor, np.float64) / 255
        colors = np.concatenate([displayed(linear(colors[:, :3]) * share[:3]), colors[:, 3:] * share[3]], 1)
    return by_alpha(colors, material)


def by_alpha(colors: Array, material: Any) -> Array:
    """Returns RGBA in [0, 1], [N, 4], with alpha as glTF's alphaMode has it, by default opaque (section 3.9.4)."""
    if not isinstance(material, trimesh.visual.material.PBRMaterial) or material.alphaMode == "BLEND":
        return colors
    alpha = np.ones(len(colors))
    if material.alphaMode == "MASK":
        alpha = (colors[:, 3] >= (0.5 if material.alphaCutoff is None else material.alphaCutoff)).astype(np.float64)
    return np.column_stack([colors[:, :3], alpha])


def looked_up(image: Image.Image, uv: Array) -> Array:
    """Returns RGBA in [0, 1], [N, 4], of a repeating picture at uv [N, 2] from its lower left corner, bilinear."""
    texels: Array = np.asarray(image.convert("RGBA"), np.float64) / 255
    height, width = texels.shape[:2]
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, down = (x - left)[:, None], (y - top)[:, None]

    def at(row: NDArray[np.int64], column: NDArray[np.int64]) -> Array:
        found: Array = texels[row % height, column % width]
        return found

    upper = (1 - right) * at(top, left) + right * at(top, left + 1)
    lower = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    mean: Array = (1 - down) * upper + down * lower
    return mean


def discs(points: Array, normals: Array, colors: Array, spacing: float) -> Gaussians:
    """Returns opaque discs on a surface.

    points, normals: [N, 3]. colors: [N, 3] in [0, 1]. spacing: mean distance of neighbors.
    """
    unit = torch.from_numpy(normals).float()
    # The shortest rotation from z to the normal; half a turn about x where they are opposite.
    quats = torch.stack([1 + unit[:, 2], -unit[:, 1], unit[:, 0], torch.zeros(len(unit))], 1)
    quats[quats.norm(dim=1) < 1e-3] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    along = math.log(DISC_SIGMA * spacing)
    scales = torch.tensor([along, along, along + math.log(DISC_FLATNESS)]).repeat(len(unit), 1)
    return Gaussians(
        means=torch.from_numpy(points).float(),
        quats=torch.nn.functional.normalize(quats, dim=1),
        scales=scales,
        opacities=torch.full((len(unit),), math.log(OPACITY / (1 - OPACITY))),
        sh0=rgb_to_sh0(torch.from_numpy(colors).float())[:, None],
        shN=torch.zeros(len(unit), 0, 3),
    )
