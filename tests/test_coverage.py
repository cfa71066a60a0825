"""Mode coverage: its statistics, the crowd of splats that it makes, and that the same command goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gscfd import bench
from gscfd.cameras import turntable
from gscfd.config import StageConfig
from gscfd.distil import stage as stage_module
from gscfd.distil.methods import method
from gscfd.distil.noises import stage_noise
from gscfd.distil.stage import run_stage
from gscfd.gaussians import Gaussians, ball, rasterize
from gscfd.lab import coverage
from gscfd.lab.coverage import (
    DRAWS,
    Coverage,
    Runs,
    blend_of,
    chi_square,
    coverage_config,
    coverage_p,
    coverage_table,
    verdict,
)
from gscfd.lab.crowd import groups_around, joined, optimized, rasterize_apart, start
from gscfd.lab.ideal import ideal_teacher
from gscfd.teachers.base import stage_prompt

# ---------------------------------------------------------------------------------------------------------- statistics


def test_counts_in_proportion_are_likely_and_those_of_one_mode_are_not() -> None:
    shares = (4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0)
    assert chi_square([16, 16, 8, 8, 4, 4, 4, 4], shares) == 0 and coverage_p([16, 16, 8, 8, 4, 4, 4, 4], shares) == 1
    assert coverage_p([64, 0, 0, 0, 0, 0, 0, 0], shares) == pytest.approx(1 / (DRAWS + 1))
    assert coverage_p([8] * 8, shares) < 0.01 < coverage_p([8] * 8, [1.0] * 8), "control: other proportions"


def test_draws_in_proportion_are_called_unlikely_as_often_as_the_level_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "DRAWS", 2000)
    shares, rng = (3.0, 1.0, 1.0), np.random.default_rng(1)
    found = np.array([coverage_p(rng.multinomial(64, [0.6, 0.2, 0.2]).tolist(), shares) for _ in range(300)])
    assert 0.02 < (found < 0.05).mean() < 0.09
    skewed = np.array([coverage_p(rng.multinomial(64, [0.3, 0.35, 0.35]).tolist(), shares) for _ in range(50)])
    assert (skewed < 0.05).mean() > 0.9, "control: other proportions"


def test_a_blend_has_its_shares_whatever_else_the_views_show() -> None:
    known = torch.rand(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert torch.allclose(blend_of(torch.einsum("k,k...->...", shares, known), known).float(), shares, atol=1e-5)
    assert blend_of(known[2], known).tolist() == pytest.approx([0, 0, 1, 0], abs=1e-6)


def test_seeds_at_a_blend_count_as_no_mode() -> None:
    found = Coverage(method="m", proportions="equal", blends=[[1.0, 0.0, 0.0, 0.0]] * 3 + [[0.4, 0.3, 0.2, 0.1]])
    assert found.counts == [3, 0, 0, 0] and found.unsettled == 0.25
    lost = replace(found, blends=[[0.25] * 4] * 4)
    assert lost.counts == [0] * 4 and verdict(lost, 0.5) == "no mode" and np.isnan(lost.p)


def test_one_small_p_among_many_rows_is_no_verdict() -> None:
    def row(counts: list[int]) -> Coverage:
        blends = [list(np.eye(4)[k]) for k, count in enumerate(counts) for _ in range(count)]
        return Coverage(method="m", proportions="equal", blends=blends)

    odd, even, far = row([16, 7, 6, 5]), row([8, 8, 8, 8]), row([30, 1, 1, 0])
    assert 0.01 < odd.p < 0.05

    def verdicts(rows: list[Coverage]) -> list[str]:
        return [line[-1].split(",")[0] for line in coverage_table(rows).rows]

    assert verdicts([odd]) == ["not proportional"], "control: alone"
    assert verdicts([odd, *[even] * 9, far]) == ["proportional"] * 10 + ["not proportional"]


# --------------------------------------------------------------------------------------------------------------- crowd


def balls(count: int) -> list[Gaussians]:
    return [ball(40, radius=0.5, opacity=0.7, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def test_the_splats_of_a_crowd_are_rendered_as_if_they_were_alone() -> None:
    splats, groups = balls(3), groups_around(3, 2, size=16)
    crowded = rasterize_apart(joined(splats), groups)
    for i, (splat, group) in enumerate(zip(splats, groups, strict=True)):
        alone = rasterize(splat, group)
        for name in ("rgb", "depth", "opacity"):
            found = getattr(crowded, name)[2 * i : 2 * i + 2]
            assert torch.allclose(found, getattr(alone, name), atol=1e-3), name
    assert not torch.allclose(crowded.rgb[:2], crowded.rgb[2:4], atol=0.1), "control: the balls differ"


def test_the_groups_of_views_divide_the_circle() -> None:
    groups, ring = groups_around(3, 4, size=8), turntable(12, size=8)
    for i, group in enumerate(groups):
        assert torch.equal(group.viewmats, ring.viewmats[i::3])


def tiny(name: str, seed: int) -> Any:
    config = coverage_config(name, seed)
    # A small ball: the single teacher takes the background from the border of the images.
    small = replace(config.init, count=30, radius=0.3)
    return replace(config, coarse=replace(config.coarse, steps=4), init=small)


def shown_apart(first: Gaussians, second: Gaussians) -> float:
    """Mean difference of the images of two splats."""
    cameras = turntable(4, size=coverage.SIZE)
    return (first.render(cameras).rgb - second.render(cameras).rgb).abs().mean().item()


@pytest.mark.parametrize("name", ["cfd", "cfd, half of the noise fresh", "ism"])
def test_a_crowds_splat_is_that_of_the_stage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage draws the same views, and neither densifies nor rolls back in four steps."""
    groups = groups_around(coverage.GROUPS, coverage.VIEWS, size=coverage.SIZE)
    configs = [tiny(name, seed) for seed in (3, 4)]
    crowded = optimized(configs, coverage.teacher_of("unequal"), groups)

    def draw(views: int, *, generator: torch.Generator, **ranges: object) -> Any:
        return groups[int(torch.randint(len(groups), (), generator=generator))]

    monkeypatch.setattr(stage_module, "sample_group", draw)
    for config, found in zip(configs, crowded, strict=True):
        stage = config.stage("coarse")
        assert isinstance(stage, StageConfig)
        teacher = ideal_teacher(
            coverage.tinted(),
            space=coverage.coverage_space(),
            schedule=coverage.SCHEDULE,
            multiview=True,
            shares=coverage.SHARES["unequal"],
        )
        teacher.set_prompt(stage_prompt("a mug", stage))
        splat, seed = start(config)
        run_stage(
            splat,
            stage,
            name="coarse",
            teacher=teacher,
            rasterize=rasterize,
            noise=stage_noise(config, "coarse", teacher, seed),
            method=method(config.guidance, stage, teacher.timesteps),
            seed=seed,
            watchdog=config.watchdog,
            keep_every=1,
            on_step=lambda report: None,
        )
        # Rotations of round Gaussians have no gradient but rounding, which Adam makes large.
        assert shown_apart(found, splat) < 2e-3 < 0.005 < shown_apart(found, start(config)[0]), "control: the start"
    assert not torch.allclose(crowded[0].means, crowded[1].means, atol=0.1), "control: another seed"


# --------------------------------------------------------------------------------------------------------------- bench


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 2, "COUNT": 20, "GROUPS": 2, "BATCH": 2}.items():
        monkeypatch.setattr(coverage, name, value)
    coverage.teacher_of.cache_clear()


@pytest.mark.usefixtures("small")
def test_the_bench_keeps_its_seeds_and_goes_on_with_more(tmp_path: Path) -> None:
    def rows(seeds: int) -> list[str]:
        methods = ["--methods", "cfd", "the flow in 2D"]
        assert bench.main(["coverage", "--out", str(tmp_path), "--seeds", str(seeds), *methods]) == 0
        return (tmp_path / "runs.csv").read_text().splitlines()

    first = rows(2)
    assert len(first) == 1 + 2 * 2 * 2, "two methods in two proportions"
    more = rows(3)
    assert len(more) == 1 + 3 * 4 and set(first) < set(more)
    assert "| the flow in 2D | 1 : 1 : 1 : 1 |" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("small")
def test_runs_of_other_settings_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, key = tmp_path / "runs.csv", ("sds", "equal")
    Runs(path).add(key, [0], [[1.0, 0.0, 0.0, 0.0]])
    assert Runs(path).of(key, [0, 1]) == [[1.0, 0.0, 0.0, 0.0]]
    monkeypatch.setattr(coverage, "STEPS", 3)
    assert Runs(path).of(key, [0]) == []


def test_two_processes_of_other_methods_keep_each_others_runs(tmp_path: Path) -> None:
    path, blend = tmp_path / "runs.csv", [[1.0, 0.0, 0.0, 0.0]]
    one, other = Runs(path), Runs(path)
    one.add(("sds", "equal"), [0], blend)
    other.add(("cfd", "equal"), [0], blend)
    one.add(("sds", "equal"), [1], blend)
    assert Runs(path).of(("sds", "equal"), [0, 1]) == blend * 2 and Runs(path).of(("cfd", "equal"), [0]) == blend


def test_a_table_of_something_else_is_refused_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs.csv").write_text("run,prompt,seed\nruns/one,a mug,0\n")
    assert bench.main(["coverage", "--out", str(tmp_path), "--seeds", "1"]) == 2
    error = capsys.readouterr().err
    assert "out: expected runs of this bench" in error and error.count("\n") == 1
    assert (tmp_path / "runs.csv").read_text().endswith("runs/one,a mug,0\n")


def test_an_unknown_method_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["coverage", "--out", str(tmp_path / "out"), "--methods", "best"]) == 2
    error = capsys.readouterr().err
    assert "methods: expected some of" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
