"""The bench: what it compares, how it judges, and that the same command goes on where it was stopped."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gscfd import bench, references, runs, scores
from gscfd.bench import EXPERIMENTS, GAMMAS, SIZES, Claim, check_kept, rescaled, run_config, variants, verdict
from gscfd.config import Config, flat, plain, to_yaml
from gscfd.errors import UserError
from gscfd.intervals import Estimate
from gscfd.scores import METRICS, Examined
from gscfd.toybox.objects import WITHHELD
from gscfd.toybox.words import parse_caption

TINY = bench.Size(
    prompts=("a yellow duck",),
    seeds=1,
    steps=1,
    picture_prompts=("a mug",),
    picture_seeds=4,
    picture_steps=1,
    samples=4,
)


def test_every_claim_is_about_variants_and_a_metric_of_its_experiment():
    for experiment in EXPERIMENTS:
        assert set(experiment.variants) <= set(variants(300)) | set(GAMMAS)
        assert set(experiment.metrics) <= set(METRICS)
        for claim in experiment.claims:
            assert {claim.better, claim.worse} <= set(experiment.variants) and claim.better != claim.worse
            assert claim.metric in experiment.metrics and METRICS[claim.metric].better


def test_variants_differ_and_share_prompt_seed_teacher_and_steps(tmp_path):
    configs = [flat(plain(run_config(tmp_path, SIZES["smoke"], v, "a red car", 3))) for v in variants(40)]
    told = [{k: v for k, v in c.items() if k != "out"} for c in configs]
    assert all(one != other for i, one in enumerate(told) for other in told[:i])
    for key in ("prompt", "seed", "coarse.teacher", "coarse.steps", "refine.steps", "coarse.views", "coarse.cfg"):
        assert len({c[key] for c in configs}) == 1
    assert len({c["out"] for c in configs}) == len(configs)


def test_every_size_asks_for_prompts_that_the_teachers_never_saw():
    for size in SIZES.values():
        said = [parse_caption(prompt) for prompt in size.prompts]
        withheld = [(caption.kind, caption.color) in WITHHELD for caption in said]
        assert any(withheld) and not all(withheld)


@pytest.mark.parametrize("gamma", [1e-4, 1e-3, 0.5])
@pytest.mark.parametrize("steps", [40, 300])
def test_rescaled_gamma_leaves_as_much_noise(gamma, steps):
    left = steps * math.log1p(-min(rescaled(gamma, steps), 1 - 1e-16))
    assert left == pytest.approx(25_000 * math.log1p(-gamma), rel=1e-6) or rescaled(gamma, steps) == 1
    assert rescaled(0.0, steps) == 0 and rescaled(1.0, steps) == 1


@pytest.mark.parametrize(
    "metric, low, high, differs, expected",
    [
        ("clip", 0.1, 0.5, False, "reproduced"),
        ("clip", -0.5, -0.1, False, "not reproduced"),
        ("fid", -0.5, -0.1, False, "reproduced"),
        ("fid", 0.1, 0.5, False, "not reproduced"),
        ("fid", -0.1, 0.5, False, "not significant"),
        ("fid", 0.1, 0.5, True, "reproduced"),
        ("fid", 0.0, 0.0, False, "not significant"),
        ("fid", math.nan, math.nan, False, "too few runs to say"),
    ],
)
def test_verdicts_follow_the_interval_and_the_metrics_direction(metric, low, high, differs, expected):
    claim = Claim(metric, "a", "b", "", differs)
    assert verdict(claim, Estimate((low + high) / 2, low, high, 4)) == expected
    assert verdict(claim, None) == "too few runs to say"


def planted(shift):
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(3, 4))
    return [
        Examined(run="", prompt=prompt, seed=seed, values={"clip": 20 + i + shift + 0.1 * noise[i, seed]})
        for i, prompt in enumerate(("a mug", "a duck", "a car"))
        for seed in range(4)
    ]


def test_a_planted_ordering_is_found_and_its_opposite_is_not_reproduced():
    experiment = replace(
        EXPERIMENTS[0],
        claims=(Claim("clip", "cfd", "sds", ""), Claim("clip", "sds", "cfd", ""), Claim("clip", "cfd", "ism", "")),
    )
    groups = {"cfd": planted(0.5), "sds": planted(0.0), "ism": planted(0.5)}
    rows = bench.claim_rows(experiment, groups, {})
    assert [cells[-1] for cells, _ in rows] == ["reproduced", "not reproduced", "not significant"]
    assert rows[0][1].value == pytest.approx(0.5)


def test_a_run_with_other_settings_is_refused_even_when_it_is_finished(tmp_path):
    config = Config(prompt="a mug", out=tmp_path / "run")
    check_kept(config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    for _ in ("stopped", "finished"):
        check_kept(config)
        with pytest.raises(UserError, match="guidance.*another --out"):
            check_kept(replace(config, guidance="sds"))
        (tmp_path / "run" / runs.LAST).write_bytes(b"")


@pytest.fixture
def small(monkeypatch):
    """Two variants, a claim on splats and one on pictures, few views and draws."""
    few = {name: variants(1)[name] for name in ("sds", "cfd")}
    monkeypatch.setattr(bench, "variants", lambda steps: few)
    claims = (Claim("similarity", "cfd", "sds", ""),)
    splats = replace(EXPERIMENTS[0], variants=("sds", "cfd"), metrics=("similarity", "fid"), claims=claims)
    monkeypatch.setattr(bench, "EXPERIMENTS", (splats, EXPERIMENTS[1]))
    monkeypatch.setattr(scores, "VIEWS", 12)
    monkeypatch.setattr(scores, "DRAWS", 50)
    monkeypatch.setattr(references, "SAMPLER_STEPS", 2)
    large = runs.turntable_frames
    monkeypatch.setattr(runs, "turntable_frames", lambda gaussians, frames, size: large(gaussians, frames, 32))


def test_the_bench_makes_runs_pictures_and_a_page_once(small, tmp_path, capsys):
    torch.set_num_threads(1)
    report = bench.papers(TINY, "smoke", tmp_path)
    assert not report.warnings and len(report.tables) == 3 and len(report.tables[0].rows) == 6
    page = (tmp_path / "report.html").read_text()
    assert "https:" not in page and all(cell in page for row in report.tables[1].rows for cell in row)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*.png")}
    made |= {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/splat.ply")}
    assert len(made) == 2 + 5 * 4
    again = bench.papers(TINY, "smoke", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert again.tables[0].rows == report.tables[0].rows
    assert json.loads((tmp_path / "report.json").read_text())["tables"][0]["rows"] == report.tables[0].rows


def test_a_run_that_fails_is_named_and_the_rest_is_reported(small, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    make = bench.make_run

    def fail(config, teachers):
        if config.guidance == "sds":
            raise runs.Stopped("coarse: fog", 1)
        make(config, teachers)

    monkeypatch.setattr(bench, "make_run", fail)
    report = bench.papers(TINY, "smoke", tmp_path)
    assert any("sds" in line and "fog" in line for line in report.warnings)
    assert [table.title for table in report.tables] == ["Orderings", "CFD Tab. 4"]


def test_a_run_that_the_user_stops_stops_the_bench(small, tmp_path, monkeypatch, capsys):
    def stop(config, teachers):
        raise runs.Stopped("interrupted", 130)

    monkeypatch.setattr(bench, "make_run", stop)
    monkeypatch.setitem(bench.SIZES, "smoke", TINY)
    assert bench.main(["papers", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().out


def test_an_unknown_bench_or_size_lists_the_known_ones(tmp_path, capsys):
    for arguments in (["nerf", "--out", str(tmp_path)], ["papers", "--out", str(tmp_path), "--size", "huge"]):
        with pytest.raises(SystemExit) as stopped:
            bench.main(arguments)
        assert stopped.value.code == 2
    assert "smoke" in (error := capsys.readouterr().err) and "full" in error
