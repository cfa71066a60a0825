"""The whole program on the shipped teachers, with few steps: prompt in, files out, and every way it can be stopped."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import gscfd
from gscfd import train
from gscfd.cameras import turntable
from gscfd.config import Config, load_preset, merged
from gscfd.distil import stage
from gscfd.distil.densify import Densifier
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.noise import kinds
from gscfd.noise.field import NoiseField
from gscfd.runs import folder as runs_folder
from gscfd.runs import options as runs_options
from gscfd.runs.folder import TURN_SIZE, RunFolder
from gscfd.types import Cameras, Render

SHORT = ["--coarse.steps", "6", "--refine.steps", "4", "--init.count", "300", "--no-viewer", "--polish.steps", "0"]
FILES = {"splat.ply", "turntable.mp4", "turntable.png", "thumbnail.png", "config.yaml", "stats.jsonl", "log.txt"}


def run(*arguments: str | Path | int) -> int:
    return train.main([*SHORT, *map(str, arguments)])


def stats_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "duck"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(runs_folder, "TURN_SIZE", TURN_SIZE)
        assert run("--prompt", "a yellow duck", "--out", out) == 0
    return out


def test_a_run_leaves_everything_a_user_expects(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} == FILES
    assert len(Gaussians.load_ply(finished / "splat.ply")) >= 1
    assert iio.imread(finished / "turntable.png").shape == (512, 1024, 3)
    assert iio.imread(finished / "thumbnail.png").shape == (512, 512, 3)
    frames = iio.imread(finished / "turntable.mp4", plugin="FFMPEG")
    assert frames.shape == (80, 512, 512, 3)


def test_the_written_config_reloads_to_the_same_config(finished: Path) -> None:
    config = merged(Config(), yaml.safe_load((finished / "config.yaml").read_text()))
    assert config == runs_options.parse([*SHORT, "--prompt", "a yellow duck", "--out", str(finished)])


def test_every_step_has_its_line_of_statistics(finished: Path) -> None:
    rows = stats_of(finished)
    assert [(r["stage"], r["step"]) for r in rows] == [("coarse", i) for i in range(6)] + [
        ("refine", i) for i in range(4)
    ]
    assert set(rows[0]["seconds"]) == set(stage.PARTS)
    assert rows[0]["t"] > rows[5]["t"] and np.isfinite([r["loss"] for r in rows]).all()


def test_the_same_seed_gives_the_same_file_byte_for_byte_and_another_seed_does_not(
    finished: Path, tmp_path: Path
) -> None:
    assert run("--prompt", "a yellow duck", "--out", tmp_path / "again") == 0
    assert run("--prompt", "a yellow duck", "--out", tmp_path / "other", "--seed", 1) == 0
    first = (finished / "splat.ply").read_bytes()
    assert (tmp_path / "again" / "splat.ply").read_bytes() == first
    assert (tmp_path / "other" / "splat.ply").read_bytes() != first


def test_the_guidance_matters(finished: Path, tmp_path: Path) -> None:
    assert run("--prompt", "a yellow duck", "--out", tmp_path / "sds", "--guidance", "sds") == 0
    assert (tmp_path / "sds" / "splat.ply").read_bytes() != (finished / "splat.ply").read_bytes()


def test_python_gives_the_same_splat_as_the_command(finished: Path) -> None:
    config = runs_options.parse(SHORT)
    gaussians = gscfd.generate("a yellow duck", config=config)
    assert torch.equal(gaussians.means, Gaussians.load_ply(finished / "splat.ply").means)
    assert gaussians.render(turntable(2, size=32)).rgb.shape == (2, 32, 32, 3)


def test_an_existing_folder_is_kept_unless_asked(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "splat.ply").read_bytes()
    assert run("--prompt", "a red mug", "--out", finished) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (finished / "splat.ply").read_bytes() == before


def test_overwrite_replaces_a_run_but_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run("--prompt", "a red mug", "--out", out, "--refine.steps", 0, "--coarse.steps", 1) == 0
    assert run("--prompt", "a red mug", "--out", out, "--refine.steps", 0, "--coarse.steps", 1, "--overwrite") == 0
    (out / "thesis.tex").write_text("years of work")
    for options in ([], ["--overwrite"]):
        assert run("--prompt", "a red mug", "--out", out, *options) == 2
        assert "thesis.tex" in capsys.readouterr().err and (out / "thesis.tex").exists()


def test_a_run_may_begin_in_an_empty_folder(tmp_path: Path) -> None:
    before = tmp_path.stat().st_ino
    assert run("--prompt", "a red mug", "--out", tmp_path, "--refine.steps", 0, "--coarse.steps", 1) == 0
    assert {p.name for p in tmp_path.iterdir()} == FILES and tmp_path.stat().st_ino == before


def test_a_run_that_is_not_finished_is_named_with_the_command_that_continues_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "config.yaml", tmp_path)
    assert run("--prompt", "a red mug", "--out", tmp_path) == 2
    assert f"continue it with --resume {tmp_path}" in capsys.readouterr().err
    assert run("--prompt", "a red mug", "--out", finished) == 2
    assert "--resume" not in capsys.readouterr().err, "control"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--prompt", " "], ["prompt", "a yellow duck"]),
        (["--prompt", "a yelow dragon"], ["'yelow'", "yellow", "'dragon'", "--list-words", "--preset mvdream-sd21"]),
        (["--prompt", "🦆"], ["prompt", "words", "🦆", "--list-words"]),
        (["--prompt", "黄色的鸭子"], ["黄色的鸭子", "--list-words"]),
        (["--prompt", "a mug" + " on a mug" * 9], ["prompt", "tokens"]),
        (["--prompt", "a mug", "--coarse.negative-prompt", "blury"], ["coarse.negative-prompt", "'blury'"]),
        (["--prompt", "a mug", "--preset", "toybx"], ["preset", "toybox"]),
        (["--prompt", "a mug", "--coarse.teacher", "/nowhere"], ["teacher", "/nowhere"]),
        (["--prompt", "a mug", "--device", "cuda"], ["device", "CUDA", "--device cpu"]),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(*arguments, "--out", tmp_path / "x") == 2
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if not line.startswith("warning: prompt: the toybox teachers never saw")]
    assert all(word in error for word in words), error
    assert not (tmp_path / "x" / "splat.ply").exists()


def test_an_unwritable_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run("--prompt", "a mug", "--out", tmp_path / "file" / "run") == 2
    assert "file/run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument", [["--coarse.stepz", "3"], ["--init.opacity", "2"], ["--seed", "x"], ["--viewer.port", "0"]]
)
def test_bad_options_exit_with_2_and_no_traceback(argument: list[str]) -> None:
    command = [sys.executable, "-m", "gscfd.train", "--prompt", "a mug", *argument]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    assert argument[0].removeprefix("--") in done.stderr + done.stdout


def test_list_words_needs_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--list-words"]) == 0
    assert {"duck", "yellow", "mushroom"} <= set(capsys.readouterr().out.split())


def test_ctrl_c_waits_for_the_end_of_its_step_and_keeps_what_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(
        self: Densifier, *args: Any, original: Callable[..., None] = Densifier.after_backward, **kwargs: Any
    ) -> None:
        if args[2] == 3:
            signal.raise_signal(signal.SIGINT)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Densifier, "after_backward", press)
    assert run("--prompt", "a mug", "--out", tmp_path / "x") == 130
    assert len((tmp_path / "x" / "stats.jsonl").read_text().splitlines()) == 4
    assert len(Gaussians.load_ply(tmp_path / "x" / "splat.ply")) >= 1
    assert "splat.ply" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press_twice(self: Densifier, *args: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C waited")

    monkeypatch.setattr(Densifier, "after_backward", press_twice)
    assert run("--prompt", "a mug", "--out", tmp_path / "x") == 130


def test_overwrite_also_replaces_what_a_killed_run_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run("--prompt", "a red mug", "--out", out, "--refine.steps", 0, "--coarse.steps", 1) == 0
    (out / ".splat.ply.123.tmp").write_bytes(b"half a splat")
    assert run("--prompt", "a red mug", "--out", out, "--refine.steps", 0, "--coarse.steps", 1, "--overwrite") == 0
    (out / "config.yaml").unlink()
    assert run("--prompt", "a red mug", "--out", out, "--overwrite") == 2
    assert "has no config.yaml" in capsys.readouterr().err


def test_a_full_disk_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Densifier, gaussians: Gaussians) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "finish", full)
    assert run("--prompt", "a mug", "--out", tmp_path / "x") == 1
    assert "No space left" in capsys.readouterr().out


def test_noise_that_is_never_finite_stops_the_run_with_gaussians_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def poisoned(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
        value = kinds.surface(field, cameras, render, step)
        return value * float("nan") if step == 3 else value

    monkeypatch.setitem(kinds.NOISES, "surface", poisoned)
    assert run("--prompt", "a mug", "--out", tmp_path / "x") == 1
    assert "not finite at step 3; try a smaller --coarse.cfg" in capsys.readouterr().out
    assert stats_of(tmp_path / "x")[-1]["rollbacks"] == 4
    assert all(v.isfinite().all() for v in Gaussians.load_ply(tmp_path / "x" / "splat.ply").tensors().values())


def test_a_stage_changes_every_parameter() -> None:
    config = runs_options.parse(
        [
            *SHORT,
            "--prompt",
            "a mug",
            "--refine.steps",
            "0",
            "--coarse.densify.start",
            "1",
            "--coarse.densify.stop",
            "1",
        ]
    )
    first: dict[str, torch.Tensor] = {}

    def on_step(report: stage.StepReport) -> None:
        if report.step == 0:
            first.update(report.gaussians.tensors())

    last = gscfd.generate("a mug", config=config, on_step=on_step).tensors()
    for name in ("means", "quats", "scales", "opacities", "sh0"):
        assert not torch.equal(first[name], last[name]), name


def test_generate_refuses_unknown_words() -> None:
    with pytest.raises(UserError, match="zebra"):
        gscfd.generate("a zebra", config=load_preset("toybox"))
