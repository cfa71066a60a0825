"""Procedural assets with fine detail, for runs at full size: stripes, letters, checks, thin parts and holes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gscfd.distil.meshes import discs
from gscfd.gaussians import Gaussians
from gscfd.lab.assets import Asset
from gscfd.toybox.shapes import Box, Lathe, Part, Tube, turned

Array = NDArray[np.float64]
Paint = Callable[[Array], Array]
"""Maps points [N, 3] of the world to their colors [N, 3] in [0, 1]."""

LIGHT = np.array([0.5, 0.3, 0.8]) / math.sqrt(0.98)
"""Direction of the light that is baked into the colors."""
DARK = 0.65
"""Brightness of a surface turned away from the light."""
VARIANTS = 4
"""Of every asset, which differ in detail only: the letters, and where stripes and fields begin."""


def striped(width: float, one: tuple[float, ...], other: tuple[float, ...], *, shift: float = 0.0) -> Paint:
    """Returns stripes across the z axis. width: of one stripe, in world units. shift: in pairs of stripes."""
    return lambda points: np.where((np.floor(points[:, 2:3] / width + 2 * shift) % 2 == 0), one, other)


def checked(count: int, one: tuple[float, ...], other: tuple[float, ...], *, shift: float = 0.0) -> Paint:
    """Returns fields of equal azimuth and height. count: pairs of fields around. shift: in pairs of fields."""

    def paint(points: Array) -> Array:
        around = np.floor(np.arctan2(points[:, 1], points[:, 0]) * (count / math.pi) + 2 * shift)
        return np.where(((around + np.floor(points[:, 2] * 8)) % 2 == 0)[:, None], one, other)

    return paint


def lettered(text: str, height: float, ink: tuple[float, ...], paper: tuple[float, ...], *, around: float) -> Paint:
    """Returns a text that runs once around the z axis, centered at the front and at z = 0.

    height: of the letters in world units. around: length of the text in degrees.
    """
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text)
    picture = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(picture).text((-left, -top), text, fill=255)
    mask = np.asarray(picture.resize((8 * picture.width, 8 * picture.height), Image.Resampling.BICUBIC)) > 127

    def paint(points: Array) -> Array:
        column = 0.5 + np.degrees(np.arctan2(points[:, 1], points[:, 0])) / around
        row = 0.5 - points[:, 2] / height
        inside = (column >= 0) & (column < 1) & (row >= 0) & (row < 1)
        x, y = (
            np.clip(share * side, 0, side - 1).astype(int)
            for share, side in ((column, mask.shape[1]), (row, len(mask)))
        )
        return np.where((inside & mask[y, x])[:, None], ink, paper)

    return paint


def ring(radius: float, thickness: float) -> Tube:
    angle = np.linspace(0, 2 * math.pi, 97)
    path = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * angle], 1)
    path[-1] = path[0]
    return Tube(path, np.full(97, thickness))


def sphere(radius: float) -> Lathe:
    angle = np.linspace(-math.pi / 2, math.pi / 2, 65)
    return Lathe(np.stack([radius * np.cos(angle).clip(0), radius * np.sin(angle)], 1))


def part(shape: Lathe | Tube | Box, at: tuple[float, float, float] = (0, 0, 0), turn: Array | None = None) -> Part:
    return Part(shape, np.zeros(3), np.array(at), np.eye(3) if turn is None else turn)


def mug(variant: int) -> list[tuple[Part, Paint]]:
    """Letters around, fine stripes inside, a thin handle with a hole."""
    words, shift = ("CLEAN FLOW", "FLOW CLEAN", "FINE NOISE", "NOISE FINE")[variant], variant / VARIANTS
    wall = Lathe(np.array([[0, -0.7], [0.55, -0.7], [0.55, 0.7]]), np.array([[0, -0.62], [0.49, -0.62], [0.49, 0.7]]))
    handle = part(ring(0.3, 0.05), (-0.62, 0.0, 0.0), turned(x=90))
    text = lettered(words, 0.42, (0.1, 0.1, 0.35), (0.95, 0.9, 0.8), around=240)
    inner = striped(0.05, (0.85, 0.2, 0.15), (0.95, 0.9, 0.8), shift=shift)

    def paint(points: Array) -> Array:
        return np.where(np.hypot(points[:, :1], points[:, 1:2]) > 0.52, text(points), inner(points))

    return [(part(wall), paint), (handle, striped(0.06, (0.1, 0.45, 0.5), (0.95, 0.9, 0.8), shift=shift))]


def cage(variant: int) -> list[tuple[Part, Paint]]:
    """Thin striped rings around a checked ball."""
    shift = variant / VARIANTS
    paint = striped(0.08, (0.9, 0.75, 0.1), (0.15, 0.15, 0.15), shift=shift)
    hoops = [part(ring(0.88, 0.025), turn=turned(x=90, z=angle)) for angle in (0, 45, 90, 135)]
    bands = [
        part(ring(0.88 * math.cos(tilt), 0.025), (0, 0, 0.88 * math.sin(tilt))) for tilt in np.radians([-40, 0, 40])
    ]
    ball = (part(sphere(0.5)), checked(12, (0.85, 0.15, 0.2), (0.95, 0.95, 0.95), shift=shift))
    return [ball, *((one, paint) for one in (*hoops, *bands))]


def gate(variant: int) -> list[tuple[Part, Paint]]:
    """A frame of four beams with an opening, letters on it, and thin bars in the opening."""
    words, shift = ("E=mc2 ABC", "ABC E=mc2", "1+2=3 XYZ", "XYZ 1+2=3")[variant], variant / VARIANTS
    upright, beam = Box((0.18, 0.14, 0.7), 0.03), Box((0.18, 0.68, 0.14), 0.03)
    text = lettered(words, 0.24, (0.95, 0.95, 0.9), (0.15, 0.35, 0.25), around=150)

    def on_beam(points: Array) -> Array:
        return text(points - np.array([0, 0, 0.56]))

    wood = striped(0.04, (0.55, 0.35, 0.2), (0.4, 0.24, 0.12), shift=shift)
    posts = [(part(upright, (0, side, 0)), wood) for side in (-0.54, 0.54)]
    beams = [(part(beam, (0, 0, height)), on_beam) for height in (-0.56, 0.56)]
    path = np.stack([np.zeros(33), np.zeros(33), np.linspace(-0.45, 0.45, 33)], 1)
    paint = striped(0.1, (0.8, 0.1, 0.5), (0.9, 0.9, 0.9), shift=shift)
    bars = [(part(Tube(path, np.full(33, 0.025)), (0, side, 0)), paint) for side in (-0.24, 0.0, 0.24)]
    return [*posts, *beams, *bars]


TEXTURED: dict[str, Callable[[int], list[tuple[Part, Paint]]]] = {"mug": mug, "cage": cage, "gate": gate}
"""Parts of the assets, with their paints, by name; of a variant, 0 to VARIANTS - 1."""


def textured_asset(name: str, *, spacing: float, variant: int = 0) -> Asset:
    """Returns an asset of TEXTURED as Gaussians. spacing: distance between neighboring discs in world units."""
    parts = TEXTURED[name](variant)
    points, normals, colors = [], [], []
    for i, (one, paint) in enumerate(parts):
        at, outward = one.sample(spacing)
        others = [other for j, (other, _) in enumerate(parts) if j != i]
        seen = ~np.any([other.inside(at, 0.2 * spacing) for other in others], axis=0)
        light = DARK + (1 - DARK) * (outward[seen] @ LIGHT).clip(0)
        points.append(at[seen])
        normals.append(outward[seen])
        colors.append(paint(at[seen]) * light[:, None])
    gaussians: Gaussians = discs(np.concatenate(points), np.concatenate(normals), np.concatenate(colors), spacing)
    return Asset(name, gaussians)
