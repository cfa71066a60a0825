"""The sentences that the toybox teachers were trained on: a table of them, and the nearest one to a text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gscfd.toybox.kinds import CARRIED, CATALOGUE, COLORS, SUPPORTS
from gscfd.toybox.words import Caption, nearest, parse_caption, write_caption

FORMS = (
    ("a KIND", "a duck"),
    ("a COLOR KIND", "a yellow duck"),
    ("a KIND with PART", "a mushroom with a white stem"),
    ("a COLOR KIND with PART", "a red mushroom with a white stem"),
    ("a KIND on a KIND", "a yellow duck on a brown table"),
)
"""Every form of sentence, with an example; on a KIND, both may have a color."""


def word_table() -> str:
    """What the teachers know, to be read by people: kinds with their parts, colors, and forms of sentences."""
    width = max(map(len, CATALOGUE))
    kinds = [f"  {name:{width}}  {kind.part.format('COLOR')}".rstrip() for name, kind in sorted(CATALOGUE.items())]
    form_width = max(len(form) for form, _ in FORMS)
    forms = [f"  {form:{form_width}}  {example}" for form, example in FORMS]
    return "\n".join(
        [
            f"Kinds, each with the PART whose color may be named ({len(CATALOGUE)}):",
            *kinds,
            f"Colors ({len(COLORS)}):",
            f"  {', '.join(COLORS)}",
            "Sentences:",
            *forms,
            "What may stand on another object:",
            f"  {', '.join(CARRIED)}",
            "What it may stand on:",
            f"  {', '.join(SUPPORTS)}",
        ]
    )


def nearest_form(text: str) -> str | None:
    """The caption most like a text whose form the teachers never saw; None for a text whose form they know."""
    said = parse_caption(text)
    if said is not None and (said.on_kind is None or said.kind in CARRIED):
        return None
    plain = text.split(",")[0]
    return nearest(plain, [write_caption(caption) for caption in captions_like(plain)])[0]


def captions_like(text: str) -> Iterator[Caption]:
    """Captions made of the kinds and colors in the text; of any kind where it names none."""
    words = text.lower()
    kinds = sorted((kind for kind in CATALOGUE if has(words, kind)), key=words.index) or list(CATALOGUE)
    colors = sorted((color for color in COLORS if has(words, color)), key=words.index)
    for kind in kinds:
        own = next((color for color in colors if has(words, f"{color} {kind}")), next(iter(colors), None))
        others = [color for color in colors if color != own]
        yield Caption(kind=kind, color=own)
        if CATALOGUE[kind].part and others:
            yield Caption(kind=kind, color=own, part_color=others[0])
        for support in SUPPORTS:
            if kind in CARRIED and support in kinds:
                its = next((color for color in others if has(words, f"{color} {support}")), None)
                yield Caption(kind=kind, color=own, on_kind=support, on_color=its)


def has(text: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None
