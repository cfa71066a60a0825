"""Text input of the teachers: suffixes, view words, negative prompts and Perp-Neg's view mixing."""

from __future__ import annotations

import math
from dataclasses import dataclass

VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
OVERHEAD_ELEVATION = 60.0


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Prompt conventions of a family of teachers."""

    negative: str = ""
    """Default text of the unconditional branch."""
    suffix: str = ""
    """Text appended to every prompt."""
    view_words: bool
    """Whether the prompt describes the view in words; multi-view teachers receive the camera instead."""
    repaired: bool = False
    """Whether texts are repaired as OpenCLIP's tokenizer, on which the teacher was trained, repairs them."""


TOYBOX_MULTIVIEW = Wording(view_words=False)
TOYBOX_SINGLEVIEW = Wording(view_words=True)
# Negative prompts from CFD's public configurations.
MVDREAM = Wording(
    negative=(
        "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
        "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
        "bad proportions"
    ),
    suffix=", 3d asset",
    view_words=False,
    repaired=True,
)
MV_ADAPTER = Wording(negative="watermark, ugly, deformed, noisy, blurry, low contrast", view_words=False)
"""Wording of MV-Adapter's public demos."""
SINGLE_VIEW = Wording(
    negative=(
        "lack details, ugly, oversmoothed, bad structure, out of focus, blurry, cartoon, oversaturated, foggy, hazy, "
        "bad anatomy, malformed, pixelated obscure, unnatural colors, dull, unclear, lowres, low quality, deformed, "
        "dehydrated"
    ),
    view_words=True,
)
"""Wording of Stable Diffusion, also used for the other single-view families."""


def as_text(argument: str) -> str:
    """Returns an argument of the command line as the text that was typed, in UTF-8, whatever the locale's encoding:
    bytes that this lacks reach Python as lone surrogates."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def with_suffix(prompt: str, suffix: str) -> str:
    """Returns the prompt with the suffix appended unless it already ends with it."""
    return prompt if prompt.endswith(suffix) else prompt + suffix


def turned(azimuth: float) -> float:
    """Returns the angle from the front in degrees, in [0, 180]."""
    return abs((azimuth + 180.0) % 360.0 - 180.0)


def view_words(azimuth: float, elevation: float) -> str:
    """Returns "overhead view" above 60 degrees of elevation, "front view" within 30 degrees of the front, "back view"
    within 30 degrees of the back, and "side view" otherwise."""
    if elevation > OVERHEAD_ELEVATION:
        return "overhead view"
    if turned(azimuth) < 30:
        return "front view"
    return "back view" if turned(azimuth) > 150 else "side view"


def join_words(prompt: str, words: str) -> str:
    """Returns the prompt followed by view words, as in the single-view teachers' training: "a mug, front view"."""
    return f"{prompt}, {words}"


def with_view(prompt: str, azimuth: float, elevation: float) -> str:
    """Returns the prompt with the view words of a camera whose angles are in degrees."""
    return join_words(prompt, view_words(azimuth, elevation))


@dataclass(frozen=True)
class ViewMix:
    """View words of one view: a mix to move toward, and views to push away from (Perp-Neg)."""

    positive: tuple[tuple[str, float], ...]
    """(view words, share) of each embedding in the mix; the shares sum to 1."""
    negatives: tuple[tuple[str, float], ...] = ()
    """(view words, weight) of each subtracted direction; weights are at most 0."""


def falling(r: float, a: float, b: float, c: float) -> float:
    """Returns Perp-Neg's f(r) = a exp(-b r) + c."""
    return a * math.exp(-b * r) + c


def perp_neg_mix(azimuth: float, elevation: float) -> ViewMix:
    """Returns Perp-Neg's mix for a camera in degrees (Armandpour et al. 2023, section 4; threestudio's constants).

    Between front and side, r is 1 at the front, and the negatives are front and side with weights -f_fs(r) and
    -f_sf(1 - r). Between side and back, r is 1 at the side, and the negatives are side and front with weights -f_sb(r)
    and -f_fsb(r). From overhead, the negatives have weight 0.
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
