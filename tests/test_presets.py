"""The presets for large teachers, with tiny random ones in the same layouts: every preset runs to its end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import tiny_teachers as tiny
import torch
from huggingface_hub import constants

from gscfd import train
from gscfd.config import MethodName, StageName, load_preset, presets
from gscfd.devices import DTYPES, choose_dtype
from gscfd.distil import loading, pipeline
from gscfd.distil.edits import asked_for, place
from gscfd.distil.lora import unet_of
from gscfd.gaussians import ball
from gscfd.runs import options as runs_options
from gscfd.runs import plan
from gscfd.runs.cost import Cost
from gscfd.runs.folder import RunFolder
from gscfd.runs.published import MINUTES, PUBLISHED, size_line, time_line
from gscfd.teachers.find import MVDREAM_MIRROR, SD21_MIRROR
from gscfd.teachers.kinds import is_here

LARGE = sorted(set(presets()) - {"toybox", "refine-splat-toybox"})
SMALL = ["--coarse.views", "2", "--refine.views", "1", "--init.count", "60", "--device", "cpu", "--prompt", "a corgi"]
ROOT = Path(__file__).parents[1]
CASES = {
    MVDREAM_MIRROR: ("MVDream", "4", "256"),
    SD21_MIRROR: ("Stable Diffusion 2.1", "4", "512"),
    "stabilityai/stable-diffusion-xl-base-1.0": ("SDXL", "1", "1024"),
}
"""Views and pixels of a teacher in its preset, as docs/speed.md counts them."""
ONE_STAGE = {"mvdream-only": ["coarse"], "sd21": ["refine"], "refine-splat": ["refine"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = {"mvdream": tiny.mvdream, "sd": tiny.stable_diffusion, "sdxl": tiny.sdxl, "flux": tiny.flux}
    start = tmp_path_factory.mktemp("start") / "splat.ply"
    ball(60, radius=0.9, opacity=0.6, generator=torch.Generator().manual_seed(0)).save_ply(start)
    return {"start": start} | {name: make(tmp_path_factory.mktemp(name)) for name, make in kinds.items()}


def adapted(folders: dict[str, Path]) -> str:
    """A tiny SDXL with an MV-Adapter."""
    base = folders["sdxl"].parent / "adapted"
    file = base / "mvadapter_t2mv_sdxl.safetensors"
    if not file.is_file():
        tiny.mv_adapter(file, tiny.sdxl(base, **tiny.SDXL_LEVELS), large=True)
    return f"{base}+{file}"


def stages_of(preset: str) -> list[str]:
    return ONE_STAGE.get(preset, ["coarse", "refine"])


def options(preset: str, folders: dict[str, Path]) -> list[str]:
    """Of a run with the preset on tiny teachers."""
    chosen: dict[str, str | Path] = {"coarse": folders["mvdream"], "refine": folders.get(preset, folders["sd"])}
    if preset == "mvadapter-sdxl":
        chosen = {"coarse": adapted(folders), "refine": folders["sdxl"]}
    teachers = [word for stage in stages_of(preset) for word in (f"--{stage}.teacher", str(chosen[stage]))]
    start = ["--init", str(folders["start"])] if preset == "refine-splat" else []
    return ["--preset", preset, *SMALL, *teachers, *start]


@pytest.mark.parametrize("preset", LARGE)
def test_every_preset_runs_to_its_end_with_folders_alone(
    preset: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "finish", lambda self, gaussians: gaussians.save_ply(self.path / "splat.ply"))
    steps = [word for stage in stages_of(preset) for word in (f"--{stage}.steps", "2")]
    assert train.main([*options(preset, folders), *steps, "--out", str(tmp_path / "run")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [(s, i) for s in stages_of(preset) for i in (0, 1)]
    assert torch.tensor([row["loss"] for row in rows]).isfinite().all()


@pytest.mark.parametrize("preset", LARGE)
@pytest.mark.parametrize("guidance", ["cfd", "sds", "ism"])
def test_large_teachers_have_the_guidance_of_the_papers_all_the_time(preset: str, guidance: MethodName) -> None:
    """The toybox's falls."""

    def asked(name: str, stage: StageName, done: float) -> float:
        config = replace(load_preset(name), guidance=guidance)
        return asked_for(config, stage, place(stage, 0, int(done * config.stage(stage).steps))).cfg

    for stage in load_preset(preset).distillations():
        assert {asked(preset, stage, done) for done in (0.0, 0.3, 0.5, 0.9)} == {asked(preset, stage, 0.0)}
    assert asked("toybox", "coarse", 0.9) < asked("toybox", "coarse", 0.0), "control"


# ----------------------------------------------------------------------------------------------------------- --dry-run


@pytest.mark.parametrize("preset", LARGE)
def test_every_preset_dry_runs_and_makes_nothing(
    preset: str,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if preset in ("fast", "paper", "mvdream-only"):  # the teachers of mvdream-sd21, whose cost is known by now
        monkeypatch.setattr(plan, "cost_of", lambda call: Cost(flops=10**12, peak=10**9, traffic=10**9))
    assert train.main([*options(preset, folders), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "MISSING" not in said and said.count("  memory   denoiser") == len(stages_of(preset))
    assert "outputs/a-corgi-0/" in said and "total    memory" in said and "estimates" in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_what_is_missing_and_the_mirrors_and_asks_no_hub(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*arguments: object, **options: object) -> NoReturn:
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
    assert "5.2 GB to fetch, 1.9 GB of weights in bfloat16, at most 1.58 GB held" in said
    assert "0.4 on an H200" in said
    assert size_line(str(folders["sd"])) is None and time_line("toybox") is None, "no figures for others"


def rows(page: str) -> list[list[str]]:
    """The cells of all tables of a page of the documentation."""
    lines = [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_figures_of_missing_teachers_are_those_of_the_documentation() -> None:
    speed = {tuple(row[:3]): row for row in rows("speed.md") if len(row) > 10}
    for repository, case in CASES.items():
        name, views, pixels = case
        row = speed[name, views, pixels]
        found = PUBLISHED[repository]
        assert (found.name, f"{found.weights:g}", f"{found.held:g}") == (name, row[6], row[7])
    for page in ("speed.md", "real.md"):
        minutes = {row[0].strip("`"): row[-3:] for row in rows(page)}
        for preset, times in MINUTES.items():
            assert [f"{time:.3g}" for time in times] == minutes[preset], page
    sizes = {row[0]: row[1:4] for row in rows("real.md")}
    for found in PUBLISHED.values():
        held = "not counted" if found.held is None else f"{found.held:g}"
        assert sizes[found.name] == [f"{found.download:g}", f"{found.weights:g}", held]


@pytest.mark.parametrize(
    "arguments, words",
    [(["--prompt", ""], "prompt: expected"), (["--prompt", "a mug", "--coarse.perp-neg"], "perp_neg: expected")],
)
def test_a_dry_run_of_bad_settings_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*arguments, "--dry-run"]) == 2
    assert words in capsys.readouterr().err


def test_a_plan_of_twice_the_views_needs_more_and_one_in_half_precision_less(folders: dict[str, Path]) -> None:
    def planned(dtype: torch.dtype, views: int) -> plan.TeacherPlan:
        stage = runs_options.parse(["--preset", "sd21", "--refine.views", str(views)]).stage("refine")
        return plan.teacher_plan(plan.meta_teacher(str(folders["sd"]), dtype), stage, "a corgi", "cfd")

    one, two, half = planned(torch.float32, 1), planned(torch.float32, 2), planned(torch.bfloat16, 1)
    assert two.flops == 2 * one.flops and two.denoise.peak > 1.5 * one.denoise.peak
    assert two.weights == one.weights == {name: 2 * count for name, count in half.weights.items()}
    assert half.flops == one.flops and half.denoise.peak < one.denoise.peak


def test_a_plan_counts_every_question_of_a_method() -> None:
    stage = load_preset("toybox").stage("coarse")
    found = plan.meta_teacher("toybox/multiview", torch.float32)

    def questions(guidance: MethodName) -> float:
        planned = plan.teacher_plan(found, stage, "a mug", guidance)
        return planned.asked / planned.denoise.flops

    assert questions("cfd") == questions("sds") == questions("vsd") == 1, "control"
    assert questions("cds") == 2 and 2 < questions("ism") == questions("sdi") <= 7 and 4 < questions("dsd") <= 13


@pytest.mark.parametrize("name", ["multiview", "singleview"])
def test_the_toybox_teachers_can_be_planned_in_any_precision(name: str) -> None:
    stage = runs_options.parse(["--prompt", "a mug"]).coarse
    full, half = (
        plan.teacher_plan(plan.meta_teacher(f"toybox/{name}", dtype), stage, "a mug", "cfd")
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.denoise.flops == full.denoise.flops and half.denoise.peak < 0.6 * full.denoise.peak


@pytest.mark.parametrize(
    "instructions, on_cpu",
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({"neon": True}, torch.float32),
    ],
)
def test_the_precision_follows_the_device_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], on_cpu: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (choose_dtype("auto", cpu), choose_dtype("auto", cuda)) == (on_cpu, torch.bfloat16)
    assert choose_dtype("float16", cpu) == choose_dtype("float16", cuda) == torch.float16


@pytest.mark.parametrize("start", [[], ["--init", "scan.ply"]])
def test_the_advice_against_too_little_memory_can_be_followed(start: list[str]) -> None:
    cases: list[tuple[str, StageName]] = [("fast", "coarse"), ("sd21", "refine"), ("flux", "refine")]
    for preset, name in cases:
        options = ["--preset", preset, "--dtype", "float32", *start]
        advice = pipeline.memory_advice(runs_options.parse(options), name).split(", ")
        assert len(advice) == 3
        for words in advice:
            assert runs_options.parse([*options, *words.split()]) != runs_options.parse(options), words


@torch.no_grad()
def test_the_precision_reaches_the_networks(folders: dict[str, Path]) -> None:
    for name, dtype in DTYPES.items():
        config = runs_options.parse([*options("sd21", folders), "--dtype", name])
        assert unet_of(loading.load_teachers(config)["refine"], "teacher").unet.dtype == dtype


def test_what_is_advised_when_memory_is_short_can_be_given() -> None:
    named = ["--preset", "mvdream-sd21", "--prompt", "a corgi"]
    advised = pipeline.memory_advice(runs_options.parse(named), "refine").split(", ")
    assert advised == ["--refine.views 2", "--vae-checkpointing", "--refine.no-perp-neg"]
    config = runs_options.parse([*named, *(word for option in advised for word in option.split())])
    assert config.refine.views == 2 and config.vae_checkpointing and not config.refine.perp_neg


# --------------------------------------------------------------------------------------------------- the default preset


def cached(folder: Path, name: str, hub: Path) -> Path:
    """The folder as the hub's cache keeps the repository `name`."""
    snapshot = hub / f"models--{name.replace('/', '--')}" / "snapshots" / "0123"
    shutil.copytree(folder, snapshot)
    (snapshot / "model_index.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    return snapshot


def test_the_large_preset_is_the_default_where_cuda_and_its_teachers_are(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = load_preset("mvdream-sd21")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("gscfd.teachers.kinds.is_here", is_here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runs_options.default_preset(None) == ("toybox", "without a CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cached(folders["mvdream"], large.coarse.teacher, tmp_path)
    preset, why = runs_options.default_preset(None)
    assert preset == "toybox" and large.refine.teacher in why and large.coarse.teacher not in why
    snapshot = cached(folders["sd"], large.refine.teacher, tmp_path)
    assert (
        runs_options.default_preset("auto")[0] == runs_options.parse(["--prompt", "a corgi"]).preset == "mvdream-sd21"
    )
    assert (
        runs_options.default_preset("cpu")[0]
        == runs_options.parse(["--prompt", "a mug", "--device", "cpu"]).preset
        == "toybox"
    )
    assert runs_options.parse(["--prompt", "a mug", "--preset", "toybox"]).preset == "toybox"
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert runs_options.default_preset(None)[0] == "toybox", "a teacher that is not whole is not here"


def test_the_choice_of_the_preset_is_said_in_one_line_with_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["--prompt", "a mug", "--device", "cpu", "--dry-run"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("preset: toybox, without a CUDA device; others by --preset: ") and "mvdream-sd21" in first
    assert train.main(["--preset", "toybox", "--prompt", "a mug", "--device", "cpu", "--dry-run"]) == 0
    assert not capsys.readouterr().out.startswith("preset:")
