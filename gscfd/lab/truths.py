"""Splats against true objects of their prompt, pixel by pixel: a judge that no network can fool."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.lab.metrics import psnr, speckle
from gscfd.lab.references import BACKGROUND
from gscfd.toybox.data import render_object
from gscfd.toybox.truth import true_objects

OBJECTS = 100
"""True objects of a prompt among which the nearest is looked for."""
FRESH = 8
"""Further ones, which show how near an object can be that is none of them."""
VIEWS = 8
"""Of each, from all sides."""
SIZE = 128
"""Most pixels of a view, both ways, whatever size the networks look at: speckle is told in pixels."""
PROMPTS = 8
"""Prompts whose views are kept, 40 MB each at 128 pixels."""


@dataclass(frozen=True)
class Truths:
    """Views of true objects of one prompt, over the gray behind everything that is judged."""

    known: Tensor
    """[N, V, 3, H, W] uint8."""
    fresh: Tensor
    """[M, V, 3, H, W] uint8, of other objects."""

    def nearest(self, views: Tensor) -> float:
        """PSNR in dB of the views [V, 3, H, W] in [0, 1] against the known object that is nearest to them."""
        return max(psnr(views, known / 255) for known in self.known)

    @cached_property
    def ceiling(self) -> float:
        """Mean of `nearest` of the fresh objects."""
        return sum(self.nearest(fresh / 255) for fresh in self.fresh) / len(self.fresh)

    @cached_property
    def speckle(self) -> float:
        """Mean speckle of the fresh objects."""
        return sum(speckle(fresh / 255, background=BACKGROUND) for fresh in self.fresh) / len(self.fresh)


@lru_cache(maxsize=PROMPTS)
def truths_of(prompt: str, size: int) -> Truths | None:
    """True objects of the prompt in views of `size` pixels, both ways; None: the toybox has too few."""
    cameras, gray = turntable(VIEWS, size=size), torch.full((3,), BACKGROUND)
    things = list(itertools.islice(true_objects(prompt, OBJECTS + FRESH), OBJECTS + FRESH))
    if len(things) < 2 * FRESH:
        return None
    views = torch.stack([(render_object(thing, cameras, gray) * 255).round().to(torch.uint8) for thing in things])
    return Truths(views[:-FRESH], views[-FRESH:])
