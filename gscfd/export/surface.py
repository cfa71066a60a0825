"""The surface of a splat: depth images from all sides, averaged as signed distances on a grid (Curless and Levoy 1996),
and the grid's zero level as a closed mesh (marching tetrahedra)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numpy as np
import torch
from scipy import ndimage

from gscfd.cameras import orbit
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians

ELEVATIONS = (-60.0, -20.0, 0.0, 12.0, 25.0, 60.0)
AZIMUTHS = 12
USUAL = (0.0, 30.0)
"""Elevations in degrees that runs optimize a splat for. From elsewhere its layers may show colors that nobody meant."""
FOV, DISTANCE = 40.0, 3.0
EXTENT = 1.1
"""Half the edge of the grid in world units. The object is inside the ball of radius 1."""
TRUNCATION = 3.0
"""Truncation distance of the signed distance, in cells on each side of the surface."""
COARSER = 3
"""Cells of the fine grid per cell, along each axis, of the grid that finds the neighborhood of the surface."""
SMOOTHING = 0.7
"""Standard deviation of the filter that removes the pebbles of single Gaussians, in cells."""
RAY_STEP = 2
"""One in so many pixels along the outlines is a ray that chooses the level of the surface."""
NEARBY = 2.0
"""Standard deviation of the weights of rays that choose the level at one place, in cells."""
PRIOR = 0.02
"""Weight of the median level, as a share of the greatest density of rays."""
ROUNDS = 2
"""How often the level is chosen: the surface of the first choice touches the rays at other places."""
THICKER = 3
"""Layers of the splat that the depth is measured in: rays stop where they have lost a fifth of their light."""
SMALLEST_PART = 0.05
"""Parts with fewer nodes inside than this share of the largest part are floaters and are removed."""
POINTS = 1 << 18
"""Grid nodes handled at a time."""


@dataclass(frozen=True)
class Views:
    """Pictures of a splat from all sides, as arrays: at their sizes torch's threads wait for each other more than they
    work."""

    rotations: np.ndarray
    """[V, 3, 3] float32 world to camera."""
    shifts: np.ndarray
    """[V, 3] float32: a point p is at rotation p + shift in the camera's axes."""
    focal: float
    """Focal length in pixels; the principal point is the middle of the image."""
    color: np.ndarray
    """[V, S, S, 3] float32 in [0, 1], divided by opacity."""
    opacity: np.ndarray
    """[V, S, S] float32."""
    depth: np.ndarray
    """[V, S, S] float32 depth of the surface, 0 where rays keep half of their light."""

    def __len__(self) -> int:
        return len(self.depth)

    @property
    def size(self) -> int:
        """Width and height of the images in pixels."""
        return int(self.depth.shape[1])

    def position(self, i: int) -> np.ndarray:
        """Returns the position [3] float32 of the camera of view i in the world."""
        found: np.ndarray = -self.rotations[i].T @ self.shifts[i]
        return found

    def usual(self, i: int) -> bool:
        """Returns whether the elevation of view i is one that runs optimize a splat for."""
        x, y, z = self.position(i)
        return bool(USUAL[0] - 1 < np.degrees(np.arctan2(z, np.hypot(x, y))) < USUAL[1] + 1)

    def projected(self, i: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the positions of world points [P, 3] in view i: x and y [P] in pixels, moved into the image, and
        depth [P]."""
        x, y, z = self.rotations[i] @ points.T + self.shifts[i][:, None]
        return *((self.focal * a / z + self.size / 2).clip(0, self.size - 0.01) for a in (x, y)), z


def views_of(gaussians: Gaussians, size: int) -> Views:
    """Renders the ball of radius 1 from all sides. gaussians: on the CPU. size: pixels."""
    azimuth = torch.arange(AZIMUTHS).repeat(len(ELEVATIONS)) * (360.0 / AZIMUTHS)
    elevation = torch.tensor(ELEVATIONS).repeat_interleave(AZIMUTHS)
    ones = torch.ones(len(azimuth))
    cameras = orbit(azimuth, elevation, DISTANCE * ones, FOV * ones, size, size)
    batches = [cameras[i : i + AZIMUTHS] for i in range(0, len(cameras), AZIMUTHS)]
    renders = [gaussians.render(batch) for batch in batches]
    opacity = torch.cat([render.opacity for render in renders])
    color = torch.cat([render.rgb for render in renders]) / opacity.clamp_min(1e-6)
    thick = thickened(gaussians)
    depths = [thick.render(batch).median_depth for batch in batches]
    depth = torch.where(opacity > 0.5, torch.cat([d for d in depths if d is not None]), 0.0)
    return Views(
        rotations=cameras.viewmats[:, :3, :3].numpy(),
        shifts=cameras.viewmats[:, :3, 3].numpy(),
        focal=cameras.Ks[0, 0, 0].item(),
        color=color.clamp(0, 1).numpy(),
        opacity=opacity[..., 0].numpy(),
        depth=depth[..., 0].numpy(),
    )


def thickened(gaussians: Gaussians) -> Gaussians:
    """Returns the splat with THICKER layers of every Gaussian."""
    light = 1 - gaussians.opacities.detach().sigmoid()
    return Gaussians(**{**gaussians.tensors(), "opacities": torch.logit(1 - light**THICKER, eps=1e-4)})


def closed_surface(views: Views, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the closed surface of what the views show: vertices [V, 3] float32 and triangles [F, 3] uint32,
    counter-clockwise from outside.

    resolution: cells along the diameter of the ball of radius 1. Every edge belongs to exactly two triangles. Raises
    UserError if nothing is opaque enough to have a surface.
    """
    field = signed_distance(views, round(EXTENT * resolution) + 1)
    field = ndimage.gaussian_filter(field, SMOOTHING)
    for _ in range(ROUNDS):
        field -= outline_levels(views, field)
    border = np.pad(np.zeros(np.subtract(field.shape, 2), bool), 1, constant_values=True)
    field[border] = np.abs(field[border])
    inside = solid(field < 0)
    if not inside.any():
        raise UserError(
            "source: expected a splat with an opaque surface in the ball of radius 1, got none; see --scale"
        )
    least = np.float32(1e-6)
    vertices, triangles = zero_level(np.where(inside, np.minimum(field, -least), np.maximum(field, least)))
    return (2 * EXTENT / (len(field) - 1) * vertices - EXTENT).astype(np.float32), triangles


def signed_distance(views: Views, nodes: int) -> np.ndarray:
    """Returns the mean signed distance along the views' rays, negative inside, at the nodes of a cubic grid
    [nodes, nodes, nodes].

    A coarser grid finds the nodes near the surface; others have plus or minus the truncation distance.
    """
    coarse = nodes // COARSER
    widest, truncation = (TRUNCATION * 2 * EXTENT / (n - 1) for n in (coarse, nodes))
    rough = distance_at(views, grid(coarse), widest).reshape((coarse,) * 3)
    varied = ndimage.maximum_filter(rough, 3) - ndimage.minimum_filter(rough, 3) > 1e-3 * widest
    axis = np.round(np.linspace(0, coarse - 1, nodes)).astype(int)
    nearest = np.ix_(axis, axis, axis)
    field: np.ndarray = np.sign(rough[nearest]) * np.float32(truncation)
    near = varied[nearest]
    field[near] = distance_at(views, grid(nodes)[near.ravel()], truncation)
    return field


def outline_levels(views: Views, field: np.ndarray) -> np.ndarray:
    """Returns the level [n, n, n] float32 at which a field [n, n, n] has the outlines of the views of usual elevations.

    Level zero lies below the outlines, where a ray crosses more of a soft shell than one from the front, and more below
    them where the shell is softer. A ray along an outline touches the surface at its lowest value: this is the level
    there. Elsewhere it is the weighted mean of those nearby, and far from all of them their median.
    """
    nodes = len(field)
    found = [touched(views, i, field) for i in range(len(views)) if views.usual(i)]
    node, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if not len(node):
        return np.zeros_like(field)
    total, count = (np.bincount(node, w, nodes**3).reshape(field.shape).astype(np.float32) for w in (value, None))
    total, count = (ndimage.gaussian_filter(values, NEARBY) for values in (total, count))
    prior = np.float32(PRIOR) * count.max()
    return np.asarray((total + prior * np.float32(np.median(value))) / (count + prior))


def touched(views: Views, i: int, field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes [R] of a field [n, n, n] that rays along the outlines of view i touch, and its values [R]
    there, the lowest along each ray."""
    nodes = len(field)
    cell = 2 * EXTENT / (nodes - 1)
    shape = views.opacity[i] > 0.5
    y, x = (a[::RAY_STEP] for a in np.nonzero(ndimage.binary_dilation(shape) & ~ndimage.binary_erosion(shape)))
    ahead = np.stack([x + 0.5 - views.size / 2, y + 0.5 - views.size / 2, np.full(len(x), views.focal)], 1)
    depths = np.arange(DISTANCE - EXTENT, DISTANCE + EXTENT, cell)
    points = ((ahead / views.focal)[:, None] * depths[:, None] - views.shifts[i]) @ views.rotations[i]
    places = (points + EXTENT) / cell
    values = ndimage.map_coordinates(field, places.reshape(-1, 3).T, order=1, mode="nearest").reshape(places.shape[:2])
    ray, lowest = np.arange(len(x)), values.argmin(1)
    place, value = places[ray, lowest], values[ray, lowest]
    near = value < 0.9 * TRUNCATION * cell  # others pass by what a floater has left
    index = np.round(place[near]).astype(int).clip(0, nodes - 1)
    return np.ravel_multi_index(tuple(index.T), field.shape), value[near]


def grid(nodes: int) -> np.ndarray:
    """Returns the positions [nodes^3, 3] float32 of the nodes of the grid."""
    axis = np.linspace(-EXTENT, EXTENT, nodes, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def distance_at(views: Views, points: np.ndarray, truncation: float) -> np.ndarray:
    """Returns the mean signed distance [P] float32 at points [P, 3]: over the views that see the point, or see at most
    the truncation distance less far; minus the truncation distance where there is none."""
    parts = [points[i : i + POINTS] for i in range(0, max(len(points), 1), POINTS)]
    return np.concatenate([_distance(views, part, np.float32(truncation)) for part in parts])


def _distance(views: Views, points: np.ndarray, truncation: np.float32) -> np.ndarray:
    total, count = np.zeros(len(points), np.float32), np.zeros(len(points), np.float32)
    for i in range(len(views)):
        x, y, z = views.projected(i, points)
        depth = views.depth[i][y.astype(np.int32), x.astype(np.int32)]
        distance = np.where(depth > 0, depth - z, truncation)
        seen = distance > -truncation
        total += np.where(seen, np.minimum(distance, truncation), np.float32(0))
        count += seen
    return np.where(count > 0, total / np.maximum(count, 1), -truncation)


def solid(inside: np.ndarray) -> np.ndarray:
    """Returns the nodes inside without floaters and with cavities filled. inside: [n, n, n] bool, False at the
    border."""
    links = np.zeros((3, 3, 3), bool)
    for corner in product((0, 1), repeat=3):
        links[tuple(np.add(1, corner))] = links[tuple(np.subtract(1, corner))] = True
    parts, _ = ndimage.label(inside, links)
    sizes = np.bincount(parts.ravel())[1:]
    if not len(sizes):
        return inside
    kept = np.isin(parts, 1 + np.flatnonzero(sizes >= SMALLEST_PART * sizes.max()))
    outside, _ = ndimage.label(~kept, links)
    return np.asarray(outside != outside[0, 0, 0])


def zero_level(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the zero level of a field [n, n, n] without zeros, positive at the border: vertices [V, 3] in cells and
    triangles [F, 3] uint32, counter-clockwise from the positive side.

    Every cell is six tetrahedra around its diagonal, which fit those of the neighbors: the surface is closed and
    without crossings.
    """
    n, inside = len(field), field < 0
    corners = sum(
        inside[a : n - 1 + a, b : n - 1 + b, c : n - 1 + c].astype(np.int8) for a, b, c in product((0, 1), repeat=3)
    )
    steps = np.array([n * n, n, 1])
    cells = np.argwhere((corners > 0) & (corners < 8)) @ steps
    flat, found = inside.ravel(), []
    for tetrahedron in tetrahedra():
        ids = cells[:, None] + tetrahedron @ steps
        code = flat[ids] @ np.array([1, 2, 4, 8])
        for case, triangles in cases().items():
            rows = ids[code == case]
            found += [np.stack([np.sort(rows[:, edge], 1) for edge in triangle], 1) for triangle in triangles]
    edges = np.concatenate(found)
    unique, vertices = np.unique((edges[..., 0] * n**3 + edges[..., 1]).ravel(), return_inverse=True)
    a, b = unique // n**3, unique % n**3
    values = field.ravel().astype(np.float64)
    share = (values[a] / (values[a] - values[b]))[:, None]
    ends = [np.stack(np.unravel_index(end, field.shape), 1) for end in (a, b)]
    return ends[0] * (1 - share) + ends[1] * share, vertices.reshape(-1, 3).astype(np.uint32)


@cache
def tetrahedra() -> list[np.ndarray]:
    """Returns the six tetrahedra [4, 3] of the unit cube around its diagonal, all of positive orientation."""
    found = []
    for order in permutations(range(3)):
        corners = np.cumsum(np.vstack([np.zeros(3, int), np.eye(3, dtype=int)[list(order)]]), 0)
        if odd(order):
            corners[[1, 2]] = corners[[2, 1]]
        found.append(corners)
    return found


@cache
def cases() -> dict[int, list[list[list[int]]]]:
    """Returns the triangles in a tetrahedron for every set of corners inside, as a sum of 1, 2, 4 and 8. A triangle is
    three edges, an edge two corners."""
    found: dict[int, list[list[list[int]]]] = {}
    for a, b, c, d in (order for order in permutations(range(4)) if not odd(order)):
        found[1 << a] = [[[a, b], [a, c], [a, d]]]
        found[15 - (1 << d)] = [[[d, a], [d, b], [d, c]]]
        found[(1 << a) + (1 << b)] = [[[a, c], [a, d], [b, d]], [[a, c], [b, d], [b, c]]]
    return found


def odd(order: tuple[int, ...]) -> bool:
    """Returns whether a permutation is odd."""
    return sum(order[i] > order[j] for i in range(len(order)) for j in range(i + 1, len(order))) % 2 == 1
