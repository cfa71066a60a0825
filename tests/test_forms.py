"""The table of words, and the nearest known form of a sentence."""

from __future__ import annotations

import pytest

from gscfd.toybox.forms import FORMS, nearest_form, word_table
from gscfd.toybox.kinds import CATALOGUE, COLORS
from gscfd.toybox.words import parse_caption


def test_the_table_names_everything() -> None:
    lines = word_table().splitlines()
    for name, kind in CATALOGUE.items():
        assert any(line.startswith(f"  {name}") and kind.part.format("COLOR") in line for line in lines)
    assert any(all(color in line for color in COLORS) for line in lines)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("example", [example for _, example in FORMS])
def test_known_forms_need_no_other(example: str) -> None:
    assert parse_caption(example) is not None
    assert nearest_form(example) is None
    assert nearest_form(f"{example}, front view") is None


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("a duck yellow", "a yellow duck"),
        ("red white mushroom", "a white mushroom"),
        ("a red house on a brown table", "a red house with a brown roof"),
        ("a brown table with a yellow duck", "a yellow duck"),
        ("a red duck and a blue table", "a red duck on a blue table"),
        ("duck duck", "a duck"),
    ],
)
def test_the_nearest_form(text: str, near: str) -> None:
    assert nearest_form(text) == near


def test_a_text_without_a_kind_gets_one() -> None:
    near = nearest_form("a red")
    assert near is not None and near.startswith("a red ")
