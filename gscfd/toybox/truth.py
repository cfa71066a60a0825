"""True objects for a prompt, the reference of the toybox's metrics, and the prompts these are computed for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from gscfd.toybox.objects import ToyObject, sample_object
from gscfd.toybox.words import parse_caption

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


def true_objects(prompt: str, count: int) -> Iterator[ToyObject]:
    """Returns toybox objects described by the prompt; none for a two-object scene or a text that is not a toybox
    caption."""
    said = parse_caption(prompt)
    if said is None or said.on_kind is not None:
        return iter(())
    things = (sample_object(s, kind=said.kind, color=said.color, allow_withheld=True) for s in range(TRIES))
    return itertools.islice((thing for thing in things if prompt in thing.captions), count)
