"""Solid primitives with evenly sampled surfaces: lathes, tubes, boxes and extrusions, posed as colored parts.

Every shape implements three methods in its own frame: `sample(spacing)` returns surface points and outward unit normals
about one spacing apart, `inside(points, margin)` returns which points lie deeper than margin below the surface, and
`hull()` returns a few points with the extent of the shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Points = Sequence[Sequence[float]] | Array

GOLDEN = 0.6180339887498949


class Shape(Protocol):
    def sample(self, spacing: float) -> tuple[Array, Array]:
        """Returns surface points and outward unit normals, [N, 3] each, about one spacing apart."""
        ...

    def inside(self, points: Array, margin: float) -> NDArray[np.bool_]:
        """Returns [N] whether each of the points [N, 3] is deeper than margin below the surface."""
        ...

    def hull(self) -> Array:
        """Returns points [K, 3] that span the shape's extent."""
        ...


@dataclass(frozen=True)
class Lathe:
    """A contour revolved around the z axis."""

    outer: Array
    """[M, 2] (radius, z) of the outer contour, from the bottom up, z never decreasing."""
    inner: Array | None = None
    """[M, 2] contour of the cavity, from the bottom up; it ends at radius 0 where the cavity is closed."""
    stretch: tuple[float, float] = (1.0, 1.0)
    """Factors on x and y, at most 1, which make the cross-section an ellipse."""

    def contour(self) -> Array:
        if self.inner is None:
            return self.outer
        if self.inner[0, 0] == 0:
            return np.concatenate([self.outer, self.inner[::-1]])
        if self.inner[-1, 0] == 0:
            return np.concatenate([self.inner[::-1], self.outer])
        return np.concatenate([self.outer, self.inner[::-1], self.outer[:1]])

    def sample(self, spacing: float) -> tuple[Array, Array]:
        line, tangent = resample(self.contour(), spacing)
        rings = np.zeros((len(line), 3))
        rings[:, 2] = line[:, 1]
        index, angle = _ring_angles(line[:, 0] * (sum(self.stretch) / 2), spacing)
        if self.stretch[0] != self.stretch[1]:
            angle = _even_on_ellipse(angle, self.stretch)
        around = np.stack([np.cos(angle), np.sin(angle)], 1)
        stretch = np.array(self.stretch)
        points = np.concatenate([around * line[index, :1] * stretch, line[index, 1:]], 1)
        normals = np.concatenate([around * tangent[index, 1:] / stretch, -tangent[index, :1]], 1)
        return points, _unit(normals)

    def inside(self, points: Array, margin: float) -> NDArray[np.bool_]:
        height = points[:, 2]
        radius = np.hypot(points[:, 0] / self.stretch[0], points[:, 1] / self.stretch[1])
        bottom, top = self.outer[0, 1] + margin, self.outer[-1, 1] - margin
        contour = np.interp(height, self.outer[:, 1], self.outer[:, 0])
        deep: NDArray[np.bool_] = (radius < contour - margin) & (height > bottom)
        deep &= height < top
        if self.inner is not None:
            cavity = np.interp(height, self.inner[:, 1], self.inner[:, 0], left=-1, right=-1)
            deep &= radius > cavity + margin
        return deep

    def hull(self) -> Array:
        angle = np.arange(16) * (math.pi / 8)
        around = np.stack([np.cos(angle) * self.stretch[0], np.sin(angle) * self.stretch[1]], 1)
        ring = self.outer[:, None, :1] * around
        height = np.broadcast_to(self.outer[:, None, 1:], (*ring.shape[:2], 1))
        return np.concatenate([ring, height], 2).reshape(-1, 3)


@dataclass(frozen=True)
class Tube:
    """A round cross-section swept along a planar path, with round ends unless the path is closed."""

    path: Array
    """[M, 3] points in one plane."""
    radius: Array
    """[M] radius of the cross-section at each point."""

    def sample(self, spacing: float) -> tuple[Array, Array]:
        line, tangent = resample(self._with_ends(), spacing)
        along, across = _unit(tangent[:, :3]), _plane_normal(self.path)
        side = np.cross(across, along)
        step = np.sqrt(1 - np.minimum(tangent[:, 3:] ** 2, 1))
        index, angle = _ring_angles(line[:, 3], spacing)
        around = np.cos(angle)[:, None] * side[index] + np.sin(angle)[:, None] * across
        normals = around * step[index] - along[index] * tangent[index, 3:]
        return line[index, :3] + around * line[index, 3:], _unit(normals)

    def inside(self, points: Array, margin: float) -> NDArray[np.bool_]:
        deep = np.zeros(len(points), bool)
        for start, end, r0, r1 in zip(self.path[:-1], self.path[1:], self.radius[:-1], self.radius[1:], strict=True):
            axis = end - start
            offset = points - start
            along = np.clip(offset @ axis / max(axis @ axis, 1e-12), 0, 1)
            offset -= along[:, None] * axis
            deep |= np.einsum("ij,ij->i", offset, offset) < np.maximum(r0 + (r1 - r0) * along - margin, 0) ** 2
        return deep

    def hull(self) -> Array:
        points: Array = self.path[:, None] + self.radius[:, None, None] * _DIRECTIONS
        return points.reshape(-1, 3)

    def _with_ends(self) -> Array:
        """Returns path and radius [K, 4], including the quarter circles of the round ends."""
        line = np.concatenate([self.path, self.radius[:, None]], 1)
        if np.allclose(line[0], line[-1]):
            return line
        angle = np.radians([90, 67, 45, 22])[:, None]
        first, last = _unit(self.path[:1] - self.path[1:2]), _unit(self.path[-1:] - self.path[-2:-1])
        r0, r1 = self.radius[0], self.radius[-1]
        head = np.concatenate([self.path[0] + first * r0 * np.sin(angle), r0 * np.cos(angle)], 1)
        tail = np.concatenate([self.path[-1] + last * r1 * np.sin(angle), r1 * np.cos(angle)], 1)[::-1]
        return np.concatenate([head, line, tail])


@dataclass(frozen=True)
class Box:
    """A box with rounded edges, centered at the origin."""

    half: tuple[float, float, float]
    """Half the edge lengths."""
    rounding: float = 0.0
    """Radius of the edges, at most the smallest half edge."""

    def sample(self, spacing: float) -> tuple[Array, Array]:
        half = np.array(self.half)
        faces, outward = [], []
        for axis in range(3):
            a, b = (axis + 1) % 3, (axis + 2) % 3
            across, along = _cells(half[a], spacing), _cells(half[b], spacing)
            face = np.empty((2, len(across) * len(along), 3))
            face[..., a], face[..., b] = np.repeat(across, len(along)), np.tile(along, len(across))
            face[0, :, axis], face[1, :, axis] = half[axis], -half[axis]
            normal = np.zeros_like(face)
            normal[0, :, axis], normal[1, :, axis] = 1, -1
            faces.append(face.reshape(-1, 3))
            outward.append(normal.reshape(-1, 3))
        points, normals = np.concatenate(faces), np.concatenate(outward)
        if self.rounding > 0:
            core = np.clip(points, self.rounding - half, half - self.rounding)
            normals = _unit(points - core)
            points = core + self.rounding * normals
        return points, normals

    def inside(self, points: Array, margin: float) -> NDArray[np.bool_]:
        x, y, z = (np.abs(column) < half - margin for column, half in zip(points.T, self.half, strict=True))
        deep: NDArray[np.bool_] = x & y & z
        return deep

    def hull(self) -> Array:
        inner = np.array(self.half) - 0.42 * self.rounding
        return _CORNERS * inner


@dataclass(frozen=True)
class Extrusion:
    """A flat outline in the x-z plane, extruded along y to both sides."""

    outline: Array
    """[M, 2] (x, z) of a simple polygon, counterclockwise seen from -y (x right, z up)."""
    depth: float
    """Full thickness along y."""

    def sample(self, spacing: float) -> tuple[Array, Array]:
        closed = np.concatenate([self.outline, self.outline[:1]])
        edge, tangent = resample(closed, spacing)
        rows = _cells(self.depth / 2, spacing)
        wall = np.empty((len(rows), len(edge), 3))
        wall[..., 0], wall[..., 1], wall[..., 2] = edge[:, 0], rows[:, None], edge[:, 1]
        outward = np.zeros_like(wall)
        outward[..., 0], outward[..., 2] = tangent[:, 1], -tangent[:, 0]
        flat = self._face(spacing)
        caps = np.empty((2, len(flat), 3))
        caps[..., 0], caps[..., 2] = flat[:, 0], flat[:, 1]
        caps[0, :, 1], caps[1, :, 1] = self.depth / 2, -self.depth / 2
        facing = np.zeros_like(caps)
        facing[0, :, 1], facing[1, :, 1] = 1, -1
        points = np.concatenate([wall.reshape(-1, 3), caps.reshape(-1, 3)])
        return points, np.concatenate([_unit(outward.reshape(-1, 3)), facing.reshape(-1, 3)])

    def inside(self, points: Array, margin: float) -> NDArray[np.bool_]:
        deep = np.abs(points[:, 1]) < self.depth / 2 - margin
        deep[deep] = self._within(points[deep][:, [0, 2]], margin)
        return deep

    def hull(self) -> Array:
        x, z = self.outline.T
        side = np.full_like(x, self.depth / 2)
        return np.concatenate([np.stack([x, side, z], 1), np.stack([x, -side, z], 1)])

    def _face(self, spacing: float) -> Array:
        """Returns a triangular lattice [K, 2] within the outline."""
        low, high = self.outline.min(0), self.outline.max(0)
        height = spacing * math.sqrt(0.75)
        x = np.arange(low[0], high[0] + spacing, spacing)
        z = np.arange(low[1] + height / 2, high[1], height)
        grid = np.stack(np.broadcast_arrays(x[None, :], z[:, None]), -1)
        grid[1::2, :, 0] -= spacing / 2
        grid = grid.reshape(-1, 2)
        return grid[self._within(grid, 0.4 * spacing)]

    def _within(self, flat: Array, margin: float) -> NDArray[np.bool_]:
        """Returns [K] whether the points [K, 2] are inside the outline and farther than margin from it."""
        edge_x, edge_z = (np.roll(self.outline, -1, 0) - self.outline).T[..., None]
        x, z = flat.T[:, None] - self.outline.T[..., None]
        along = np.clip((x * edge_x + z * edge_z) / (edge_x**2 + edge_z**2), 0, 1)
        distance = ((x - along * edge_x) ** 2 + (z - along * edge_z) ** 2).min(0)
        crosses = ((z < 0) != (z < edge_z)) & ((x * edge_z < z * edge_x) == (edge_z > 0))
        within: NDArray[np.bool_] = (crosses.sum(0) % 2 == 1) & (distance > margin**2)
        return within


@dataclass(frozen=True)
class Part:
    """A shape with a color and a pose: world = at + scale * turn @ local."""

    shape: Shape
    color: Array
    """[3] RGB in [0, 1]."""
    at: Array = field(default_factory=lambda: np.zeros(3))
    turn: Array = field(default_factory=lambda: np.eye(3))
    scale: float = 1.0
    solid: bool = True
    """Whether samples of other parts inside this one are dropped; False for small details."""

    def sample(self, spacing: float) -> tuple[Array, Array]:
        """Returns points and normals in the world, [N, 3] each; spacing is in world units."""
        points, normals = self.shape.sample(spacing / self.scale)
        return self.scale * points @ self.turn.T + self.at, normals @ self.turn.T

    def inside(self, points: Array, margin: float) -> NDArray[np.bool_]:
        return self.shape.inside((points - self.at) @ self.turn / self.scale, margin / self.scale)

    def hull(self) -> Array:
        points: Array = self.scale * self.shape.hull() @ self.turn.T + self.at
        return points

    def moved(self, offset: Array, scale: float) -> Part:
        """Returns the part scaled about the origin, then shifted."""
        return replace(self, at=scale * self.at + offset, scale=scale * self.scale)


def turned(*, x: float = 0, y: float = 0, z: float = 0) -> Array:
    """Returns the rotation [3, 3] by degrees about x, then y, then z."""
    cx, cy, cz = (math.cos(math.radians(angle)) for angle in (x, y, z))
    sx, sy, sz = (math.sin(math.radians(angle)) for angle in (x, y, z))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    rotation: Array = about_z @ about_y @ about_x
    return rotation


def resample(line: Array, spacing: float) -> tuple[Array, Array]:
    """Returns the midpoints [n, k] of n equal pieces of the polyline [M, k], and the unit tangents there [n, k]."""
    length = np.concatenate([[0.0], np.cumsum(np.sqrt((np.diff(line, axis=0) ** 2).sum(1)))])
    pieces = max(1, round(length[-1] / spacing))
    half_steps = np.linspace(0, length[-1], 2 * pieces + 1)
    fine = np.stack([np.interp(half_steps, length, column) for column in line.T], 1)
    return fine[1::2], _unit(fine[2::2] - fine[:-2:2])


def _ring_angles(radius: Array, spacing: float) -> tuple[NDArray[np.int64], Array]:
    """Returns evenly spaced angles on each ring, offset from ring to ring: ring index [N] and angle [N]."""
    counts = np.maximum(3, np.round(2 * math.pi / spacing * radius)).astype(np.int64)
    index = np.repeat(np.arange(len(radius)), counts)
    within = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return index, 2 * math.pi * (within / counts[index] + GOLDEN * index)


def _even_on_ellipse(angle: Array, stretch: tuple[float, float]) -> Array:
    """Returns the parameters [N] at which an ellipse's arc length is proportional to the given angles."""
    table = np.linspace(0, 2 * math.pi, 65)
    speed = np.hypot(stretch[0] * np.sin(table), stretch[1] * np.cos(table))
    arc = np.concatenate([[0.0], np.cumsum(speed[1:] + speed[:-1])])
    return np.interp(angle % (2 * math.pi), arc * (2 * math.pi / arc[-1]), table)


def _cells(half: float, spacing: float) -> Array:
    """Returns the centers [n] of n equal cells of [-half, half]."""
    count = max(1, round(2 * half / spacing))
    return (np.arange(count, dtype=np.float64) + 0.5) * (2 * half / count) - half


def _unit(vectors: Array) -> Array:
    length: Array = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return vectors / np.maximum(length, 1e-12)[:, None]


def _plane_normal(path: Array) -> Array:
    """Returns a unit vector [3] perpendicular to the plane of the path, or to the path if it is straight."""
    steps = np.diff(path, axis=0)
    normal = np.cross(steps[0], steps[np.abs(np.cross(steps[0], steps)).sum(1).argmax()])
    if np.abs(normal).sum() < 1e-9:
        normal = np.cross(steps[0], np.eye(3)[np.abs(steps[0]).argmin()])
    unit: Array = _unit(normal[None])[0]
    return unit


_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
_DIRECTIONS = np.concatenate([_CORNERS / math.sqrt(3), np.eye(3), -np.eye(3)])
