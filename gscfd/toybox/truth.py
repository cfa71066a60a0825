"""True objects for a prompt, the reference of the toybox's metrics, and the prompts these are computed for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

from gscfd.toybox.objects import ToyObject, sample_object
from gscfd.toybox.words import parse_caption, write_caption

KNOWN_PROMPTS = (
    "a yellow duck",
    "a red mushroom with a white stem",
    "a snowman with a blue hat",
    "a green cactus in an orange pot",
    "a white house with a red roof",
    "a yellow duck on a brown table",
    "a blue mug",
    "a red car",
    "a brown guitar",
    "a purple crown",
)
WITHHELD_PROMPTS = (
    "a purple duck",
    "a cyan mushroom",
    "an orange mug",
    "a purple chair",
    "a pink penguin",
    "a brown teapot",
    "a red lamp",
    "a yellow rocket",
    "a gray fish",
    "a white sofa",
)
"""Pairs of kind and color that the teachers never saw in training."""
TRIES = 1000
SPARSE = 0.3
"""Spacing of objects that are made only to see what they are."""


def true_objects(prompt: str, count: int, *, spacing: float | None = None, tries: int = TRIES) -> Iterator[ToyObject]:
    """Returns up to `count` toybox objects described by the prompt, in any spelling that `parse_caption` reads; none
    for a two-object scene or a text that is not a toybox caption.

    spacing: as in `sample_object`; None: its default. tries: seeds to look at, from 0.
    """
    said = parse_caption(prompt)
    if said is None or said.on_kind is not None:
        return iter(())
    draw, caption = partial(sample_object, kind=said.kind, color=said.color, allow_withheld=True), write_caption(said)
    seeds = (seed for seed in range(tries) if caption in draw(seed, spacing=SPARSE).captions)
    things = (draw(seed) if spacing is None else draw(seed, spacing=spacing) for seed in seeds)
    return itertools.islice(things, count)
