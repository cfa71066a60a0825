"""scripts/noise_ablation.py on a few steps, and scripts/benchmark.py with its stand-in for the paper's Algorithm 2."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scenes import render_scene, sphere, views

from gscfd.config import Config
from gscfd.distil.stage import PARTS
from gscfd.runs import options as runs_options

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))


def test_the_ablation_prints_a_row_for_each_noise_and_keeps_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import noise_ablation

    short = ["--coarse.steps", "10", "--refine.steps", "0", "--polish.steps", "0", "--init.count", "50"]
    arguments = [
        str(tmp_path),
        "--seeds",
        "2",
        "--prompts",
        "a mug",
        "--variants",
        "iid",
        "surface-1e-3",
        "--rest",
        *short,
    ]
    assert noise_ablation.main(arguments) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line[1].strip() for line in lines] == ["variant", "---", "iid", "surface-1e-3"]
    assert [float(line[2]) for line in lines[2:]] == [0.0, 0.995]
    for line in lines[2:]:
        means, sh0, similarity, diversity = (float(line[i]) for i in (3, 4, 6, 7))
        assert 0 <= means <= 1 and 0 <= sh0 <= 1 and -1 <= similarity <= 1 and 0 < diversity < 2
    made = tmp_path / "iid" / "a-mug-0" / "splat.ply"
    before = made.stat().st_mtime_ns
    assert noise_ablation.main(arguments) == 0 and made.stat().st_mtime_ns == before


def test_a_variant_of_any_settings_is_options_of_a_run() -> None:
    from noise_ablation import variant_of

    assert variant_of("plain:") == ("plain", [])
    name, options = variant_of("more:init.count=70,coarse.opacity_reg=0.5,refine.perp_neg=false,coarse.fov=30 40")
    named = ["--preset", "toybox", "--prompt", "a mug"]
    config = runs_options.parse([*named, *options])
    assert (name, config.init.count, config.coarse.opacity_reg, config.coarse.fov) == ("more", 70, 0.5, (30.0, 40.0))
    assert runs_options.parse([*named, *variant_of("a:refine.perp_neg=true")[1]]).refine.perp_neg
    for wrong in ("plain", ":init.count=3", "more:init.count"):
        with pytest.raises(ValueError, match="expected"):
            variant_of(wrong)


def test_algorithm_2_is_white_on_a_sphere_and_the_same_for_the_same_camera() -> None:
    from algorithm2 import algorithm2

    cameras = views(20, 20, size=64)
    noise_map = torch.randn(64, 512, 512, generator=torch.Generator().manual_seed(0))
    render = render_scene(sphere(), cameras)
    first, second = algorithm2(noise_map, cameras, render, 16, 16)
    middle = first[:, 5:11, 5:11]
    assert torch.equal(middle, second[:, 5:11, 5:11])
    assert abs(middle.var() - 1) < 5 * math.sqrt(2 / middle.numel())
    corner = (first[:, :2, :2] * second[:, :2, :2]).mean()
    assert abs(corner) < 4 / math.sqrt(256), "off the sphere every view is fresh"


@pytest.mark.parametrize("script", ["step", "share"])
def test_the_benchmark_times_the_steps_of_both_stages(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import benchmark

    def distil(config: Config, teachers: object, on_step: Callable[[Any], None]) -> None:
        for name, stage in config.stages().items():
            for step in range(stage.steps):
                seconds = {part: 1e-3 * (1 + (name == "refine")) for part in PARTS}
                on_step(SimpleNamespace(stage=name, step=step, seconds=seconds))

    monkeypatch.setattr(benchmark, "distil", distil)
    monkeypatch.setattr(benchmark, "load_teachers", lambda config: {})
    if script == "step":
        benchmark.step(argparse.Namespace(prompt="a mug"))
    else:
        benchmark.share_of_a_step(3)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row and row[0] in ("coarse", "refine")]
    if script == "step":
        assert [row[:3] for row in rows] == [
            [stage, dtype, time]
            for dtype in ("float32", "bfloat16")
            for stage, time in (("coarse", "1.0"), ("refine", "2.0"))
        ]
    else:
        assert [(row[0], row[1], row[2]) for row in rows] == [
            (stage, kind, time)
            for stage, time in (("coarse", "1.00"), ("refine", "2.00"))
            for kind in ("surface", "radial", "world_map")
        ]
