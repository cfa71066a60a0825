"""The presets for large teachers, with tiny random ones in the same layouts: every preset runs to its end."""

import json

import pytest
import tiny_teachers as tiny
import torch

from gscfd import train
from gscfd.config import presets

LARGE = sorted(set(presets()) - {"toybox"})
SMALL = ["--coarse.views", "2", "--refine.views", "1", "--init.count", "60", "--device", "cpu", "--prompt", "a corgi"]
ONE_STAGE = {"mvdream-only": ["coarse"], "sd21": ["refine"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    kinds = {"mvdream": tiny.mvdream, "sd": tiny.stable_diffusion, "sdxl": tiny.sdxl, "flux": tiny.flux}
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in kinds.items()}


def stages_of(preset):
    return ONE_STAGE.get(preset, ["coarse", "refine"])


def options(preset, folders):
    """Of a run with the preset on tiny teachers."""
    chosen = {"coarse": folders["mvdream"], "refine": folders.get(preset, folders["sd"])}
    teachers = [word for stage in stages_of(preset) for word in (f"--{stage}.teacher", str(chosen[stage]))]
    return ["--preset", preset, *SMALL, *teachers]


@pytest.mark.parametrize("preset", LARGE)
def test_every_preset_runs_to_its_end_with_folders_alone(preset, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(train.RunFolder, "finish", lambda self, gaussians: gaussians.save_ply(self.path / "splat.ply"))
    steps = [word for stage in stages_of(preset) for word in (f"--{stage}.steps", "2")]
    assert train.main([*options(preset, folders), *steps, "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [(s, i) for s in stages_of(preset) for i in (0, 1)]
    assert torch.tensor([row["loss"] for row in rows]).isfinite().all()
