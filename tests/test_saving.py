"""Checkpoints are written while the run goes on: what is written, when it is there, and what becomes of errors."""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, cast

import pytest
import torch
from present import present
from test_state import same
from tiny import stage_config, tiny_stage

from gscfd.config import CheckpointConfig, Config
from gscfd.deferred import Deferred, DeferredNumbers
from gscfd.distil.stage import StepReport
from gscfd.distil.state import Checkpoint, StageState, StateDict
from gscfd.files import Background
from gscfd.gaussians import ball
from gscfd.runs import folder as runs_folder
from gscfd.runs import names as runs_names
from gscfd.runs.checkpoint import Checkpoints
from gscfd.runs.folder import RunFolder, arrived, row


def full() -> NoReturn:
    raise OSError(28, "No space left on device")


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background("test")
    yield background
    background.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    """The folder of a run that saves every fourth step, open."""
    checkpoint = CheckpointConfig(every=4, seconds=0, keep=9)
    with RunFolder(Config(prompt="a mug", out=tmp_path / "run", checkpoint=checkpoint)) as run:
        yield run


def before_saving(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call `act` on the thread that saves, before it writes."""

    def save(
        self: Checkpoints,
        checkpoint: Checkpoint,
        original: Callable[[Checkpoints, Checkpoint], None] = Checkpoints.save,
    ) -> None:
        act()
        original(self, checkpoint)

    monkeypatch.setattr(Checkpoints, "save", save)


def shared(self: StageState) -> StateDict:
    """A StateDict without copies."""
    numbers = {"step": self.step, "rollbacks": self.rollbacks, "good_step": self.good_step}
    return StateDict({f"now/{name}": value for name, value in self.tensors().items()}, numbers)


@pytest.mark.parametrize("copied", [True, False])
def test_a_save_in_flight_holds_the_state_of_its_step(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    """And so it would not without the copy, the control."""
    gate, states = threading.Event(), {}
    before_saving(monkeypatch, gate.wait)

    def on_step(report: StepReport, state_dict: Callable[[StageState], StateDict] = StageState.state_dict) -> None:
        states[report.step + 1] = state_dict(report.state).tensors
        run.on_step(report)

    if not copied:
        monkeypatch.setattr(StageState, "state_dict", shared)
    tiny_stage(on_step=on_step)
    assert len(states) == 12, "no step was held"
    gate.set()
    run.saving.wait()
    assert run.checkpoints.numbers() == [1], "while one was written, no other was begun"
    saved = present(run.checkpoints.newest()).state
    assert saved.numbers["step"] == 4 and same(saved.tensors, states[4]) == copied


def test_a_write_that_fails_ends_the_run_at_the_next_step_that_knows(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def fail() -> None:
        if run.checkpoints.numbers():
            full()

    def on_step(report: StepReport) -> None:
        run.on_step(report)
        steps.append(report.step)
        if run.saving.last is not None:
            run.saving.last.exception()  # the step takes as long as the save

    before_saving(monkeypatch, fail)
    with pytest.raises(OSError, match="No space left"):
        tiny_stage(on_step=on_step)
    assert steps == list(range(8))
    rows = present(run.checkpoints.newest()).rows
    assert run.checkpoints.numbers() == [1] and rows == 4, "the one before it is whole"
    assert "the splat so far is in" in str(run.stopped("could not write", code=1))
    written = [json.loads(line)["step"] for line in (run.path / "stats.jsonl").read_text().splitlines()]
    assert written == list(range(9))


def test_a_write_that_fails_after_the_last_step_fails_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before_saving(monkeypatch, full)
    gaussians = tiny_stage(stage_config(steps=4), on_step=run.on_step)
    with pytest.raises(OSError, match="No space left"):
        run.finish(gaussians)
    assert not (run.path / runs_names.FINISHED_FILE).exists()


def test_a_run_that_stops_for_another_reason_says_that_its_last_save_failed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before_saving(monkeypatch, full)
    tiny_stage(stage_config(steps=4), on_step=run.on_step)
    assert "fog" in str(run.stopped("fog", code=1))
    said = capsys.readouterr().err
    assert "the last checkpoint could not be written: No space left on device" in said
    assert "could not be written" in (run.path / "log.txt").read_text()


def test_a_save_to_its_end_comes_after_the_one_in_flight(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before_saving(monkeypatch, lambda: time.sleep(0.1))
    last = []

    def on_step(report: StepReport) -> None:
        run.on_step(report)
        if report.step in (3, 8):
            run.save(report)
            last.append(present(run.checkpoints.newest()).state.numbers["step"])

    tiny_stage(on_step=on_step)
    assert last == [4, 9], "what was saved to its end is there"
    run.saving.wait()
    numbers = run.checkpoints.numbers()
    steps = [run.checkpoints.read(number).state.numbers["step"] for number in numbers]
    assert numbers == list(range(1, len(numbers) + 1)) and steps == sorted(steps) and steps[:2] == [4, 4]


def test_leaving_the_folder_waits_for_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    before_saving(monkeypatch, gate.wait)
    config = Config(prompt="a mug", out=tmp_path / "run", checkpoint=CheckpointConfig(every=4, seconds=0))
    with pytest.raises(KeyboardInterrupt), RunFolder(config) as run:

        def on_step(report: StepReport) -> None:
            run.on_step(report)
            if report.step == 3:
                assert run.checkpoints.newest() is None, "the control"
                threading.Timer(0.1, gate.set).start()
                raise KeyboardInterrupt

        tiny_stage(on_step=on_step)
    assert present(run.checkpoints.newest()).state.numbers["step"] == 4


def test_a_finished_run_leaves_no_checkpoints_of_a_save_in_flight(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    before_saving(monkeypatch, gate.wait)
    gaussians = tiny_stage(stage_config(steps=4), on_step=run.on_step)
    threading.Timer(0.1, gate.set).start()
    run.finish(gaussians)
    assert (run.path / runs_names.FINISHED_FILE).exists() and not run.checkpoints.folder.exists()


def test_without_ffmpeg_a_run_is_finished_and_says_what_is_missing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.delitem(sys.modules, "imageio.plugins.ffmpeg", raising=False)  # an earlier video has imported it
    run.finish(tiny_stage(stage_config(steps=4), on_step=run.on_step))
    assert (run.path / runs_names.FINISHED_FILE).exists() and not (run.path / "turntable.mp4").exists()
    said = capsys.readouterr()
    assert "no turntable.mp4 was written" in said.err and "pip install imageio-ffmpeg" in said.err
    assert "turntable.mp4" not in said.out


def test_work_in_the_background_is_done_one_by_one_and_in_order(background: Background) -> None:
    gate = threading.Event()
    done: list[int] = []

    def wait_first() -> None:
        gate.wait()
        done.append(1)

    background.start(wait_first)
    assert background.busy() and done == []
    threading.Timer(0.05, gate.set).start()
    background.start(lambda: done.append(2))
    assert done[0] == 1, "the second waits for the first"
    background.wait()
    assert done == [1, 2] and not background.busy()


@pytest.mark.parametrize("ask", [Background.busy, Background.wait, lambda b: b.start(lambda: None)])
def test_what_work_in_the_background_raises_is_raised_once(
    background: Background, ask: Callable[[Background], object]
) -> None:
    background.start(full)
    present(background.last).exception()
    with pytest.raises(OSError, match="No space left"):
        ask(background)
    assert not background.busy()
    background.wait()


def test_the_gradient_variance_is_recorded_where_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_folder, "VARIANCE_EVERY", 1)
    rows = []
    tiny_stage(stage_config(steps=3), on_step=lambda report: rows.append(row(report)))
    for written in (json.loads(json.dumps(made, default=arrived)) for made in rows):
        found = written["gradient_variance"]
        assert found.keys() == {"means", "sh0", "means_paper", "sh0_paper"}
        assert all(0 <= found[name] <= 1 for name in ("means", "sh0"))
    assert arrived({"means": float("nan"), "sh0": 0.5}) == {"sh0": 0.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.5])
def test_rows_are_json_whatever_a_step_has_computed(value: float) -> None:
    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} is not JSON")

    made = {"loss": Deferred(torch.tensor(value)), "gradient_variance": DeferredNumbers({"means": torch.tensor(value)})}
    written = json.loads(json.dumps(made, default=arrived), parse_constant=refuse)
    kept = math.isfinite(value)
    assert written == {"loss": 0.5 if kept else None, "gradient_variance": {"means": 0.5} if kept else {}}


@pytest.mark.parametrize("waited", [True, False])
def test_a_save_waits_for_copies_that_a_device_still_makes(tmp_path: Path, waited: bool) -> None:
    """With a stand-in for CUDA's event, at which the copy is there; without it, the control."""
    copy = torch.zeros(3)

    class Arrival:
        def synchronize(self) -> None:
            copy.fill_(7)

    numbers = {"step": 4, "rollbacks": 0, "good_step": 4}
    state = StateDict({"now/params/means": copy}, numbers, cast(torch.cuda.Event, Arrival()) if waited else None)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(Checkpoint("coarse", state, rows=4, device="cuda", config={}))
    assert (present(checkpoints.newest()).state.tensors["now/params/means"] == 7).all() == waited


@pytest.mark.requires_cuda
def test_a_copy_of_a_cuda_state_is_in_pinned_memory_and_does_not_change() -> None:
    gaussians = ball(5000, radius=0.5, opacity=0.3, generator=torch.Generator().manual_seed(0))
    gaussians.params.to("cuda")
    state = StageState(gaussians, stage_config(), seed=0, keep_every=4)
    expected = gaussians.means.detach().cpu()
    torch.cuda._sleep(100_000_000)
    saved = state.state_dict()
    assert not present(saved.arrival).query(), "nobody waited for the device"
    with torch.no_grad():
        gaussians.params["means"].add_(1)
    saved.wait()
    copy = saved.tensors["now/params/means"]
    assert copy.is_pinned() and torch.equal(copy, expected)
