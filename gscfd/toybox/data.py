"""Training data of the toybox teachers: captioned renders of the procedural world, generated on demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gscfd.cameras import azimuth_elevation, mvdream_matrices, orbit, sample_group
from gscfd.pictures import random_background
from gscfd.prompts import view_words
from gscfd.rasterize import rasterization
from gscfd.toybox.objects import ToyObject, sample_object
from gscfd.types import Cameras

FOV = (30.0, 45.0)
RADIUS = (1.0, 1.1)


@dataclass
class Group:
    """Views of one object over one background."""

    images: Tensor
    """[V, 3, H, W] in [0, 1]."""
    cameras: Tensor
    """[V, 16] MVDream camera matrices."""
    captions: tuple[str, ...]
    """True captions, most specific first."""
    view_words: list[str]
    """For each view, its view words: "front view", ..."""


def colors_and_opacity(thing: ToyObject, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Renders the object; returns colors times opacity [V, H, W, 3] and opacity [V, H, W, 1]."""
    colors, alphas, _ = rasterization(
        torch.from_numpy(thing.means),
        torch.from_numpy(thing.quats),
        torch.from_numpy(thing.scales),
        torch.from_numpy(thing.opacities),
        torch.from_numpy(thing.colors),
        cameras.viewmats,
        cameras.Ks,
        cameras.width,
        cameras.height,
        render_mode="RGB",
    )
    return colors, alphas


def render_object(thing: ToyObject, cameras: Cameras, background: Tensor) -> Tensor:
    """Renders the object over a background [3]; returns [V, 3, H, W] in [0, 1]."""
    colors, alphas = colors_and_opacity(thing, cameras)
    return (colors + (1 - alphas) * background).clamp(0, 1).permute(0, 3, 1, 2).contiguous()


def spacing_for(size: int) -> float:
    """Returns the distance between surface samples, about one pixel of an image `size` pixels wide."""
    return min(0.035, 2.2 / size)


def free_views(views: int, size: int, generator: torch.Generator) -> Cameras:
    """Returns independent cameras for the single-view teacher; one in ten looks down from high above."""
    u = torch.rand(4, views, generator=generator)
    azimuth = 360.0 * u[0] - 180.0
    elevation = torch.where(u[1] < 0.1, 62.0 + 230.0 * u[1], -15.0 + 65.0 * (u[1] - 0.1) / 0.9)
    fov = FOV[0] + (FOV[1] - FOV[0]) * u[2]
    distance = (RADIUS[0] + (RADIUS[1] - RADIUS[0]) * u[3]) / torch.tan(torch.deg2rad(fov) / 2)
    return orbit(azimuth, elevation, distance, fov, size, size)


def make_group(seed: int, *, views: int, size: int, grouped: bool, allow_withheld: bool = False) -> Group:
    """Returns one training example.

    grouped: views at equal azimuth steps (multi-view teacher), otherwise independent views. allow_withheld: include the
    (kind, color) pairs that the teachers must never see; the scorer, which judges them, knows these pairs.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([7, seed]).generate_state(1)[0]))
    thing = sample_object(seed, spacing=spacing_for(size), allow_withheld=allow_withheld)
    if grouped:
        cameras = sample_group(views, elevation=(0, 30), fov=FOV, radius=RADIUS, size=size, generator=generator)
    else:
        cameras = free_views(views, size, generator)
    azimuth, elevation = azimuth_elevation(cameras)
    return Group(
        images=render_object(thing, cameras, random_background(generator)),
        cameras=mvdream_matrices(cameras),
        captions=thing.captions,
        view_words=[view_words(a, e) for a, e in zip(azimuth.tolist(), elevation.tolist(), strict=True)],
    )
