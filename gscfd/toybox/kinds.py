"""Catalogue of the toybox world: its colors and its kinds of object, each a short recipe of colored parts.

A recipe maps a random generator, the main color and the color of the nameable second part to parts of any convenient
size; z is up and the front faces +x. Proportions vary freely; facts stated in captions do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gscfd.toybox.parts import (
    GLASS,
    LEAF,
    LINEN,
    PUPIL,
    STEEL,
    TIRE,
    _dome,
    _vary,
    arc,
    box,
    cylinder,
    ellipsoid,
    extrusion,
    eyes,
    lathe,
    pot,
    sphere,
    tube,
    wheel,
)
from gscfd.toybox.shapes import Array, Part, turned

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.11),
    "orange": (0.97, 0.48, 0.06),
    "yellow": (0.98, 0.84, 0.12),
    "green": (0.15, 0.62, 0.20),
    "cyan": (0.16, 0.78, 0.83),
    "blue": (0.12, 0.25, 0.84),
    "purple": (0.50, 0.16, 0.68),
    "pink": (0.98, 0.53, 0.74),
    "brown": (0.44, 0.25, 0.12),
    "black": (0.09, 0.09, 0.10),
    "white": (0.96, 0.95, 0.93),
    "gray": (0.50, 0.51, 0.53),
}
"""RGB in [0, 1] of each color word, before jitter and light."""
BEAK, CARROT = np.array([0.96, 0.58, 0.10]), np.array([0.96, 0.45, 0.08])
WOOD, DOUGH, BULB = np.array([0.50, 0.31, 0.16]), np.array([0.83, 0.60, 0.33]), np.array([1.0, 0.94, 0.58])
Recipe = Callable[[np.random.Generator, Array, Array], list[Part]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of object: its recipe and the phrases that can describe it."""

    build: Recipe
    natural: tuple[str, ...]
    """Colors that this kind has more often than others."""
    withheld: str
    """The one color that training never sees on this kind."""
    part: str = ""
    """The phrase that joins the second part, with {} for its color: "with a {} stem"; empty without one."""
    part_natural: tuple[str, ...] = ()
    """Colors that the second part has more often than others."""


# Household objects


def mug(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    height, foot, rim = _vary(rng, 1.0), _vary(rng, 0.42, 0.15), _vary(rng, 0.44, 0.12)
    middle = (foot + rim) / 2
    outer = [(0, 0), (foot - 0.05, 0), (foot, 0.05), (rim, height)]
    inner = [(0, 0.1), (foot - 0.1, 0.1), (rim - 0.08, height)]
    size = min(0.36, 0.38 * height)
    handle = arc((0, middle - 0.05, 0.52 * height), (_vary(rng, 1.3) * size, size), -90, 90)
    return [lathe(main, outer, inner=inner), tube(main, handle, _vary(rng, 0.085))]


def teapot(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    wide, tall = _vary(rng, 0.62, 0.12), _vary(rng, 0.5, 0.15)
    spout = [(0, -0.75 * wide, 0.75 * tall), (0, -1.25 * wide, 1.0 * tall), (0, -1.5 * wide, 1.75 * tall)]
    handle = arc((0, 0.85 * wide, 1.1 * tall), (0.56, 0.78 * tall), -80, 95)
    lid = 0.55 * wide
    return [
        ellipsoid(main, (wide, wide, tall), (0, 0, tall)),
        cylinder(main, 0.6 * wide, 0.1, (0, 0, -0.01)),
        tube(main, spout, [0.22, 0.17, 0.12]),
        tube(main, handle, 0.105),
        lathe(second, _dome(lid, 1.72 * tall, 2.12 * tall)),
        sphere(second, _vary(rng, 0.12), (0, 0, 2.2 * tall)),
    ]


def bottle(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    radius, neck = _vary(rng, 0.36), _vary(rng, 0.13, 0.15)
    body, shoulder, top = _vary(rng, 1.0), _vary(rng, 0.4, 0.3), _vary(rng, 0.35)
    curve = [
        (neck + (radius - neck) * 0.5 * (1 + math.cos(t * math.pi)), body + shoulder * t) for t in np.linspace(0, 1, 9)
    ]
    high = body + shoulder + top
    outer = [(0, 0), (radius - 0.05, 0), (radius, 0.05), *curve, (neck, high), (0, high)]
    parts = [lathe(main, outer), cylinder(second, neck + 0.06, 0.24, (0, 0, high - 0.1))]
    if rng.random() < 0.6:
        low = body * rng.uniform(0.2, 0.35)
        parts.append(cylinder(LINEN, radius + 0.015, body * rng.uniform(0.35, 0.5), (0, 0, low)))
    return parts


def lamp(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    belly, stem = _vary(rng, 0.2), _vary(rng, 1.1)
    low, high, shade = _vary(rng, 0.62, 0.12), _vary(rng, 0.3), _vary(rng, 0.66, 0.15)
    bottom = 0.42 + 0.5 * stem
    outer = [(low, bottom), (high, bottom + shade)]
    inner = [(low - 0.05, bottom), (high - 0.05, bottom + shade)]
    return [
        cylinder(main, _vary(rng, 0.48, 0.12), 0.12, (0, 0, 0)),
        ellipsoid(main, (belly, belly, 0.2), (0, 0, 0.28)),
        cylinder(main, 0.085, bottom + 0.6 * shade, (0, 0, 0)),
        lathe(second, outer, inner=inner),
        sphere(BULB, 0.15, (0, 0, bottom + 0.5 * shade)),
    ]


def chair(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    wide, deep = _vary(rng, 0.85, 0.15), _vary(rng, 0.8, 0.12)
    leg, back, thick = _vary(rng, 0.7), _vary(rng, 0.85), _vary(rng, 0.11)
    x, y = deep / 2 - thick / 2, wide / 2 - thick / 2
    parts = [box(second, (deep, wide, 0.13), (0, 0, leg + 0.065), rounding=0.04)]
    parts += [box(main, (thick, thick, leg), (sx * x, sy * y, leg / 2)) for sx in (-1, 1) for sy in (-1, 1)]
    parts += [box(main, (thick, thick, back), (-x, sy * y, leg + 0.1 + back / 2)) for sy in (-1, 1)]
    if rng.random() < 0.5:
        parts.append(box(main, (0.8 * thick, wide - thick, 0.6 * back), (-x, 0, leg + 0.1 + 0.68 * back)))
    else:
        for low in (0.36, 0.84):
            parts.append(box(main, (0.8 * thick, wide - thick, 0.24 * back), (-x, 0, leg + 0.1 + low * back)))
    return parts


def table(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    long, wide, tall = _vary(rng, 0.75), _vary(rng, 0.95, 0.25), _vary(rng, 0.62)
    thick = _vary(rng, 0.13)
    if rng.random() < 0.35:
        radius = 0.5 * wide + 0.25
        top = cylinder(main, radius, 0.12, (0, 0, tall))
        x = y = 0.58 * radius
    else:
        top = box(main, (long, wide, 0.12), (0, 0, tall + 0.06), rounding=0.03)
        x, y = long / 2 - 0.6 * thick, wide / 2 - 0.6 * thick
    legs = [box(main, (thick, thick, tall), (sx * x, sy * y, tall / 2)) for sx in (-1, 1) for sy in (-1, 1)]
    return [top, *legs]


def sofa(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    wide, deep, back = _vary(rng, 1.6, 0.15), _vary(rng, 0.8, 0.1), _vary(rng, 0.85, 0.15)
    arm, seat = _vary(rng, 0.22), 0.36
    parts = [
        box(main, (deep, wide, 0.3), (0, 0, 0.23), rounding=0.05),
        box(main, (0.26, wide, back - 0.05), (-deep / 2 + 0.1, 0, 0.05 + back / 2), rounding=0.1),
    ]
    parts += [box(main, (deep, arm, 0.55), (0, side * (wide - arm) / 2, 0.36), rounding=0.1) for side in (-1, 1)]
    room = (wide - 2 * arm) / 2
    for side in (-1, 1):
        middle = side * room / 2
        parts.append(box(second, (deep - 0.2, room - 0.02, 0.18), (0.1, middle, seat + 0.06), rounding=0.07))
        parts.append(box(second, (0.16, room - 0.04, 0.38), (-deep / 2 + 0.28, middle, seat + 0.34), rounding=0.07))
    return parts


def barrel(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    tall, end, bulge = _vary(rng, 1.25, 0.15), _vary(rng, 0.42, 0.12), _vary(rng, 0.12, 0.3)
    heights = np.linspace(0, 1, 13)
    radii = end + bulge * np.sin(math.pi * heights)
    outer = [(0, 0), *zip(radii, tall * heights, strict=True), (0, tall)]
    inner = [(0, tall - 0.07), (end - 0.06, tall - 0.07), (end - 0.06, tall)]
    parts = [lathe(main, outer, inner=inner)]
    for low in (0.06, 0.26, 0.66, 0.86):
        r0, r1 = (end + bulge * math.sin(math.pi * t) + 0.02 for t in (low, low + 0.08))
        parts.append(cylinder(STEEL * 0.62, r0, 0.08 * tall, (0, 0, low * tall), top=r1))
    return parts


def gift(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    size = _vary(rng, 1.0, 0.15), _vary(rng, 1.0, 0.15), _vary(rng, 0.85, 0.25)
    band = _vary(rng, 0.2, 0.15)
    x, y, z = size
    parts = [
        box(main, size, (0, 0, z / 2), rounding=0.03),
        box(second, (x + 0.05, band, z + 0.05), (0, 0, z / 2), rounding=0.02),
        box(second, (band, y + 0.05, z + 0.05), (0, 0, z / 2), rounding=0.02),
    ]
    for side in (-1, 1):
        loop = arc((0, side * 0.22, z + 0.17), (0.2, 0.14), 0, 360, steps=17)
        parts.append(tube(second, loop, 0.06))
    return parts


def umbrella(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    radius, rise, length = _vary(rng, 0.85, 0.12), _vary(rng, 0.5), _vary(rng, 1.15, 0.12)
    hook = 0.15
    bend = arc((0, hook, 0), hook, 180, 350)
    return [
        lathe(main, _dome(radius, length, length + rise), inner=_dome(radius - 0.04, length, length + rise - 0.06)),
        tube(main, [(0, 0, length + rise - 0.05), (0, 0, length + rise + 0.12)], 0.04),
        tube(second, [(0, 0, length + 0.8 * rise), *bend], 0.075),
    ]


def guitar(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    lower, upper, neck = _vary(rng, 0.48, 0.12), _vary(rng, 0.35, 0.12), _vary(rng, 0.7, 0.12)
    waist, thick = _vary(rng, 0.6, 0.1), _vary(rng, 0.26)
    height = 1.45 * (lower + upper)
    t = np.linspace(0, 1, 25)
    bump = np.sqrt(np.maximum(1 - (2 * t - 1) ** 2, 0))
    width = bump * (lower + (upper - lower) * t) * (1 - (1 - waist) * np.exp(-(((t - 0.55) / 0.16) ** 2)))
    right = np.stack([width * 1.08, height * t], 1)
    outline = np.concatenate([right, right[-2:0:-1] * [-1, 1]])
    front = turned(z=90)
    x = thick / 2
    return [
        extrusion(main, outline, thick, turn=front),
        cylinder(PUPIL, 0.18, 0.02, (x, 0, 0.62 * height), turn=turned(y=90), solid=False),
        box(WOOD * 0.6, (0.05, 0.3, 0.07), (x, 0, 0.25 * height)),
        box(second, (0.14, 0.18, neck + 0.2), (x, 0, height + neck / 2 - 0.1), rounding=0.03),
        box(second, (0.16, 0.32, 0.3), (x - 0.02, 0, height + neck + 0.07), rounding=0.05),
    ]


def ball(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    width = _vary(rng, 0.28, 0.3)
    band = [(1.012 * math.cos(a), 1.012 * math.sin(a)) for a in np.linspace(-width, width, 9)]
    tilt = turned(x=rng.uniform(-35, 35), y=rng.uniform(-35, 35))
    outer = [(0.9, band[0][1]), *band, (0.9, band[-1][1])]
    return [sphere(main, 1.0, (0, 0, 0)), lathe(second, outer, turn=tilt)]


# Clothing


def hat(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    brim, crown, tall = _vary(rng, 0.78, 0.12), _vary(rng, 0.45, 0.12), _vary(rng, 0.75, 0.25)
    top = crown * rng.uniform(0.85, 1.1)
    outer = [(0, 0), (brim, 0), (brim, 0.08), (crown, 0.1), (top, tall), (0, tall)]
    step = 0.3 * tall
    at = crown + 0.02, crown + 0.02 + (top - crown) * step / tall
    return [lathe(main, outer), cylinder(second, at[0], step, (0, 0, 0.1), top=at[1])]


def crown(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    radius, band, tip = _vary(rng, 0.7, 0.1), _vary(rng, 0.36, 0.15), _vary(rng, 0.66, 0.15)
    points, thick = 4, 0.17
    outer = [(radius, 0), (1.05 * radius, band)]
    inner = [(radius - thick, 0), (1.05 * radius - thick, band)]
    parts = [lathe(main, outer, inner=inner)]
    half = 0.72 * math.pi / points * radius
    for number in range(points):
        angle = 360 * number / points
        x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        spike = [(-half, 0), (half, 0), (0, tip)]
        at = (0.97 * radius * x, 0.97 * radius * y, band - 0.04)
        parts.append(extrusion(main, spike, thick, at, turn=turned(z=angle + 90)))
        parts.append(sphere(main, 0.13, (radius * x, radius * y, band + tip - 0.04)))
        parts.append(sphere(second, 0.17, (1.04 * radius * x, 1.04 * radius * y, 0.6 * band)))
    return parts


def boot(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    tall, shaft, foot = _vary(rng, 1.15, 0.15), _vary(rng, 0.3, 0.12), _vary(rng, 0.62, 0.12)
    outer = [(0, 0.1), (shaft, 0.1), (1.06 * shaft, tall), (1.14 * shaft, tall)]
    inner = [(0, tall - 0.25), (0.9 * shaft, tall - 0.25), (shaft, tall)]
    reach = foot + shaft
    return [
        lathe(main, outer[:3], inner=inner),
        lathe(second, [(shaft, tall - 0.16), (1.16 * shaft, tall - 0.16), (1.16 * shaft, tall), (shaft, tall)]),
        ellipsoid(main, (0.62 * reach, 1.02 * shaft, 0.34), (0.36 * reach, 0, 0.2)),
        box(second, (reach + shaft, 2 * shaft, 0.16), (reach / 2 - 0.4 * shaft, 0, 0.0), rounding=0.08),
    ]


# Food and plants


def donut(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    ring, thick = 0.62, _vary(rng, 0.3, 0.15)
    tilt = turned(y=rng.uniform(25, 45))
    glaze, dough = (
        [(ring + size * math.cos(a), size * math.sin(a)) for a in np.radians(np.linspace(start, end, 19))]
        for size, start, end in ((1.06 * thick, -20, 200), (thick, 200, 340))
    )
    parts = [lathe(main, glaze, turn=tilt, solid=False), lathe(DOUGH, dough, turn=tilt, solid=False)]
    shades = [np.array(COLORS[name]) for name in ("white", "yellow", "cyan", "pink")]
    for number in range(14 * int(rng.integers(0, 2))):
        around, over = 2.399 * number, rng.uniform(0.7, 2.4)
        reach = ring + 1.08 * thick * math.cos(over)
        at = tilt @ np.array([reach * math.cos(around), reach * math.sin(around), 1.08 * thick * math.sin(over)])
        parts.append(sphere(shades[number % 4], 0.055, at, solid=False))
    return parts


def ice_cream(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    radius, tall = _vary(rng, 0.46, 0.1), _vary(rng, 1.15, 0.15)
    cone = [(0, 0), (0.05, 0), (0.9 * radius, tall), (0, tall)]
    lip = [(0, tall), (1.08 * radius, tall), (1.1 * radius, tall + 0.1), (0.9 * radius, tall + 0.2), (0, tall + 0.2)]
    parts = [lathe(second, cone), lathe(main, lip), sphere(main, radius, (0, 0, tall + 0.55 * radius))]
    if rng.random() < 0.5:
        parts.append(sphere(main, 0.78 * radius, (0, 0, tall + 1.55 * radius)))
    return parts


def apple(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    tall = _vary(rng, 0.82, 0.1)
    angle = np.linspace(-math.pi / 2, math.radians(72), 25)
    flesh = np.stack([np.cos(angle) * (1 + 0.12 * np.sin(angle)), tall * np.sin(angle)], 1)
    flesh[0, 0] = 0
    dent = [(0, 0.75 * tall), (0.15, 0.8 * tall), flesh[-1]]
    leaf = turned(y=-35, z=rng.uniform(-60, 60))
    return [
        lathe(main, flesh, inner=dent),
        tube(WOOD * 0.7, [(0, 0, 0.7 * tall), (0, 0.06, tall + 0.32)], 0.055),
        ellipsoid(LEAF, (0.3, 0.14, 0.05), leaf @ np.array([0.28, 0, 0]) + [0, 0.04, tall + 0.08], turn=leaf),
    ]


def mushroom(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    cap, rise, stem = _vary(rng, 0.75, 0.15), _vary(rng, 0.55), _vary(rng, 0.72)
    foot = _vary(rng, 0.3)
    outer = [(0.9 * cap, stem - 0.04), *_dome(cap, stem + 0.04, stem + rise)]
    under = [(0.9 * cap, stem - 0.04), (0.4 * cap, stem + 0.08), (0, stem + 0.1)]
    parts = [lathe(main, outer, inner=under), cylinder(second, foot, stem + 0.15, top=0.72 * foot)]
    if rng.random() < 0.4:
        for number in range(9):
            lift, around = (1.35, 0.0) if number == 0 else (0.35 + 0.45 * (number % 2), number * math.pi / 4)
            flat, high = cap * math.cos(lift), stem + 0.04 + (rise - 0.04) * math.sin(lift)
            parts.append(sphere(LINEN, 0.1, (flat * math.cos(around), flat * math.sin(around), high), solid=False))
    return parts


def cactus(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    base, tall, thick = _vary(rng, 0.5), _vary(rng, 1.1, 0.15), _vary(rng, 0.22, 0.15)
    trunk = [(0, 0, base - 0.1), (0, 0, base + 0.5 * tall), (0, 0, base + tall)]
    parts = [*pot(rng, second, _vary(rng, 0.42, 0.12), base), tube(main, trunk, [thick, 1.1 * thick, thick])]
    for side in (-1, 1):
        low, reach, up = base + tall * rng.uniform(0.3, 0.5), thick + 0.3, tall * rng.uniform(0.25, 0.4)
        bend = arc((0, side * (reach - 0.16), low + 0.16), (side * 0.16, 0.16), -90, 0, steps=6)
        parts.append(tube(main, [(0, 0, low), *bend, (0, side * reach, low + 0.16 + up)], 0.62 * thick))
    return parts


def flower(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    base, stem, size = _vary(rng, 0.45), _vary(rng, 0.62), _vary(rng, 0.34, 0.12)
    petals = 6
    top = np.array([0, 0, base + stem + 0.62 * size])
    face = turned(y=90 - rng.uniform(5, 35))
    stalk = tube(LEAF, [(0, 0, base - 0.1), (-0.05, 0, top[2])], 0.055)
    parts = [*pot(rng, second, _vary(rng, 0.38, 0.12), base), stalk]
    for side in (-1, 1):
        at = 0, side * 0.22, base + 0.3 * stem
        parts.append(ellipsoid(LEAF, (0.13, 0.26, 0.05), at, turn=turned(x=side * 40)))
    for number in range(petals):
        turn = face @ turned(z=360 * number / petals) @ turned(y=-12)
        at = top + turn @ np.array([0.95 * size, 0, 0])
        parts.append(ellipsoid(main, (0.68 * size, 2.3 * size / petals + 0.04, 0.1), at, turn=turn))
    heart = top + face @ np.array([0, 0, 0.08])
    parts.append(ellipsoid(np.array([0.42, 0.24, 0.07]), (0.5 * size, 0.5 * size, 0.14), heart, turn=face))
    return parts


def tree(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    trunk, thick = _vary(rng, 0.66, 0.15), _vary(rng, 0.17)
    parts = [cylinder(second, 1.2 * thick, trunk + 0.4, top=0.95 * thick)]
    if rng.random() < 0.5:
        tiers, wide = int(rng.integers(2, 4)), _vary(rng, 0.66, 0.12)
        step = _vary(rng, 1.15, 0.12) / tiers
        for tier in range(tiers):
            low, radius = trunk + tier * step, wide * (1 - 0.26 * tier)
            parts.append(cylinder(main, radius, 1.7 * step, (0, 0, low), top=0))
    else:
        size, start = _vary(rng, 0.5, 0.12), rng.uniform(0, 360)
        parts.append(sphere(main, 1.05 * size, (0, 0, trunk + 1.35 * size)))
        for number in range(4):
            angle = math.radians(start + 90 * number)
            at = 0.5 * size * math.cos(angle), 0.5 * size * math.sin(angle), trunk + size * rng.uniform(0.7, 1.1)
            parts.append(sphere(main, 0.72 * size, at))
    return parts


# Creatures


def duck(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    long, wide, tall = _vary(rng, 0.66, 0.12), _vary(rng, 0.46, 0.12), _vary(rng, 0.42, 0.12)
    head = _vary(rng, 0.33, 0.12)
    x, z = 0.58 * long, 1.72 * tall + 0.62 * head
    parts = [
        ellipsoid(main, (long, wide, tall), (0, 0, tall)),
        tube(main, [(-0.6 * long, 0, 1.2 * tall), (-1.12 * long, 0, 1.85 * tall)], [0.26, 0.07]),
        tube(main, [(0.45 * long, 0, tall), (x, 0, z)], [0.3, 0.8 * head]),
        sphere(main, head, (x, 0, z)),
        ellipsoid(BEAK, (0.26, 0.22, 0.1), (x + head + 0.08, 0, z - 0.18 * head)),
        *eyes(x + 0.58 * head, 0.66 * head, z + 0.3 * head, 0.13, 50),
    ]
    for side in (-1, 1):
        at = -0.18 * long, side * 0.92 * wide, 1.12 * tall
        parts.append(ellipsoid(main, (0.6 * long, 0.12, 0.55 * tall), at, turn=turned(y=12, z=side * 10)))
    return parts


def penguin(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    wide, tall, head = _vary(rng, 0.45, 0.12), _vary(rng, 0.68, 0.12), _vary(rng, 0.34, 0.1)
    z = 1.75 * tall + 0.45 * head
    parts = [
        ellipsoid(main, (0.92 * wide, wide, tall), (0, 0, tall)),
        ellipsoid(LINEN, (0.8 * wide, 0.78 * wide, 0.8 * tall), (0.24 * wide, 0, 0.92 * tall)),
        sphere(main, head, (0, 0, z)),
        tube(BEAK, [(0.8 * head, 0, z - 0.06), (head + 0.24, 0, z - 0.12)], [0.15, 0.06]),
        *eyes(0.58 * head, 0.66 * head, z + 0.3 * head, 0.13, 50),
    ]
    for side in (-1, 1):
        at = 0, side * (wide + 0.1), 1.05 * tall
        parts.append(ellipsoid(main, (0.2, 0.09, 0.45 * tall), at, turn=turned(x=side * rng.uniform(20, 50))))
        parts.append(ellipsoid(BEAK, (0.26, 0.17, 0.08), (0.22, side * 0.2, 0.06)))
    return parts


def fish(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    long, tall, wide = _vary(rng, 0.72, 0.1), _vary(rng, 0.46, 0.15), _vary(rng, 0.26, 0.15)
    tail, fin = _vary(rng, 0.42, 0.15), _vary(rng, 0.3)
    fork = [(0.15, 0), (-tail, 0.95 * tail), (-0.7 * tail, 0), (-tail, -0.95 * tail)]
    back = [(0.4, 0), (-0.1, fin), (-0.45, fin), (-0.32, 0)]
    parts = [
        ellipsoid(main, (long, wide, tall), (0, 0, 0)),
        extrusion(second, fork, 0.1, (-0.9 * long, 0, 0)),
        extrusion(second, back, 0.1, (0, 0, 0.8 * tall)),
        *eyes(0.62 * long, 0.62 * wide, 0.28 * tall, 0.15, 75),
    ]
    for side in (-1, 1):
        at = 0.02, side * (wide + 0.08), -0.3 * tall
        parts.append(ellipsoid(second, (0.2, 0.06, 0.13), at, turn=turned(x=side * 35, y=-20, z=side * -35)))
    return parts


def dog(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    long, thick, leg = _vary(rng, 0.46, 0.15), _vary(rng, 0.27, 0.12), _vary(rng, 0.42)
    head = _vary(rng, 0.31, 0.1)
    z, x = leg + thick, long + 0.14
    top = z + thick + 0.42 * head + 0.1
    parts = [
        tube(main, [(-long, 0, z), (long, 0, z + 0.03)], thick),
        tube(main, [(long, 0, z), (x, 0, top)], 0.2),
        sphere(main, head, (x, 0, top)),
        tube(main, [(x + 0.12, 0, top - 0.09), (x + head + 0.13, 0, top - 0.12)], [0.19, 0.15]),
        sphere(PUPIL, 0.085, (x + head + 0.26, 0, top - 0.06), solid=False),
        tube(main, [(-long - 0.1, 0, z + 0.1), (-long - 0.42, 0, z + 0.5)], [0.09, 0.06]),
        *eyes(x + 0.6 * head, 0.62 * head, top + 0.36 * head, 0.12, 45),
    ]
    for side in (-1, 1):
        at = x - 0.06, side * (head + 0.03), top + 0.02
        parts.append(ellipsoid(second, (0.15, 0.09, 0.28), at, turn=turned(x=side * 12)))
        for front in (-0.85, 0.85):
            foot = front * long, side * 0.6 * thick, 0.1
            parts.append(tube(main, [foot, (foot[0], foot[1], z)], 0.115))
    return parts


def snowman(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    low, middle, head = _vary(rng, 0.55, 0.1), _vary(rng, 0.41, 0.1), _vary(rng, 0.3, 0.1)
    z1 = 1.75 * low + 0.6 * middle
    z2 = z1 + 0.75 * middle + 0.65 * head
    brim, tall, top = _vary(rng, 0.36, 0.12), _vary(rng, 0.34), z2 + 0.72 * head
    parts = [
        sphere(main, low, (0, 0, 0.9 * low)),
        sphere(main, middle, (0, 0, z1)),
        sphere(main, head, (0, 0, z2)),
        tube(CARROT, [(0.9 * head, 0, z2 - 0.06), (head + 0.34, 0, z2 - 0.09)], [0.11, 0.05]),
        cylinder(second, brim, 0.07, (0, 0, top)),
        cylinder(second, 0.66 * brim, tall, (0, 0, top)),
        *(sphere(PUPIL, 0.085, (0.74 * head, side * 0.6 * head, z2 + 0.28 * head), solid=False) for side in (-1, 1)),
    ]
    for lift in (-0.25, 0.35):
        at = middle * math.cos(lift), 0, z1 + middle * math.sin(lift)
        parts.append(sphere(PUPIL, 0.09, at, solid=False))
    for side in (-1, 1):
        arm = [(0, side * 0.8 * middle, z1), (0.1, side * (middle + 0.45), z1 + rng.uniform(-0.1, 0.4))]
        parts.append(tube(WOOD * 0.7, arm, 0.065))
    return parts


def robot(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    wide, tall, deep = _vary(rng, 0.7, 0.12), _vary(rng, 0.68, 0.12), _vary(rng, 0.42, 0.12)
    leg, size = _vary(rng, 0.4), _vary(rng, 0.46, 0.1)
    chest, z = leg + tall / 2, leg + tall + 0.08 + size / 2
    parts = [
        box(main, (deep, wide, tall), (0, 0, chest), rounding=0.05),
        cylinder(STEEL, 0.12, 0.12, (0, 0, leg + tall - 0.02)),
        box(second, (size, 1.15 * size, size), (0, 0, z), rounding=0.06),
        box(STEEL, (0.06, 0.6 * wide, 0.4 * tall), (deep / 2, 0, chest + 0.05), rounding=0.02),
        tube(STEEL, [(0, 0, z), (0, 0, z + size / 2 + 0.2)], 0.04),
        sphere(np.array(COLORS["red"]), 0.085, (0, 0, z + size / 2 + 0.24)),
        box(PUPIL, (0.05, 0.5 * size, 0.07), (size / 2, 0, z - 0.13), solid=False),
    ]
    for side in (-1, 1):
        hand = 0.05, side * (wide / 2 + 0.26), leg + 0.1 * tall
        parts.append(sphere(BULB, 0.1, (size / 2, side * 0.27 * size, z + 0.08)))
        parts.append(box(main, (0.24, 0.22, leg + 0.1), (0, side * 0.27 * wide, leg / 2), rounding=0.03))
        parts.append(tube(main, [(0, side * (wide / 2 + 0.1), leg + 0.82 * tall), hand], 0.11))
        parts.append(sphere(STEEL, 0.15, hand))
    return parts


# Buildings and vehicles


def house(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    deep, wide, tall = _vary(rng, 0.95, 0.15), _vary(rng, 1.1, 0.15), _vary(rng, 0.72, 0.15)
    rise, eave, thick = _vary(rng, 0.58), 0.12, 0.15
    edge, low = wide / 2 + eave, tall - 2 * rise / wide * eave
    gable = [(-wide / 2, 0), (wide / 2, 0), (wide / 2, tall), (0, tall + rise), (-wide / 2, tall)]
    roof = [
        (-edge, low),
        (0, tall + rise),
        (edge, low),
        (edge, low + thick),
        (0, tall + rise + thick),
        (-edge, low + thick),
    ]
    across, front = turned(z=90), deep / 2
    door = rng.uniform(-0.22, 0.22) * wide
    window = door + (0.38 if door < 0 else -0.38) * wide
    parts = [
        extrusion(main, gable, deep, turn=across),
        extrusion(second, roof, deep + 0.2, turn=across),
        box(WOOD * 0.8, (0.06, 0.24, 0.46), (front, door, 0.23)),
        box(GLASS, (0.06, 0.24, 0.24), (front, window, 0.42)),
    ]
    for side in (-1, 1):
        parts.append(box(GLASS, (0.3, 0.06, 0.24), (0, side * wide / 2, 0.42)))
    if rng.random() < 0.5:
        at = -0.15, rng.choice([-1, 1]) * 0.25 * wide, tall + 0.5 * rise + 0.22
        parts.append(box(np.array([0.55, 0.3, 0.24]), (0.2, 0.2, 0.55), at))
    return parts


def castle(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    half, wall, tower = _vary(rng, 0.52, 0.1), _vary(rng, 0.5), _vary(rng, 0.85, 0.15)
    radius, rise = _vary(rng, 0.2, 0.12), _vary(rng, 0.45)
    parts = [box(main, (2 * half, 2 * half, wall), (0, 0, wall / 2))]
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        parts.append(cylinder(main, radius, tower, (x * half, y * half, 0)))
        parts.append(cylinder(second, 1.3 * radius, rise, (x * half, y * half, tower - 0.02), top=0))
    if rng.random() < 0.5:
        parts.append(cylinder(main, 1.3 * radius, tower + 0.3))
        parts.append(cylinder(second, 1.65 * radius, 1.2 * rise, (0, 0, tower + 0.28), top=0))
    arch = [(0.16 * math.cos(a), 0.22 + 0.16 * math.sin(a)) for a in np.linspace(0, math.pi, 9)]
    parts.append(extrusion(WOOD * 0.7, [(-0.16, 0), (0.16, 0), *arch], 0.08, (half, 0, 0), turn=turned(z=90)))
    return parts


def rocket(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    radius, tall, nose = _vary(rng, 0.33, 0.12), _vary(rng, 1.0, 0.15), _vary(rng, 0.55)
    fins, reach = 4, _vary(rng, 0.4)
    body = [(0, 0), (0.72 * radius, 0), (radius, 0.4 * tall), (0.92 * radius, tall), (0, tall)]
    fin = [(0.5 * radius, 0.1), (radius + reach, -0.2), (radius + reach, 0.12), (0.9 * radius, 0.52)]
    parts = [
        lathe(main, body),
        lathe(second, [(0, tall), *_dome(0.92 * radius, tall, tall + nose)]),
        cylinder(TIRE * 2, 0.5 * radius, 0.15, (0, 0, -0.1)),
        sphere(STEEL, 0.19, (0.82 * radius, 0, 0.7 * tall)),
        sphere(GLASS, 0.15, (0.82 * radius + 0.07, 0, 0.7 * tall), solid=False),
    ]
    for number in range(fins):
        parts.append(extrusion(second, fin, 0.14, turn=turned(z=360 * (number + 0.5) / fins)))
    return parts


def car(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    long, wide, low = _vary(rng, 1.6, 0.1), _vary(rng, 0.74, 0.1), _vary(rng, 0.34, 0.12)
    base, cabin, middle = _vary(rng, 0.2, 0.1), _vary(rng, 0.3, 0.15), rng.uniform(-0.16, -0.03)
    a, b, top = 0.27 * long, 0.18 * long, base + low
    glass = [(middle - a, 0), (middle + a, 0), (middle + b, cabin), (middle - b, cabin)]
    parts = [
        box(second, (2 * b + 0.06, 0.88 * wide, 0.11), (middle, 0, top + cabin + 0.03), rounding=0.05),
        box(main, (long, wide, low), (0, 0, base + low / 2), rounding=0.1),
        extrusion(GLASS, glass, 0.84 * wide, (0, 0, top - 0.01)),
    ]
    for side in (-1, 1):
        for end in (-1, 1):
            y = side * 0.41 * wide
            parts.append(tube(main, [(middle + end * a, y, top), (middle + end * b, y, top + cabin)], 0.045))
        parts.append(sphere(BULB, 0.085, (long / 2, side * 0.32 * wide, base + 0.6 * low)))
        parts.append(sphere(np.array([0.75, 0.05, 0.05]), 0.07, (-long / 2, side * 0.34 * wide, base + 0.6 * low)))
        for x in (-0.3, 0.3):
            parts += wheel(TIRE, base, 0.16, (x * long, side * (wide / 2 - 0.03), base))
    return parts


def train(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    long, radius, small = _vary(rng, 0.95, 0.12), _vary(rng, 0.27, 0.1), _vary(rng, 0.17, 0.1)
    cab, stack = _vary(rng, 0.72, 0.1), _vary(rng, 0.36)
    base, front, wide, back = 0.3, long / 2 + 0.2, 2.2 * radius, -long / 2 - 0.02
    z, lengthwise = base + radius + 0.06, turned(y=90)
    pipe = [(0, 0), (0.1, 0), (0.1, 0.6 * stack), (0.17, stack), (0, stack)]
    parts = [
        box(main, (long + 0.55, wide, 0.14), (0, 0, base), rounding=0.03),
        cylinder(main, radius, long, (front - long, 0, z), turn=lengthwise),
        cylinder(STEEL, 0.88 * radius, 0.05, (front, 0, z), turn=lengthwise),
        box(main, (0.5, wide, cab), (back, 0, base + cab / 2), rounding=0.03),
        box(second, (0.64, wide + 0.14, 0.11), (back, 0, base + cab + 0.05), rounding=0.04),
        lathe(second, pipe, (front - 0.2, 0, z + radius - 0.05)),
        sphere(second, 0.13, (front - 0.2 - 0.42 * long, 0, z + radius)),
        sphere(BULB, 0.1, (front + 0.06, 0, z), solid=False),
        extrusion(TIRE * 2, [(0, 0), (0.26, 0), (0, 0.2)], wide, (long / 2 + 0.26, 0, base - 0.22)),
    ]
    for side in (-1, 1):
        parts.append(box(GLASS, (0.28, 0.06, 0.24), (back, side * wide / 2, base + 0.68 * cab)))
        for x, size in ((-0.48, 0.26), (0.02, small), (0.42, small)):
            parts += wheel(TIRE, size, 0.12, (x * long, side * (wide / 2 + 0.02), size))
    return parts


def boat(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    long, wide, deep = _vary(rng, 0.8, 0.1), _vary(rng, 0.42, 0.12), _vary(rng, 0.42, 0.15)
    mast, sail = _vary(rng, 1.15, 0.12), _vary(rng, 0.62, 0.12)
    flank = [(long * (0.55 + 0.45 * math.sin(a)), -deep * math.cos(a)) for a in np.linspace(0, math.pi / 2, 9)]
    inner = [(0, -0.15), (0.9 * long, -0.15), (0.93 * long, 0)]
    return [
        lathe(main, [(0, -deep), *flank], inner=inner, stretch=(1, wide / long)),
        ellipsoid(WOOD * 1.2, (0.9 * long, 0.88 * wide, 0.03), (0, 0, -0.15)),
        tube(WOOD, [(0, 0, -0.2), (0, 0, mast + 0.1)], 0.05),
        extrusion(second, [(-0.05, 0.12), (-0.05, mast), (-sail - 0.05, 0.12)], 0.07),
        extrusion(second, [(0.07, 0.12), (0.08 + 0.72 * sail, 0.12), (0.07, 0.85 * mast)], 0.07),
    ]


def airplane(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    long, radius, span = _vary(rng, 0.72, 0.1), _vary(rng, 0.24, 0.12), _vary(rng, 0.78, 0.1)
    chord, sweep = _vary(rng, 0.44, 0.15), rng.uniform(0.0, 0.35)
    body = [(-long, 0, 0.07), (-0.4 * long, 0, 0), (0.6 * long, 0, 0), (long, 0, -0.04)]
    wing = np.array([(-chord / 2, 0), (chord / 2, 0), (0.2 * chord - sweep, span), (-0.4 * chord - sweep, span)])
    rudder = [(-0.18, 0), (0.25, 0), (-0.06, 0.46), (-0.28, 0.46)]
    parts = [
        tube(main, body, [0.11, radius, radius, 0.17]),
        extrusion(second, rudder, 0.11, (-long + 0.12, 0, 0.1)),
        ellipsoid(np.array([0.3, 0.45, 0.6]), (0.2, 0.6 * radius, 0.13), (0.66 * long, 0, 0.78 * radius)),
    ]
    for side in (-1, 1):
        flip = np.array([1, side])
        flat = turned(x=90)
        parts.append(extrusion(second, (wing * flip)[::side], 0.12, (0.12, 0, 0), turn=flat))
        parts.append(extrusion(second, (wing * flip * [0.55, 0.48])[::side], 0.1, (-long + 0.14, 0, 0.07), turn=flat))
    return parts


def balloon(rng: np.random.Generator, main: Array, second: Array) -> list[Part]:
    radius, drop, size = _vary(rng, 0.66, 0.08), _vary(rng, 0.46), _vary(rng, 0.37, 0.12)
    mouth, low = 0.26, math.radians(-42)
    neck = radius * math.sin(low) - 0.35
    globe = [(radius * math.cos(a), radius * math.sin(a)) for a in np.linspace(low, math.pi / 2, 21)]
    floor = neck - drop - size
    parts = [
        lathe(main, [(0, neck), (mouth, neck), *globe[:-1], (0, radius)]),
        box(second, (1.15 * size, 1.15 * size, size), (0, 0, floor + size / 2), rounding=0.05),
    ]
    for x in (-1, 1):
        for y in (-1, 1):
            rope = [(x * 0.5 * size, y * 0.5 * size, floor + size - 0.03), (x * 0.17, y * 0.17, neck + 0.03)]
            parts.append(tube(WOOD * 0.6, rope, 0.045))
    return parts


# fmt: off
CATALOGUE: dict[str, Kind] = {
    "airplane": Kind(build=airplane, natural=("white", "red"), withheld="green",
                     part="with {} wings", part_natural=("red", "gray")),
    "apple": Kind(build=apple, natural=("red", "green"), withheld="blue"),
    "ball": Kind(build=ball, natural=("red", "blue"), withheld="brown",
                 part="with a {} stripe", part_natural=("white", "yellow")),
    "balloon": Kind(build=balloon, natural=("red", "yellow"), withheld="black",
                    part="with a {} basket", part_natural=("brown",)),
    "barrel": Kind(build=barrel, natural=("brown",), withheld="pink"),
    "boat": Kind(build=boat, natural=("red", "blue", "brown"), withheld="purple",
                 part="with a {} sail", part_natural=("white",)),
    "boot": Kind(build=boot, natural=("brown", "black"), withheld="cyan",
                 part="with a {} sole", part_natural=("black", "white")),
    "bottle": Kind(build=bottle, natural=("green", "brown"), withheld="red",
                   part="with a {} cap", part_natural=("red", "white")),
    "box": Kind(build=gift, natural=("red", "white"), withheld="gray",
                part="with a {} ribbon", part_natural=("yellow", "red")),
    "cactus": Kind(build=cactus, natural=("green",), withheld="yellow",
                   part="in a {} pot", part_natural=("orange", "brown")),
    "car": Kind(build=car, natural=("red", "blue"), withheld="orange",
                part="with a {} roof", part_natural=("white", "black")),
    "castle": Kind(build=castle, natural=("gray",), withheld="white",
                   part="with {} roofs", part_natural=("blue", "red")),
    "chair": Kind(build=chair, natural=("brown",), withheld="purple",
                  part="with a {} seat", part_natural=("red", "brown")),
    "crown": Kind(build=crown, natural=("yellow",), withheld="blue",
                  part="with {} gems", part_natural=("red", "blue")),
    "dog": Kind(build=dog, natural=("brown", "white"), withheld="cyan",
                part="with {} ears", part_natural=("brown", "black")),
    "donut": Kind(build=donut, natural=("pink", "brown"), withheld="green"),
    "duck": Kind(build=duck, natural=("yellow",), withheld="purple"),
    "fish": Kind(build=fish, natural=("orange", "blue"), withheld="gray",
                 part="with {} fins", part_natural=("yellow", "orange")),
    "flower": Kind(build=flower, natural=("red", "yellow", "pink"), withheld="orange",
                   part="in a {} pot", part_natural=("brown", "orange")),
    "guitar": Kind(build=guitar, natural=("brown", "red"), withheld="yellow",
                   part="with a {} neck", part_natural=("black", "brown")),
    "hat": Kind(build=hat, natural=("black", "brown"), withheld="green",
                part="with a {} band", part_natural=("red", "white")),
    "house": Kind(build=house, natural=("white", "yellow"), withheld="blue",
                  part="with a {} roof", part_natural=("red", "brown")),
    "ice cream": Kind(build=ice_cream, natural=("pink", "white", "brown"), withheld="gray",
                      part="in a {} cone", part_natural=("brown", "orange")),
    "lamp": Kind(build=lamp, natural=("black", "white"), withheld="red",
                 part="with a {} shade", part_natural=("yellow", "white")),
    "mug": Kind(build=mug, natural=("white", "blue"), withheld="orange"),
    "mushroom": Kind(build=mushroom, natural=("red", "brown"), withheld="cyan",
                     part="with a {} stem", part_natural=("white",)),
    "penguin": Kind(build=penguin, natural=("black", "blue"), withheld="pink"),
    "robot": Kind(build=robot, natural=("gray", "white"), withheld="brown",
                  part="with a {} head", part_natural=("gray", "red")),
    "rocket": Kind(build=rocket, natural=("white", "red"), withheld="yellow",
                   part="with {} fins", part_natural=("red", "blue")),
    "snowman": Kind(build=snowman, natural=("white",), withheld="orange",
                    part="with a {} hat", part_natural=("black", "blue")),
    "sofa": Kind(build=sofa, natural=("red", "gray"), withheld="white",
                 part="with {} cushions", part_natural=("white", "gray")),
    "table": Kind(build=table, natural=("brown",), withheld="black"),
    "teapot": Kind(build=teapot, natural=("white", "blue"), withheld="brown",
                   part="with a {} lid", part_natural=("red", "blue")),
    "train": Kind(build=train, natural=("red", "green"), withheld="white",
                  part="with a {} roof", part_natural=("black",)),
    "tree": Kind(build=tree, natural=("green",), withheld="black",
                 part="with a {} trunk", part_natural=("brown",)),
    "umbrella": Kind(build=umbrella, natural=("red", "yellow"), withheld="pink",
                     part="with a {} handle", part_natural=("brown", "black")),
}
# fmt: on
"""Kinds by noun."""
CARRIED = ("apple", "ball", "bottle", "cactus", "crown", "donut", "duck", "hat", "mug", "penguin", "robot", "teapot")
"""Kinds that can stand on another object."""
SUPPORTS = ("barrel", "car", "chair", "table")
"""Kinds on which another object can stand, on top of the first part of their recipe."""
