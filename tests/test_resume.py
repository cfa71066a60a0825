"""A run that was stopped in any way and resumed gives the splat of a run that was not."""

import contextlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml
from present import present

from gscfd import train
from gscfd.distil.densify import Densifier
from gscfd.distil.state import StageState
from gscfd.gaussians import Gaussians
from gscfd.runs import options as runs_options
from gscfd.runs.checkpoint import canonical, digest
from gscfd.runs.folder import LogFile, RunFolder

RUN = ["--preset", "toybox", "--prompt", "a yellow duck", "--refine.views", "1"]
RUN += ["--coarse.steps", "4", "--refine.steps", "3"]
RUN += ["--polish.steps", "3", "--polish.asks", "2", "--polish.fits", "2", "--polish.album", "2"]
RUN += ["--init.count", "200", "--no-viewer", "--checkpoint.every", "2", "--checkpoint.seconds", "0"]
RUN += ["--coarse.densify.start", "0", "--coarse.densify.every", "2", "--coarse.densify.grad-threshold", "0.05"]
STEPS = [("coarse", i) for i in range(4)] + [(name, i) for name in ("refine", "polish") for i in range(3)]
KILLS = 16
"""At random moments."""
PLACES = [
    ("gscfd.distil.state:StageState.advance", 2),
    ("gscfd.distil.densify:Densifier.after_backward", 2),
    ("gscfd.files:os.fsync", 1),  # the tensors of a checkpoint are written, but not safe
    ("gscfd.files:os.replace", 2),  # its tensors have their name, its .json has not
    ("gscfd.runs.checkpoint:Path.unlink", 1),  # the oldest one is about to go
    ("gscfd.distil.pipeline:remove_floaters", 1),  # the end of a stage
    ("gscfd.distil.state:StageState.advance", 1),
    ("gscfd.distil.stage:regularizers", 2),
    ("gscfd.distil.polish:Album.add", 1),
    ("gscfd.distil.polish:Album.add", 2),
    ("gscfd.gaussians:write_tensors", 1),
    ("gscfd.runs.folder:write_picture", 1),
    ("gscfd.runs.folder:write_video", 1),
    ("gscfd.runs.folder:write_contact_sheet", 1),
    ("gscfd.runs.checkpoint:Checkpoints.clear", 1),
]
"""Calls before which a run is killed, one after another; each run goes on where the one before it was killed."""


def start(folder: Path) -> int:
    return train.main([*RUN, "--out", str(folder)])


def resume(folder: Path, *arguments: str | Path | int) -> int:
    return train.main(["--resume", str(folder), *map(str, arguments)])


def steps_of(folder: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in rows]


def splat_of(folder: Path) -> bytes:
    return (folder / "splat.ply").read_bytes()


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Call `act` in the middle of the run's step `number`, counted over both stages, once."""
    calls = []

    def after_backward(
        self: StageState, *args: Any, original: Callable[..., None] = StageState.advance, **kwargs: Any
    ) -> None:
        calls.append(0)
        if len(calls) == number + 1:
            act()
        original(self, *args, **kwargs)

    monkeypatch.setattr(StageState, "advance", after_backward)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was not stopped."""
    out = tmp_path_factory.mktemp("runs") / "duck"
    assert start(out) == 0
    return out


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its third step, to be copied."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as monkeypatch:
        at_step(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert start(out) == 130
    return out


@pytest.fixture
def stopped(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "stopped"))


@pytest.mark.parametrize(
    "number, code, step",
    [(signal.SIGINT, 130, 0), (signal.SIGTERM, 143, 3), (signal.SIGTERM, 143, 5), (signal.SIGINT, 130, 7)],
)
def test_an_interrupted_run_saves_its_last_step_and_resumes_to_the_same_file(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    step: int,
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    at_step(monkeypatch, step, lambda: signal.raise_signal(number))
    assert start(tmp_path / "x") == code
    assert f"continue with --resume {tmp_path / 'x'}" in capsys.readouterr().out
    assert steps_of(tmp_path / "x") == STEPS[: step + 1]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert resume(tmp_path / "x") == 0
    assert f"resumed from {STEPS[step][0]}, step {STEPS[step][1] + 1}" in (tmp_path / "x" / "log.txt").read_text()
    assert steps_of(tmp_path / "x") == STEPS, "no step lost, none done again"
    assert splat_of(tmp_path / "x") == splat_of(finished)


def test_a_run_resumed_with_other_moments_gives_another_file(
    finished: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the test above would notice Adam's moments missing."""
    load = StageState.load
    monkeypatch.setattr(
        StageState,
        "load",
        lambda self, step, tensors: load(self, step, {k: v for k, v in tensors.items() if "exp_avg" not in k}),
    )
    with pytest.raises(KeyError):
        resume(stopped)
    monkeypatch.setattr(
        StageState,
        "load",
        lambda self, step, tensors: load(self, step, {k: v for k, v in tensors.items() if "adam" not in k}),
    )
    assert resume(stopped) == 0
    assert splat_of(stopped) != splat_of(finished)


def test_rows_after_the_checkpoint_are_written_again_and_not_twice(finished: Path, stopped: Path) -> None:
    with open(stopped / "stats.jsonl", "a") as stats:
        stats.write('{"stage": "coarse", "step": 3}\n{"stage": "coarse", "st')
    assert resume(stopped) == 0
    assert steps_of(stopped) == STEPS and splat_of(stopped) == splat_of(finished)


def test_a_run_killed_before_its_first_checkpoint_starts_again(finished: Path, stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    assert resume(stopped) == 0
    assert steps_of(stopped) == STEPS and splat_of(stopped) == splat_of(finished)


def test_a_damaged_checkpoint_costs_steps_and_not_the_run(
    finished: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = sorted((stopped / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert resume(stopped) == 0
    assert f"{newest.with_suffix('')} is damaged" in capsys.readouterr().err
    assert "is damaged" in (stopped / "log.txt").read_text()
    assert steps_of(stopped) == STEPS and splat_of(stopped) == splat_of(finished)


def test_a_finished_run_leaves_no_checkpoints_and_is_not_resumed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = splat_of(finished)
    assert not (finished / "checkpoints").exists()
    assert resume(finished) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is finished" in error and "--out" in error
    assert splat_of(finished) == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--coarse.cfg", 9], ["coarse.cfg = 6.0 (got 9.0)", "--preset"]),
        (["--seed", 4, "--prompt", "a mug"], ["prompt = 'a yellow duck' (got 'a mug')", "seed = 0 (got 4)"]),
        (["--out", "elsewhere"], ["--out"]),
        (["--overwrite"], ["--overwrite"]),
    ],
)
def test_a_resumed_run_keeps_its_settings_and_its_folder(
    stopped: Path, capsys: pytest.CaptureFixture[str], arguments: list[str | int] | list[str], words: list[str]
) -> None:
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    assert resume(stopped, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in ["resume: expected", *words]), error
    assert {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()} == before


def test_settings_that_were_edited_after_the_checkpoint_are_noticed(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load((stopped / "config.yaml").read_text())
    settings["refine"]["lr"]["sh0"] = 0.5
    (stopped / "config.yaml").write_text(yaml.safe_dump(settings))
    assert resume(stopped) == 2
    assert "refine.lr.sh0 = 0.015 (got 0.5)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere", "pictures", "file"])
def test_what_is_not_a_run_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "file").write_text("")
    assert resume(tmp_path / name) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"expected the folder of a run, got {tmp_path / name}" in error


def test_a_run_of_another_device_is_not_resumed(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = sorted((stopped / "checkpoints").glob("*.json"))[-1]
    head = json.loads(checkpoint.read_text())
    head["facts"]["device"] = "cuda"
    head["sha256"]["facts"] = digest(canonical(head["facts"]))
    checkpoint.write_text(json.dumps(head))
    assert resume(stopped) == 2
    assert "expected cuda" in capsys.readouterr().err


def test_a_second_process_is_refused_while_the_first_one_lives(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(runs_options.parse(["--resume", str(stopped)])):
        for arguments in (["--resume", str(stopped)], [*RUN, "--out", str(stopped), "--overwrite"]):
            assert train.main(arguments) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and f"another process writes to {stopped}" in error
    assert resume(stopped) == 0


def test_overwrite_spares_what_others_keep_among_the_checkpoints(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / "checkpoints" / "mine.ckpt").write_text("years of work")
    assert train.main([*RUN, "--out", str(stopped), "--overwrite"]) == 2
    assert "checkpoints/mine.ckpt" in capsys.readouterr().err
    (stopped / "checkpoints" / "mine.ckpt").rename(stopped / "checkpoints" / ".000009.json.12.tmp")
    assert train.main([*RUN, "--out", str(stopped), "--overwrite"]) == 0


def test_a_full_disk_stops_the_run_and_room_continues_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, limits = tmp_path / "x", resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(monkeypatch, 3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1])))
    try:
        assert start(out) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr()
    file = out / "checkpoints" / "000002.safetensors"
    assert f"could not write {file} (File too large); free space and --resume {out}" in said.out
    assert "Traceback" not in said.err
    assert resume(out) == 0
    assert steps_of(out) == STEPS and splat_of(out) == splat_of(finished)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_says_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("gscfd", logging.INFO, __file__, 1, "words", None, None)
    for kind, said in ((logging.FileHandler, "No space left"), (LogFile, "")):
        handler = kind("/dev/full")
        handler.handle(record)
        assert said in (error := capsys.readouterr().err) and bool(error) == bool(said)
        with contextlib.suppress(OSError):
            handler.close()


class Nursery:
    """Runs in processes of their own; see tests/nursery.py."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def run(self, arguments: list[str], kill_after: float | None = None, kill_at: tuple[str, int] = ("", 0)) -> int:
        """The exit status of a run; -SIGKILL when it was killed after so many seconds, or at such a call."""
        print(json.dumps([arguments, *kill_at]), file=self.process.stdin, flush=True)
        child = int(present(self.process.stdout).readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        print(file=self.process.stdin, flush=True)
        return int(present(self.process.stdout).readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    present(nursery.process.stdin).close()
    nursery.process.wait()


@pytest.mark.timeout(1200)  # seconds on an idle machine, minutes on a busy one
def test_killed_at_random_moments_and_resumed_it_is_the_same_file_byte_for_byte(
    nursery: Nursery, tmp_path: Path
) -> None:
    """SIGKILL, at any instant of start, steps, checkpoints and exports; the lock of the dead stands in nobody's way."""
    run = [*RUN, "--checkpoint.every", "1"]
    assert nursery.run([*run, "--out", str(tmp_path / "whole")]) == 0
    began = time.monotonic()
    assert nursery.run([*run, "--out", str(tmp_path / "again")]) == 0
    seconds, draw, kills, folders = time.monotonic() - began, random.Random(0), 0, [tmp_path / "0"]
    while kills < KILLS or not (folders[-1] / "turntable.png").exists():
        if (folders[-1] / "turntable.png").exists():
            folders.append(tmp_path / str(len(folders)))
        begun = (folders[-1] / "config.yaml").exists()
        if not begun:
            shutil.rmtree(folders[-1], ignore_errors=True)
        status = nursery.run(
            ["--resume", str(folders[-1])] if begun else [*run, "--out", str(folders[-1])],
            kill_after=draw.uniform(0, 0.7 * seconds) if kills < KILLS else None,
        )
        assert status in (0, -signal.SIGKILL)
        kills += status == -signal.SIGKILL
    for folder in folders:
        assert splat_of(folder) == splat_of(tmp_path / "whole")
        assert steps_of(folder) == STEPS
        # Killed between its last file and the end, a run is finished, but its checkpoints are still there.
        names = {path.name for path in folder.iterdir()} - {"checkpoints"}
        assert names == {path.name for path in (tmp_path / "whole").iterdir()}


@pytest.mark.timeout(1200)
def test_killed_at_every_kind_of_moment_and_resumed_it_is_the_same_file_byte_for_byte(
    nursery: Nursery, tmp_path: Path
) -> None:
    """In every stage, in a densification, between the files of a checkpoint, and before each export."""
    run, out = [*RUN, "--checkpoint.every", "1"], tmp_path / "killed"
    assert nursery.run([*run, "--out", str(tmp_path / "whole")]) == 0
    reached = []
    for i, place in enumerate(PLACES):
        arguments = ["--resume", str(out)] if i else [*run, "--out", str(out)]
        assert nursery.run(arguments, kill_at=place) == -signal.SIGKILL, place
        reached.append(steps_of(out)[-1][0])
    assert dict.fromkeys(reached).keys() == {"coarse", "refine", "polish"}, "kills in all stages"
    assert len(PLACES) + KILLS > 30
    if not (out / "turntable.png").exists():
        assert nursery.run(["--resume", str(out)]) == 0
    assert splat_of(out) == splat_of(tmp_path / "whole") and steps_of(out) == STEPS


def test_out_of_memory_saves_the_last_good_state_and_names_what_helps(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step is broken off where the Gaussians are half densified."""
    out, steps = tmp_path / "full", []

    def fill(
        self: Densifier,
        gaussians: Gaussians,
        *arguments: Any,
        original: Callable[..., None] = Densifier.after_backward,
        **options: Any,
    ) -> None:
        steps.append(0)
        if len(steps) == 4:
            gaussians.params["means"] = torch.nn.Parameter(gaussians.means[:3])
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(self, gaussians, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Densifier, "after_backward", fill)
        assert train.main([*RUN, "--out", str(out), "--checkpoint.seconds", "1000"]) == 1
    said = capsys.readouterr().out
    for advice in ("--coarse.views 2", "--vae-checkpointing", "--coarse.densify.max-count 4000", "--resume"):
        assert advice in said
    assert len(Gaussians.load_ply(out / "splat.ply")) > 3
    assert resume(out) == 0
    assert "resumed from coarse, step 2" in capsys.readouterr().out
    assert steps_of(out) == STEPS and splat_of(out) == splat_of(finished)


def test_a_teacher_that_does_not_fit_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **options: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("gscfd.teachers.load.placed", full)
    assert start(tmp_path / "x") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "coarse.teacher: expected one that fits" in error and "--dtype" in error
