"""The presets for large teachers, with tiny random ones in the same layouts: every preset runs to its end."""

import json

import pytest
import tiny_teachers as tiny
import torch

from gscfd import plan, train
from gscfd.config import presets
from gscfd.cost import Cost

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


# ----------------------------------------------------------------------------------------------------------- --dry-run


@pytest.mark.parametrize("preset", LARGE)
def test_every_preset_dry_runs_and_makes_nothing(preset, folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if preset in ("fast", "paper", "mvdream-only"):  # the teachers of mvdream-sd21, whose cost is known by now
        monkeypatch.setattr(plan, "cost_of", lambda call: Cost(flops=10**12, peak=10**9))
    assert train.main([*options(preset, folders), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "MISSING" not in said and said.count("  memory   denoiser") == len(stages_of(preset))
    assert "outputs/a-corgi-0/" in said and "total    memory" in said and "estimates" in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_what_is_missing_and_the_mirrors_and_asks_no_hub(folders, tmp_path, monkeypatch, capsys):
    def ask(*arguments, **options):
        pytest.fail("the hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", ask)
    monkeypatch.setattr("gscfd.teachers.find.snapshot_download", ask)
    monkeypatch.chdir(tmp_path)
    (folders["sd"] / "text_encoder" / "model.safetensors").rename(tmp_path / "aside")
    try:
        assert train.main(["--preset", "fast", *SMALL, "--dry-run", "--refine.teacher", str(folders["sd"])]) == 0
    finally:
        (tmp_path / "aside").rename(folders["sd"] / "text_encoder" / "model.safetensors")
    said = capsys.readouterr().out
    assert "MISSING  not on this machine; a run fetches it" in said and "ashawkey/mvdream" in said
    assert "MISSING  no weights in text_encoder" in said and "total    unknown" in said


@pytest.mark.parametrize(
    "arguments, words",
    [(["--prompt", ""], "prompt: expected"), (["--prompt", "a mug", "--coarse.perp-neg"], "perp_neg: expected")],
)
def test_a_dry_run_of_bad_settings_is_refused(arguments, words, capsys):
    assert train.main([*arguments, "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_a_plan_of_twice_the_views_needs_more_and_one_in_half_precision_less(folders):
    def planned(dtype, views):
        stage = train.parse(["--preset", "sd21", "--refine.views", str(views)]).refine
        return plan.teacher_plan(plan.meta_teacher(str(folders["sd"]), dtype), stage, "a corgi")

    one, two, half = planned(torch.float32, 1), planned(torch.float32, 2), planned(torch.bfloat16, 1)
    assert two.flops == 2 * one.flops and two.denoise.peak > 1.5 * one.denoise.peak
    assert two.weights == one.weights == {name: 2 * count for name, count in half.weights.items()}
    assert half.flops == one.flops and half.denoise.peak < one.denoise.peak


def test_the_precision_follows_the_device_unless_it_is_set():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (train.choose_dtype("auto", cpu), train.choose_dtype("auto", cuda)) == (torch.float32, torch.bfloat16)
    assert train.choose_dtype("float16", cpu) == train.choose_dtype("float16", cuda) == torch.float16


@pytest.mark.parametrize("start", [[], ["--init", "scan.ply"]])
def test_the_advice_against_too_little_memory_can_be_followed(start):
    for preset, name in (("fast", "coarse"), ("sd21", "refine"), ("flux", "refine")):
        options = ["--preset", preset, "--dtype", "float32", *start]
        advice = train.memory_advice(train.parse(options), name).split(", ")
        assert len(advice) == 3
        for words in advice:
            assert train.parse([*options, *words.split()]) != train.parse(options), words


@torch.no_grad()
def test_the_precision_reaches_the_networks(folders):
    for name, dtype in train.DTYPES.items():
        config = train.parse([*options("sd21", folders), "--dtype", name])
        assert train.load_teachers(config)["refine"].denoiser.unet.dtype == dtype
