"""The toybox language: captions, their words and their parser."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from gscfd.errors import UserError
from gscfd.prompts import VIEW_WORDS
from gscfd.toybox.kinds import CATALOGUE, COLORS, SUPPORTS


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Content of a caption; None for details it leaves open."""

    kind: str
    color: str | None = None
    part_color: str | None = None
    """Color of the kind's second part."""
    on_kind: str | None = None
    """Kind of the object below it."""
    on_color: str | None = None


def write_caption(caption: Caption) -> str:
    """Writes the caption as text: "a red mushroom with a white stem", "a yellow duck on a brown table"."""
    text = _noun_phrase(caption.kind, caption.color)
    if caption.part_color:
        text += " " + with_articles(CATALOGUE[caption.kind].part.format(caption.part_color))
    if caption.on_kind:
        text += " on " + _noun_phrase(caption.on_kind, caption.on_color)
    return text


def parse_caption(text: str) -> Caption | None:
    """Parses a phrase of the grammar, regardless of case, spaces and articles; view words are ignored.

    Returns None if the text says something outside the grammar.
    """
    text, _, view = text.partition(",")
    if " ".join(_split(view)) not in ("", *VIEW_WORDS):
        return None
    words = [word for word in _split(text) if word not in ("a", "an")]
    color, kind, rest = _read_noun(words)
    if kind is None:
        return None
    if not rest:
        return Caption(kind=kind, color=color)
    if rest[0] == "on":
        on_color, on_kind, rest = _read_noun(rest[1:])
        if rest or on_kind not in SUPPORTS:
            return None
        return Caption(kind=kind, color=color, on_kind=on_kind, on_color=on_color)
    phrase = [word for word in _split(CATALOGUE[kind].part) if word not in ("a", "an")]
    if len(rest) == 3 and rest[1] in COLORS and [rest[0], rest[2]] == phrase:
        return Caption(kind=kind, color=color, part_color=rest[1])
    return None


def vocabulary() -> list[str]:
    """Returns all words of the captions and view phrases, and the comma, sorted."""
    phrases = [*CATALOGUE, *COLORS, *VIEW_WORDS, *(kind.part for kind in CATALOGUE.values())]
    return sorted({",", "a", "an", "on"}.union(*(_split(phrase) for phrase in phrases)))


def unknown_words(text: str) -> list[tuple[str, str]]:
    """Returns the words of the text that occur in no caption, in order, each with the nearest known word."""
    known = vocabulary()
    unknown = dict.fromkeys(word for word in _split(text) if word not in known)
    return [(word, nearest(word, known)[0]) for word in unknown]


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Returns the `count` known words that are spelled most like the given one."""
    return difflib.get_close_matches(word.lower(), list(known), n=count, cutoff=0.0)


def with_articles(text: str) -> str:
    """Returns the text with every "a" before a vowel replaced by "an"."""
    return re.sub(r"\ba(?= [aeiou])", "an", text)


def _noun_phrase(kind: str, color: str | None) -> str:
    return with_articles(f"a {color} {kind}" if color else f"a {kind}")


def _read_noun(words: list[str]) -> tuple[str | None, str | None, list[str]]:
    """Returns the color, the kind and the remaining words."""
    color = words[0] if words and words[0] in COLORS else None
    words = words[1:] if color else words
    for length in (2, 1):
        if " ".join(words[:length]) in CATALOGUE:
            return color, " ".join(words[:length]), words[length:]
    return color, None, words


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+|,", text.lower())


MOST_NAMED, MOST_LETTERS = 5, 40
"""Number of unknown words that an error names, and of letters of each."""


COMMANDS = (
    f"gscfd train --list-words shows the {len(vocabulary())} words they know. Free text needs large teachers, such as "
    "those of --preset mvdream-sd21 (docs/real.md)"
)
"""What to do about unknown words on the command line."""


def check_words(name: str, text: str, advice: str = COMMANDS) -> None:
    """Raises UserError if the argument `name` contains words that the toybox teachers never saw, or only signs such as
    emoji, which they cannot read. advice: what to do."""
    unknown = unknown_words(text)
    if text.strip() and not _split(text):
        raise UserError(f"{name}: expected words that the toybox teachers know, got {text[:MOST_LETTERS]!r}; {advice}")
    if unknown:
        words = ", ".join(f"{word[:MOST_LETTERS]!r} (nearest: {near!r})" for word, near in unknown[:MOST_NAMED])
        words += f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        raise UserError(f"{name}: the toybox teachers do not know {words}; {advice}")
