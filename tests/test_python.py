"""The Python interface: splats that show and save themselves, and `generate` with progress, steps and quality."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gscfd
from gscfd.config import Config, load_preset
from gscfd.distil.pipeline import with_steps
from gscfd.errors import UserError
from gscfd.export.outlets import Page
from gscfd.gaussians import Gaussians, ball


@pytest.fixture
def splat() -> Gaussians:
    return ball(60, radius=0.5, opacity=0.9, generator=torch.Generator().manual_seed(0))


def test_a_splat_says_what_it_is_and_has_a_picture(splat: Gaussians) -> None:
    assert repr(splat) == "Gaussians(60, sh_degree=0, device='cpu')"
    bundle = splat._repr_mimebundle_()
    assert bundle["text/plain"] == repr(splat)
    with Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))) as image:
        assert image.size == (320, 320) and len(set(image.convert("L").tobytes())) > 10


@pytest.mark.parametrize("ending", ["ply", "spz", "glb", "html", "compressed.ply"])
def test_the_ending_of_the_name_chooses_the_format(splat: Gaussians, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"splat.v2.{ending}"
    splat.save(path)
    assert path.stat().st_size > 500
    splat.save(path)  # replaced, as by other libraries


def test_a_saved_splat_loads_again_from_its_file_and_its_folder(splat: Gaussians, tmp_path: Path) -> None:
    splat.save(tmp_path / "splat.ply")
    for place in (tmp_path, tmp_path / "splat.ply", str(tmp_path)):
        assert torch.equal(gscfd.load(place).means, splat.means)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.stl", {}, "path: expected a name that ends in .ply"),
        ("none/a.spz", {}, "path: cannot write"),
        ("a.spz", {"axis": "y-up"}, "axis"),
        ("a.spz", {"alpha": True}, "alpha: expected only with"),
        ("a.spz", {"axes": "blender"}, "axes: expected one of"),
        ("a.spz", {"source_axes": None}, "source-axes: expected one of"),
        ("a.spz", {"sh_degree": 5}, "sh-degree: expected one of"),
        ("a.spz", {"scale": "2"}, "options: "),
        ("a.png", {"background": (1, 1)}, "background: expected three numbers"),
        ("a.png", {"frames": 2.5}, "frames: expected a whole number, got 2.5"),
    ],
)
def test_a_wrong_way_to_save_is_a_user_error(
    splat: Gaussians, tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        splat.save(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_picture_of_a_splat_out_of_view_is_saved_with_a_warning(
    splat: Gaussians, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, warned in (({}, False), ({"scale": 100.0}, True)):
        splat.save(tmp_path / "a.png", frames=1, size=16, **options)
        assert ("warning: source: expected an object in the ball" in capsys.readouterr().err) == warned


def test_outside_a_notebook_the_browser_shows_the_splat(
    splat: Gaussians, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.delitem(__import__("sys").modules, "ipykernel", raising=False)
    assert splat.show() is None
    path = Path(capsys.readouterr().out.strip())
    assert opened == [path.as_uri()] and "<canvas" in path.read_text()


def test_in_a_notebook_the_cell_shows_the_splat(splat: Gaussians, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ipykernel", __import__("types").ModuleType("ipykernel"))
    page = splat.show()
    assert isinstance(page, Page) and "<iframe" in page._repr_html_() and "&lt;canvas" in page._repr_html_()


def test_steps_and_quality_keep_the_proportions_of_the_stages() -> None:
    config = load_preset("toybox")
    assert with_steps(config, None, "normal") == config
    few = with_steps(config, 30, "normal")
    assert (few.coarse.steps, few.refine.steps, few.polish.steps) == (30, 0, 3)
    assert with_steps(config, None, "high").coarse.steps == 600
    with pytest.raises(UserError, match="steps: expected at least 1, got 0"):
        with_steps(config, 0, "normal")


def test_an_unknown_quality_is_named() -> None:
    best: Any = "best"
    with pytest.raises(UserError, match="quality: expected draft or normal or high, got 'best'"):
        gscfd.generate("a yellow duck", quality=best)
    with pytest.raises(UserError, match="steps"):
        gscfd.generate("a yellow duck", quality="draft", steps=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 5}, "prompt: expected a text, got 5"),
        ({"prompt": ["a mug"]}, "prompt: expected a text"),
        ({"seed": "3"}, "seed: expected a whole number, got '3'"),
        ({"seed": 1.5}, "seed: expected a whole number"),
        ({"steps": 2.5}, "steps: expected a whole number, got 2.5"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({"preset": Config()}, "preset: expected the name of a preset or the path"),
        ({"preset": Path("mine.yaml")}, "preset: .* got 'mine.yaml'"),
        ({"config": "toybox"}, "config: expected a gscfd.Config, got 'toybox'"),
        ({"init": 3}, "init: expected the path of a splat or mesh, got 3"),
        ({"seed": np.int64(-1), "steps": np.int32(3)}, r"seed: expected a value in \[0, 2\^63\)"),
    ],
)
def test_a_value_of_another_type_is_a_user_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gscfd.generate(**{"prompt": "a mug", **arguments})


def test_generate_shows_its_progress_unless_it_is_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    first = gscfd.generate("a yellow duck", steps=1)
    assert "coarse" in capsys.readouterr().err
    second = gscfd.generate("a yellow duck", steps=1, progress=False)
    assert capsys.readouterr().err == "" and torch.equal(first.means, second.means)
