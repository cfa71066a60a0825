"""Building blocks of the kinds of object."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gscfd.toybox.shapes import Array, Box, Extrusion, Lathe, Part, Points, Tube, turned

EYE_WHITE, PUPIL = np.array([0.97, 0.97, 0.97]), np.array([0.03, 0.03, 0.04])
TIRE, STEEL, GLASS = np.array([0.13, 0.13, 0.14]), np.array([0.66, 0.68, 0.71]), np.array([0.66, 0.86, 0.95])
LEAF, SOIL, LINEN = np.array([0.22, 0.58, 0.22]), np.array([0.27, 0.17, 0.10]), np.array([0.95, 0.94, 0.90])
Place = Sequence[float] | Array


# Parts


def sphere(color: Array, radius: float, at: Place, *, solid: bool = True) -> Part:
    return ellipsoid(color, (radius, radius, radius), at, solid=solid)


def ellipsoid(
    color: Array, radii: tuple[float, float, float], at: Place, *, turn: Array | None = None, solid: bool = True
) -> Part:
    widest = max(radii[0], radii[1])
    angle = np.linspace(-math.pi / 2, math.pi / 2, 25)
    contour = np.stack([widest * np.cos(angle), radii[2] * np.sin(angle)], 1)
    contour[[0, -1], 0] = 0
    return _part(Lathe(contour, stretch=(radii[0] / widest, radii[1] / widest)), color, at, turn, solid)


def lathe(
    color: Array,
    outer: Points,
    at: Place = (0, 0, 0),
    *,
    inner: Points | None = None,
    turn: Array | None = None,
    stretch: tuple[float, float] = (1, 1),
    solid: bool = True,
) -> Part:
    cavity = None if inner is None else np.array(inner, float)
    return _part(Lathe(np.array(outer, float), cavity, stretch), color, at, turn, solid)


def cylinder(
    color: Array,
    radius: float,
    height: float,
    at: Place = (0, 0, 0),
    *,
    top: float | None = None,
    turn: Array | None = None,
    solid: bool = True,
) -> Part:
    """Stands on `at`; top is the radius of the upper end, 0 for a cone."""
    top = radius if top is None else top
    return lathe(color, [(0, 0), (radius, 0), (top, height), (0, height)], at, turn=turn, solid=solid)


def wheel(color: Array, radius: float, width: float, at: tuple[float, float, float]) -> list[Part]:
    """Returns a wheel about the y axis, centered at `at`, with a pale hub."""
    axle = turned(x=90)
    x, y, z = at
    bevel = 0.25 * width
    tire = [(0, 0), (radius - bevel, 0), (radius, bevel), (radius, width - bevel), (radius - bevel, width), (0, width)]
    return [
        lathe(color, tire, (x, y + width / 2, z), turn=axle),
        cylinder(STEEL, 0.45 * radius, 1.16 * width, (x, y + 0.58 * width, z), turn=axle, solid=False),
    ]


def box(
    color: Array,
    size: tuple[float, float, float],
    at: Place,
    *,
    rounding: float = 0.0,
    turn: Array | None = None,
    solid: bool = True,
) -> Part:
    half = (size[0] / 2, size[1] / 2, size[2] / 2)
    return _part(Box(half, min(rounding, *half)), color, at, turn, solid)


def tube(
    color: Array,
    path: Points,
    radius: float | Sequence[float],
    at: Place = (0, 0, 0),
    *,
    turn: Array | None = None,
    solid: bool = True,
) -> Part:
    points = np.array(path, float)
    return _part(Tube(points, np.broadcast_to(np.array(radius, float), len(points))), color, at, turn, solid)


def extrusion(
    color: Array, outline: Points, depth: float, at: Place = (0, 0, 0), *, turn: Array | None = None, solid: bool = True
) -> Part:
    return _part(Extrusion(np.array(outline, float), depth), color, at, turn, solid)


def arc(
    center: tuple[float, float, float],
    radius: float | tuple[float, float],
    start: float,
    end: float,
    plane: str = "yz",
    steps: int = 13,
) -> Array:
    """Returns the points [steps, 3] of an arc; degrees run from the first axis of the plane to the second."""
    angle = np.radians(np.linspace(start, end, steps))
    across, up = np.broadcast_to(radius, 2)
    path = np.tile(np.array(center, float), (steps, 1))
    path[:, "xyz".index(plane[0])] += across * np.cos(angle)
    path[:, "xyz".index(plane[1])] += up * np.sin(angle)
    return path


def eyes(x: float, y: float, z: float, radius: float, angle: float) -> list[Part]:
    """Returns a pair of round eyes centered at (x, +-y, z) that look `angle` degrees outward from the front."""
    ahead, out = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    pair = []
    for side in (-1, 1):
        at = x + 0.5 * radius * ahead, side * (y + 0.5 * radius * out), z
        pair.append(sphere(EYE_WHITE, radius, (x, side * y, z), solid=False))
        pair.append(sphere(PUPIL, 0.7 * radius, at, solid=False))
    return pair


def pot(rng: np.random.Generator, color: Array, radius: float, height: float) -> list[Part]:
    """Returns a flower pot with a rim, filled with soil, standing on the origin."""
    foot, rim = radius * _vary(rng, 0.72, 0.12), 0.24 * height
    wall = [(0, 0), (foot, 0), (0.93 * radius, height - rim), (1.06 * radius, height - rim), (1.06 * radius, height)]
    soil = [(0, 0.9 * height), (0.9 * radius, 0.9 * height), (0.9 * radius, height)]
    return [lathe(color, wall, inner=soil), cylinder(SOIL, 0.9 * radius, 0.08 * height, (0, 0, 0.86 * height))]


def _part(shape: Lathe | Tube | Box | Extrusion, color: Array, at: Place, turn: Array | None, solid: bool) -> Part:
    return Part(shape, color, np.array(at, float), np.eye(3) if turn is None else turn, solid=solid)


def _vary(rng: np.random.Generator, value: float, amount: float = 0.2) -> float:
    return value * rng.uniform(1 - amount, 1 + amount)


def _dome(radius: float, bottom: float, top: float, steps: int = 13) -> list[tuple[float, float]]:
    """Returns a quarter ellipse from the rim at `bottom` to the axis at `top`."""
    angle = np.linspace(0, math.pi / 2, steps)
    line = [(radius * math.cos(a), bottom + (top - bottom) * math.sin(a)) for a in angle]
    return [*line[:-1], (0.0, top)]
