"""The bench of the pipeline with an ideal teacher: its figures, and that the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gscfd import bench
from gscfd.cameras import turntable
from gscfd.distil.pipeline import distil as distil_of
from gscfd.gaussians import Gaussians
from gscfd.lab import pipeline, trials
from gscfd.lab.assets import toybox_assets
from gscfd.lab.metrics import strays
from gscfd.lab.report import Curve, draw_curve
from gscfd.lab.trials import compared, keep, kept, stem_of

# ------------------------------------------------------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def duck() -> Gaussians:
    return toybox_assets("a yellow duck", 1, spacing=0.08)[0].gaussians


def with_floater(splat: Gaussians, place: tuple[float, float, float]) -> Gaussians:
    values = splat.tensors()
    extra = {name: value[:1].clone() for name, value in values.items()}
    extra |= {"means": torch.tensor([place]), "scales": torch.full((1, 3), -3.0)}
    return Gaussians(**{name: torch.cat([values[name], extra[name]]) for name in values})


def test_only_what_is_away_from_the_asset_is_a_floater(duck: Gaussians) -> None:
    def share(splat: Gaussians) -> float:
        cameras = turntable(4, size=64)
        return strays(splat.render(cameras).opacity, duck.render(cameras).opacity)

    assert share(duck) == 0 and share(with_floater(duck, (0.0, 0.0, 0.0))) == 0
    assert share(with_floater(duck, (0.0, 0.0, 0.98))) > 0.005
    nothing = torch.zeros(1, 8, 8, 1)
    assert np.isnan(strays(nothing, nothing))


def test_an_asset_compared_with_itself_is_perfect_and_a_damaged_one_is_not(duck: Gaussians) -> None:
    assets = toybox_assets("a yellow duck", 2, spacing=0.08)
    same = compared(duck, assets, size=64)
    assert same["psnr"] > 60 and same["speckle"] == pytest.approx(1) and same["floaters"] == 0
    values = duck.tensors()
    noise = 0.5 * torch.randn(values["sh0"].shape, generator=torch.Generator().manual_seed(0))
    noisy = compared(with_floater(Gaussians(**{**values, "sh0": values["sh0"] + noise}), (0, 0, 0.98)), assets, size=64)
    assert noisy["psnr"] < 35 and noisy["speckle"] > 1.5 and noisy["floaters"] > 0


# --------------------------------------------------------------------------------------------------------------- bench


def test_a_result_is_kept_for_its_settings_alone(tmp_path: Path) -> None:
    keep(tmp_path / "a" / "x.json", {"steps": (1, 2)}, [1, 2.5])
    assert kept(tmp_path / "a" / "x.json", {"steps": (1, 2)}) == [1, 2.5]
    assert kept(tmp_path / "a" / "x.json", {"steps": (1, 3)}) is None and kept(tmp_path / "gone.json", {}) is None
    (tmp_path / "a" / "x.json").write_text("{")
    assert kept(tmp_path / "a" / "x.json", {"steps": (1, 2)}) is None


def test_every_variant_is_a_valid_change_of_the_default_and_every_curve_is_of_variants() -> None:
    texts = [json.dumps([v.space, v.changes]) for v in pipeline.VARIANTS.values()]
    assert len(set(texts)) == len(texts)
    for variant in pipeline.VARIANTS.values():
        pipeline.config_of(variant, "a duck", 0)
    assert {name for names in pipeline.CURVES.values() for name in names} <= set(pipeline.VARIANTS)


def test_a_curve_is_drawn_with_all_its_points() -> None:
    curve = Curve(title="t", x_title="x", y_title="y", points={"a": (1, 2), "b": (2, 3)}, lines={"l": ["a", "b"]})
    assert draw_curve(curve).startswith(b"\x89PNG") and draw_curve(curve) != draw_curve(replace(curve, lines={}))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One step of each stage, sparse assets, small views; returns the runs made."""
    made: list[str] = []
    few: dict[str, Any] = {
        "init": {"count": 60},
        "coarse": {"steps": 1},
        "polish": {"steps": 1, "fits": 1},
    }
    variants = {"default": pipeline.Variant(changes=few), "pixels": pipeline.Variant("pixels", few)}
    monkeypatch.setattr(pipeline, "VARIANTS", variants)
    monkeypatch.setattr(pipeline, "CURVES", {"spaces": ("default", "pixels")})
    monkeypatch.setattr(pipeline, "SPACING", 0.2)

    def distil(config: Any, teachers: Any, on_step: Any) -> Gaussians:
        made.append(f"{config.guidance} {config.prompt} {config.seed}")
        return distil_of(config, teachers, on_step)

    monkeypatch.setattr(trials, "distil", distil)
    return made


def arguments(out: Path, *more: str) -> Sequence[str]:
    return ["pipeline", "--out", str(out), "--assets", "a yellow duck", *more]


def test_the_bench_makes_its_page_once_and_goes_on_with_more_variants(small: list[str], tmp_path: Path) -> None:
    assert bench.main([*arguments(tmp_path, "--variants", "default")]) == 0
    assert small == ["cfd a yellow duck 0"]
    assert bench.main([*arguments(tmp_path)]) == 0
    assert small == ["cfd a yellow duck 0"] * 2
    page, content = (tmp_path / "report.html").read_text(), json.loads((tmp_path / "report.json").read_text())
    assert [table["title"] for table in content["tables"]] == ["Variants", "Runs"] and "https:" not in page
    assert [row[0] for row in content["tables"][0]["rows"]] == ["default", "pixels"]
    assert bench.main([*arguments(tmp_path)]) == 0
    again = json.loads((tmp_path / "report.json").read_text())
    assert [row[:-1] for row in again["tables"][0]["rows"]] == [row[:-1] for row in content["tables"][0]["rows"]]
    assert len(small) == 2


def test_runs_of_another_seed_stand_beside_the_first(small: list[str], tmp_path: Path) -> None:
    for seed in ("0", "1", "0"):
        assert bench.main([*arguments(tmp_path, "--variants", "default", "--seed", seed)]) == 0
    assert small == ["cfd a yellow duck 0", "cfd a yellow duck 1"]


def test_every_run_has_files_of_its_own(tmp_path: Path) -> None:
    deep = "a/folder/whose/name/is/so/long/that/no/file/could/have/it/as/its/own/name"
    told = [("default", "mug"), ("default", f"{deep}/one.ply"), ("default", f"{deep}/two.ply"), ("pixels", "mug")]
    stems = {stem_of(tmp_path, *one, known=known, seed=seed) for one in told for known in (1, 2) for seed in (0, 1)}
    assert len(stems) == 16 and all(len(stem.name) < 150 for stem in stems)
    assert stem_of(tmp_path, "default", "a red mug", known=1, seed=0).name == "default-a-red-mug"


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["--assets", "gone.ply"], "assets: expected a 3DGS .ply"),
        (["--assets", "a yellow submarine"], "assets: expected the caption"),
        (["--assets"], "assets: expected at least one"),
        (["--variants", "better"], "variants: expected some of 'default'"),
        (["--known", "0"], "known: expected at least 1"),
        (["--known", "2", "--assets", "gone.ply"], "known: expected 1, since gone.ply is one object"),
    ],
)
def test_bad_input_is_one_line_before_any_run(
    wrong: list[str], words: str, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([*arguments(tmp_path / "out", *wrong)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and small == []
