"""The toybox world: captioned objects made of Gaussians, one per seed.

`sample_object(seed)` draws a kind, its colors and its proportions, samples the surfaces of its parts evenly, bakes soft
light into the colors and describes the result in captions. Details not mentioned in a caption vary from seed to seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, uniform_filter

from gscfd.toybox.kinds import CARRIED, CATALOGUE, COLORS, SUPPORTS
from gscfd.toybox.shapes import Array, Part
from gscfd.toybox.words import Caption, nearest, parse_caption, unknown_words, vocabulary, write_caption

__all__ = [
    "COLORS",
    "KINDS",
    "WITHHELD",
    "Caption",
    "ToyObject",
    "parse_caption",
    "sample_object",
    "unknown_words",
    "vocabulary",
]

KINDS: tuple[str, ...] = tuple(sorted(CATALOGUE))
"""All kinds of object, one or two English words each."""

WITHHELD: frozenset[tuple[str, str]] = frozenset((name, kind.withheld) for name, kind in CATALOGUE.items())
"""(kind, color) pairs excluded from training to measure composition: one in twelve."""

RADIUS = 0.95
"""Radius of the bounding sphere of every object, in world units."""
PAIR_SHARE = 0.2
"""Share of two-object scenes among draws that specify neither kind nor color."""
NATURAL_SHARE = 0.5
"""Share of draws that use one of a kind's natural colors; the others use any color."""
DISC_SIGMA = 0.65
"""Standard deviation of the discs along the surface, in spacings."""
DISC_FLATNESS = 0.12
"""Standard deviation across the surface, relative to the one along it."""
OPACITY = 0.97


@dataclass(frozen=True, kw_only=True)
class ToyObject:
    """One object of N Gaussian discs in the unit ball; z up, front toward +x."""

    kind: str
    """Noun of the object, or of the upper object of a stack."""
    color: str
    """Word for the main color."""
    captions: tuple[str, ...]
    """True descriptions, the most specific first."""
    means: NDArray[np.float32]
    """[N, 3] world units."""
    quats: NDArray[np.float32]
    """[N, 4] unit quaternions, wxyz; the third axis of each disc is its normal."""
    scales: NDArray[np.float32]
    """[N, 3] standard deviations in world units; the third is much smaller."""
    opacities: NDArray[np.float32]
    """[N] in (0, 1)."""
    colors: NDArray[np.float32]
    """[N, 3] RGB in [0, 1], light baked in."""
    normals: NDArray[np.float32]
    """[N, 3] unit, outward."""


@dataclass(frozen=True)
class _Single:
    """An object built from parts, before sampling."""

    kind: str
    color: str
    part_color: str | None
    parts: list[Part]


def sample_object(
    seed: int,
    *,
    kind: str | None = None,
    color: str | None = None,
    spacing: float = 0.035,
    allow_withheld: bool = False,
) -> ToyObject:
    """Returns the object of a seed, bit for bit the same for the same arguments.

    kind, color: drawn if None. Two-object scenes are drawn only if both are None. spacing: distance between neighboring
    discs in world units. allow_withheld: whether pairs in WITHHELD may be drawn or requested.
    """
    _check(kind, color, spacing, allow_withheld)
    rng = np.random.Generator(np.random.PCG64(seed))
    if kind is None and color is None and rng.random() < PAIR_SHARE:
        upper = _draw(rng, str(rng.choice(CARRIED)), None, allow_withheld)
        lower = _draw(rng, str(rng.choice(SUPPORTS)), None, allow_withheld)
        return _finish(upper, _stack(upper, lower), _pair_captions(upper, lower), spacing)
    if kind is None:
        kind = str(rng.choice([k for k in KINDS if allow_withheld or (k, color) not in WITHHELD]))
    single = _draw(rng, kind, color, allow_withheld)
    return _finish(single, single.parts, _captions(single), spacing)


def _check(kind: str | None, color: str | None, spacing: float, allow_withheld: bool) -> None:
    for name, value, known in (("kind", kind, KINDS), ("color", color, COLORS)):
        if value is not None and value not in known:
            raise ValueError(f"{name}: {value!r} is not known; the nearest are {', '.join(nearest(value, known, 3))}")
    if (kind, color) in WITHHELD and not allow_withheld:
        raise ValueError(f"kind, color: ({kind!r}, {color!r}) is withheld; pass allow_withheld=True to have it")
    if not spacing > 0:
        raise ValueError(f"spacing: expected a positive distance, got {spacing}")


# Drawing


def _draw(rng: np.random.Generator, kind: str, color: str | None, allow_withheld: bool) -> _Single:
    spec = CATALOGUE[kind]
    if color is None:
        allowed = [name for name in COLORS if allow_withheld or (kind, name) not in WITHHELD]
        color = _draw_color(rng, spec.natural, allowed)
    part_color = None
    if spec.part:
        part_color = _draw_color(rng, spec.part_natural, [name for name in COLORS if name != color])
    main, second = (_jitter(rng, name or color) for name in (color, part_color))
    return _Single(kind, color, part_color, spec.build(rng, main, second))


def _draw_color(rng: np.random.Generator, natural: tuple[str, ...], allowed: list[str]) -> str:
    natural = tuple(name for name in natural if name in allowed)
    return str(rng.choice(natural if natural and rng.random() < NATURAL_SHARE else allowed))


def _jitter(rng: np.random.Generator, color: str) -> Array:
    """Returns the RGB [3] of the color word, slightly varied in brightness and hue."""
    return np.clip(np.array(COLORS[color]) * (rng.uniform(0.92, 1.06) + rng.uniform(-0.02, 0.02, 3)), 0, 1)


def _stack(upper: _Single, lower: _Single) -> list[Part]:
    """Returns the parts of the lower object and of the upper one, which stands on it."""
    top = lower.parts[0].hull()
    center, size = (top.min(0) + top.max(0)) / 2, np.ptp(top, axis=0)
    points = np.concatenate([part.hull() for part in upper.parts])
    low, high = points.min(0), points.max(0)
    scale = min(0.95 * max(size[:2]) / max(high[:2] - low[:2]), 1.1 / (high[2] - low[2]))
    foot = np.array([*(low[:2] + high[:2]) / 2, low[2]])
    offset = np.array([*center[:2], top[:, 2].max()]) - scale * foot
    return [*lower.parts, *(part.moved(offset, scale) for part in upper.parts)]


def _captions(single: _Single) -> tuple[str, ...]:
    choices = [Caption(kind=single.kind, color=single.color), Caption(kind=single.kind)]
    if single.part_color:
        detail = Caption(kind=single.kind, color=single.color, part_color=single.part_color)
        choices = [detail, choices[0], Caption(kind=single.kind, part_color=single.part_color), choices[1]]
    return tuple(write_caption(choice) for choice in choices)


def _pair_captions(upper: _Single, lower: _Single) -> tuple[str, ...]:
    colors = ((upper.color, lower.color), (upper.color, None), (None, lower.color), (None, None))
    return tuple(
        write_caption(Caption(kind=upper.kind, color=one, on_kind=lower.kind, on_color=other)) for one, other in colors
    )


# Sampling


def _finish(single: _Single, parts: list[Part], captions: tuple[str, ...], spacing: float) -> ToyObject:
    parts = _normalized(parts)
    points, normals, albedo = _surface(parts, spacing)
    light = _light(normals) * _openness(points, normals, spacing)
    sigma = DISC_SIGMA * spacing
    scales = np.tile(np.array([sigma, sigma, DISC_FLATNESS * sigma], np.float32), (len(points), 1))
    return ToyObject(
        kind=single.kind,
        color=single.color,
        captions=captions,
        means=points.astype(np.float32),
        quats=_facing(normals).astype(np.float32),
        scales=scales,
        opacities=np.full(len(points), OPACITY, np.float32),
        colors=np.clip(albedo * light[:, None], 0, 1).astype(np.float32),
        normals=normals.astype(np.float32),
    )


def _normalized(parts: list[Part]) -> list[Part]:
    """Returns the parts centered at the origin and scaled to RADIUS."""
    hull = np.concatenate([part.hull() for part in parts])
    center = (hull.min(0) + hull.max(0)) / 2
    scale = RADIUS / np.sqrt(((hull - center) ** 2).sum(1).max())
    return [part.moved(-scale * center, scale) for part in parts]


def _surface(parts: list[Part], spacing: float) -> tuple[Array, Array, Array]:
    """Returns points, normals and colors of all parts, [N, 3] each, without points inside another solid part."""
    samples = [part.sample(spacing) for part in parts]
    owner = np.repeat(np.arange(len(parts)), [len(points) for points, _ in samples])
    points, normals = (np.concatenate(arrays) for arrays in zip(*samples, strict=True))
    keep, columns = np.ones(len(points), bool), np.ascontiguousarray(points.T)
    for index, part in enumerate(parts):
        if not part.solid:
            continue
        hull = part.hull()
        near = owner != index
        for column, low, high in zip(columns, hull.min(0), hull.max(0), strict=True):
            near &= (column > low) & (column < high)
        near = np.flatnonzero(near)
        keep[near[part.inside(points[near], 0.25 * spacing)]] = False
    colors = np.stack([part.color for part in parts])
    return points[keep], normals[keep], colors[owner[keep]]


def _facing(normals: Array) -> Array:
    """Returns the shortest rotations (wxyz) [N, 4] that take the z axis to the normals."""
    x, y, z = normals.T
    quats = np.stack([1 + z, -y, x, np.zeros_like(x)], 1)
    quats[z < 1e-9 - 1] = (0, 1, 0, 0)
    unit: Array = quats / np.sqrt(np.einsum("ij,ij->i", quats, quats))[:, None]
    return unit


# Light

KEY = np.array([0.55, -0.45, 0.70]) / np.linalg.norm([0.55, -0.45, 0.70])
"""Direction toward the key light: front, left, above."""
AMBIENT, SKY, KEY_STRENGTH, WRAP = 0.68, 0.13, 0.28, 0.3
"""Ambient light, its increase toward the zenith, the key light, and how far the key light wraps around the object."""


def _light(normals: Array) -> Array:
    """Returns the light [N] on matte surfaces: a bright sky above pale ground, and a soft key light."""
    key = np.maximum(normals @ KEY + WRAP, 0) / (1 + WRAP)
    light: Array = AMBIENT + SKY * normals[:, 2] + KEY_STRENGTH * key
    return light


def _openness(points: Array, normals: Array, spacing: float, cell: float = 0.1) -> Array:
    """Returns the openness [N] of each point in [0.6, 1], from the surface density slightly above it."""
    size = int(2.2 / cell) + 4
    index = np.round(points / cell).astype(np.int64) + size // 2
    density = np.bincount(index @ [size * size, size, 1], minlength=size**3).reshape(size, size, size)
    blurred = uniform_filter(density * (spacing / cell) ** 2, 3)
    above = (points + 1.6 * cell * normals) / cell + size // 2
    crowd = map_coordinates(blurred, above.T, order=1)
    openness: Array = np.clip(1.0 - 1.1 * np.maximum(crowd - 0.12, 0), 0.6, 1.0)
    return openness
