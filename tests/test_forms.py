"""The table of words, and the nearest known form of a sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gscfd.config import Config
from gscfd.distil.preflight import preflight, warn_of_form
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


def test_a_prompt_of_an_unknown_form_is_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A run is checked before the teachers' libraries are loaded, and with them."""
    warn_of_form.cache_clear()
    config = Config(prompt="a duck yellow", device="cpu")
    for _ in range(2):
        preflight(config)
    assert capsys.readouterr().err.count("the nearest known one is 'a yellow duck'") == 1
    preflight(replace(config, prompt="duck a yellow"))
    assert "duck a yellow" in capsys.readouterr().err, "the control: another prompt"


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
