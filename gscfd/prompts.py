"""What teachers are told in words: the prompt, its view, what to stay away from, and Perp-Neg's view mixing."""

from __future__ import annotations

import math
from dataclasses import dataclass

VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
OVERHEAD_ELEVATION = 60.0


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a family of teachers wants to be asked."""

    negative: str = ""
    """The text of the unconditional branch where the user gives none."""
    suffix: str = ""
    """What every prompt ends in."""
    view_words: bool
    """Whether the camera is told in words; multi-view teachers read the camera itself."""


TOYBOX_MULTIVIEW = Wording(view_words=False)
TOYBOX_SINGLEVIEW = Wording(view_words=True)
# The negative prompts of CFD's public configurations.
MVDREAM = Wording(
    negative=(
        "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
        "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
        "bad proportions"
    ),
    suffix=", 3d asset",
    view_words=False,
)
SINGLE_VIEW = Wording(
    negative=(
        "lack details, ugly, oversmoothed, bad structure, out of focus, blurry, cartoon, oversaturated, foggy, hazy, "
        "bad anatomy, malformed, pixelated obscure, unnatural colors, dull, unclear, lowres, low quality, deformed, "
        "dehydrated"
    ),
    view_words=True,
)
"""Stable Diffusion's; the other single-view families are given the same."""


def with_suffix(prompt: str, suffix: str) -> str:
    """The prompt ending in the suffix, once."""
    return prompt if prompt.endswith(suffix) else prompt + suffix


def turned(azimuth: float) -> float:
    """Degrees away from the front, in [0, 180]."""
    return abs((azimuth + 180.0) % 360.0 - 180.0)


def view_words(azimuth: float, elevation: float) -> str:
    """ "front view" within 30 degrees of the front, "back view" within 30 of the back, "overhead view" above 60."""
    if elevation > OVERHEAD_ELEVATION:
        return "overhead view"
    if turned(azimuth) < 30:
        return "front view"
    return "back view" if turned(azimuth) > 150 else "side view"


def join_words(prompt: str, words: str) -> str:
    """The prompt followed by view words, as the single-view teachers are trained: "a mug, front view"."""
    return f"{prompt}, {words}"


def with_view(prompt: str, azimuth: float, elevation: float) -> str:
    """The prompt with the view words of a camera in degrees."""
    return join_words(prompt, view_words(azimuth, elevation))


@dataclass(frozen=True)
class ViewMix:
    """What one view asks for: a mix of view words, and other views to push away from (Perp-Neg)."""

    positive: tuple[tuple[str, float], ...]
    """(view words, share) of the embeddings that are mixed; the shares sum to 1."""
    negatives: tuple[tuple[str, float], ...] = ()
    """(view words, weight) of each direction that is subtracted; weights are at most 0."""


def falling(r: float, a: float, b: float, c: float) -> float:
    """Perp-Neg's f(r) = a exp(-b r) + c."""
    return a * math.exp(-b * r) + c


def perp_neg_mix(azimuth: float, elevation: float) -> ViewMix:
    """Perp-Neg's mix for a camera in degrees (Armandpour et al. 2023, section 4; constants of threestudio).

    Between front and side, r = 1 at the front: negatives front and side with -f_fs(r) and -f_sf(1 - r). Between side
    and back, r = 1 at the side: negatives side and front with -f_sb(r) and -f_fsb(r). From overhead, with weight 0.
    """
    if elevation > OVERHEAD_ELEVATION:
        return ViewMix((("overhead view", 1.0),), (("side view", 0.0), ("front view", 0.0)))
    angle = turned(azimuth)
    if angle < 90:
        r = 1 - angle / 90
        front, side = -falling(r, 4, 0.5, -2.426), -falling(1 - r, 4, 0.5, -2.426)
        return ViewMix((("front view", r), ("side view", 1 - r)), (("front view", front), ("side view", side)))
    r = 2 - angle / 90
    side, front = -falling(r, 1, 0.5, -0.606), -falling(r, 1, 0.5, 0.967)
    return ViewMix((("side view", r), ("back view", 1 - r)), (("side view", side), ("front view", front)))
