"""A sweep on Ray, whose workers and driver are killed: every run ends as `train` alone makes it."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import pytest
import torch
from present import present

from gscfd import train
from gscfd.config import Config, merged
from gscfd.distil import loading
from gscfd.distil.preflight import KeptTeachers
from gscfd.errors import UserError
from gscfd.runs import make as runs_make
from gscfd.runs import options as runs_options
from gscfd.runs.folder import RunFolder, Stopped
from gscfd.runs.names import next_config
from gscfd.sweeps import workers
from gscfd.sweeps.journal import JOURNAL, Journal
from gscfd.sweeps.make import Progress, Run, carry_out, last_row
from gscfd.sweeps.workers import Outcome, RayPool, Worker
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import load_teacher
from gscfd.teachers.spaces import Latents
from gscfd.version import __version__

T = TypeVar("T")

RUN = ["--coarse.steps", "30", "--refine.steps", "0", "--init.count", "200", "--device", "cpu"]
RUN += ["--polish.steps", "0"]
RUN += ["--checkpoint.every", "2", "--checkpoint.seconds", "0"]
BOTH = [*RUN, "--refine.steps", "1"]
RUNS = ["a-yellow-duck-cfd-0", "a-yellow-duck-sds-0", "a-mug-cfd-0", "a-mug-sds-0"]
BAD = RUNS[-1]
MINUTES = 20
"""Seconds on an idle machine."""


def command(out: Path) -> list[str]:
    arguments = ["--prompts", out / "prompts.txt", "--out", out, "--workers", 2, "--threads", 1]
    return [sys.executable, "-m", "gscfd.sweep", "--guidance", "cfd,sds", *map(str, arguments), *RUN]


def alone(out: Path, prompt: str, guidance: str) -> bytes:
    """The same run by `train`, on as many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert train.main(["--prompt", prompt, "--guidance", guidance, "--out", str(out), *RUN]) == 0
    torch.set_num_threads(threads)
    return (out / "splat.ply").read_bytes()


def events(out: Path) -> list[dict[str, Any]]:
    journal = out / JOURNAL
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [json.loads(line) for line in lines]


def at_work(out: Path) -> dict[str, Any] | None:
    """The row of the last begin of a run that has done some steps and has more to do, or None."""
    last = {row["run"]: row for row in events(out)}
    for name, row in last.items():
        step = last_row(out / name / "stats.jsonl").get("step", 0)
        if row["event"] == "started" and name != BAD and 3 <= step <= 15:
            return row
    return None


def wait_for(condition: Callable[[], T | None], process: subprocess.Popen[str]) -> T:
    end = time.monotonic() + 60 * MINUTES
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)
    return found


def start(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """SIGKILL, at the end of the block."""
    try:
        yield
    finally:
        process.kill()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A sweep with one run that cannot be made. A worker is killed, then the driver; then the same command again."""
    pytest.importorskip("ray")
    out = tmp_path_factory.mktemp("sweep")
    (out / "prompts.txt").write_text("a yellow duck\na mug\n")
    with RunFolder(runs_options.parse(["--prompt", "a mug", "--guidance", "sds", "--out", str(out / BAD), *RUN])):
        (out / BAD / "checkpoints").write_text("a file where a folder has to be")

    with start(out) as first, ended(first):
        killed_worker = wait_for(lambda: at_work(out), first)
        os.kill(killed_worker["pid"], signal.SIGKILL)
        wait_for(lambda: any(row["event"] == "lost" for row in events(out)), first)
        killed_driver = wait_for(lambda: at_work(out), first)
    before = len(events(out))
    with start(out) as second, ended(second):
        said, errors = second.communicate(timeout=60 * MINUTES)
    return {
        "out": out,
        "lost": killed_worker["run"],
        "cut": killed_driver["run"],
        "events": events(out),
        "later": events(out)[before:],
        "code": second.returncode,
        "said": said,
        "errors": errors,
    }


pytestmark = pytest.mark.timeout(60 * 2 * MINUTES)  # half a minute on an idle machine


@pytest.mark.parametrize("prompt, guidance", [("a yellow duck", "cfd"), ("a yellow duck", "sds"), ("a mug", "cfd")])
def test_every_run_ends_with_the_bytes_of_train_alone(
    story: dict[str, Any], tmp_path: Path, prompt: str, guidance: str
) -> None:
    name = f"{prompt.replace(' ', '-')}-{guidance}-0"
    expected = alone(tmp_path / "alone", prompt, guidance)
    assert (story["out"] / name / "splat.ply").read_bytes() == expected
    assert {p.name for p in (story["out"] / name).iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}
    others = [run for run in RUNS if run not in (name, BAD)]
    assert all((story["out"] / run / "splat.ply").read_bytes() != expected for run in others), "the control"


def test_a_run_whose_worker_was_killed_is_resumed_by_another_worker(story: dict[str, Any]) -> None:
    rows = [row for row in story["events"] if row["run"] == story["lost"]]
    assert [row["event"] for row in rows][:2] == ["started", "lost"] and rows[-1]["event"] == "finished"
    assert rows[-2]["pid"] != rows[0]["pid"]
    assert "resumed from coarse, step" in (story["out"] / story["lost"] / "log.txt").read_text()


def test_after_the_driver_was_killed_the_same_command_continues_and_finishes(story: dict[str, Any]) -> None:
    assert [row["event"] for row in story["later"] if row["run"] == story["cut"]] == ["started", "finished"]
    assert "3 of 4 runs finished, 1 failed" in story["said"]


def test_finished_runs_are_not_made_again(story: dict[str, Any]) -> None:
    finished = [row["run"] for row in story["events"] if row["event"] == "finished"]
    assert sorted(finished) == sorted(set(RUNS) - {BAD})


def test_a_run_that_fails_is_tried_again_and_reported_and_the_others_finish(story: dict[str, Any]) -> None:
    assert story["code"] == 1 and "Traceback" not in story["said"] + story["errors"]
    tries = [row["event"] for row in story["later"] if row["run"] == BAD]
    assert tries == ["started", "failed"] * 3
    assert "could not write" in story["said"] and f"{story['out'] / BAD}: " in story["said"]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """One without Ray, in this process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.jsonl").write_text("")
    return Worker(tmp_path, tmp_path / "sweep.jsonl", __version__)


def test_a_worker_loads_each_teacher_once(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, made = [], []

    def load(name: str, original: Callable[..., GuidedTeacher] = load_teacher, **where: Any) -> GuidedTeacher:
        loaded.append(name)
        return original(name, **where)

    monkeypatch.setattr(loading, "load_teacher", load)
    monkeypatch.setattr(runs_make, "make_run", lambda config, teachers: made.append((config.prompt, teachers)))
    for prompt in ("a mug", "a red car"):
        assert (
            worker.make(runs_options.parse(["--prompt", prompt, "--out", str(tmp_path / prompt), *BOTH])).state
            == "finished"
        )
    assert loaded == ["toybox/multiview", "toybox/singleview"]
    assert made[0][1] == made[1][1] and made[1][1]["coarse"].prompt.text == "a red car"
    kept = loading.load_teachers(
        runs_options.parse(["--prompt", "a mug", *BOTH, "--refine.teacher", "toybox/multiview"])
    )
    assert kept["coarse"] is not kept["refine"], "each stage tells its own teacher its own prompt"


def test_kept_teachers_have_the_tuning_of_each_run_and_not_of_the_one_before_it() -> None:
    kept: KeptTeachers = {}
    encoders = []
    for saving in (False, True, False):
        config = merged(Config(), {"prompt": "a mug", "polish": {"steps": 0}, "vae_checkpointing": saving})
        space = loading.load_teachers(config, kept)["coarse"].space
        assert isinstance(space, Latents) and space.checkpointing == saving
        encoders.append(space)
    assert encoders[0] is encoders[2], "the control: with the same tuning, it is the same teacher"


def test_a_worker_says_how_a_run_ended(worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends_with(error: BaseException) -> Callable[[Config, KeptTeachers], NoReturn]:
        def make_run(config: Config, teachers: KeptTeachers) -> NoReturn:
            raise error

        return make_run

    monkeypatch.setattr(loading, "load_teachers", lambda config, kept: {})
    config = Config(prompt="a mug", out=tmp_path / "run")
    for error, state in ((UserError("no such words"), "refused"), (Stopped("disk full", 1), "failed")):
        monkeypatch.setattr(runs_make, "make_run", ends_with(error))
        outcome = worker.make(config)
        assert (outcome.state, outcome.error) == (state, str(error))
    monkeypatch.setattr(runs_make, "make_run", ends_with(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        worker.make(config)


def test_a_worker_waits_for_a_run_that_another_process_still_holds(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs_options.parse(["--prompt", "a mug", "--out", str(tmp_path / "run"), *RUN])
    monkeypatch.setattr(loading, "load_teachers", lambda config, kept: {})
    monkeypatch.setattr(runs_make, "make_run", lambda config, teachers: RunFolder(config).__exit__(None, None, None))
    holder = RunFolder(config)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.extend([seconds] * (seconds >= 1))
        if len(naps) == 3:
            holder.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", sleep)
    assert worker.make(config).state == "finished" and len(naps) == 3
    monkeypatch.setattr(workers, "LOCK_SECONDS", 0)
    with RunFolder(present(next_config(config))):
        outcome = worker.make(config)
    assert outcome.state == "refused" and "another process writes" in outcome.error


def test_a_worker_that_sees_other_files_or_has_another_version_refuses_to_start(worker: Worker, tmp_path: Path) -> None:
    assert worker.place().pid == os.getpid()
    for home, journal, version in (
        (tmp_path / "nowhere", Path("sweep.jsonl"), __version__),
        (tmp_path, Path("other.jsonl"), __version__),
        (tmp_path, Path("sweep.jsonl"), "0.0.1"),
    ):
        with pytest.raises(UserError, match="expected (a folder that all|gscfd 0.0.1 on)"):
            Worker(home, journal, version).place()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "127.0.0.1:123456"])
def test_an_address_where_nothing_answers_is_named(address: str) -> None:
    with socket.socket() as held:  # a port that is taken, and does not listen
        held.bind(("127.0.0.1", 0))
        address = address.format(held.getsockname()[1])
        with pytest.raises(UserError, match=f"address: expected the address of a Ray cluster, got {address}"):
            workers.join(None, address)


def test_a_ray_that_does_not_start_is_tried_again_and_then_named() -> None:
    class Ray:
        tries = 0

        def init(self, *arguments: object, **options: object) -> NoReturn:
            self.tries += 1
            raise Exception("The current node timed out during startup.")

        def shutdown(self) -> None:
            pass

    ray = Ray()
    with pytest.raises(UserError, match="timed out during startup"):
        workers.start_here(ray, 2)
    assert ray.tries == workers.LOCAL_STARTS


def test_gpus_are_asked_for_where_there_are_any_and_the_runs_may_use_them() -> None:
    assert workers.gpus_per_run(None, "auto", 8) == 1
    assert workers.gpus_per_run(None, "cpu", 8) == 0
    assert workers.gpus_per_run(None, "auto", 0) == 0
    assert workers.gpus_per_run(0.5, "cuda", 1) == 0.5
    for gpus, device in ((None, "cuda"), (1, "auto")):
        with pytest.raises(UserError, match="gpus: expected at most 0"):
            workers.gpus_per_run(gpus, device, 0)


def test_workers_that_have_to_wait_for_room_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    workers.check_room([{"CPU": 16, "GPU": 8}], 8, 2, 1)
    workers.check_room([{"CPU": 4, "GPU": 2}] * 2, 8, 1, 0.5)
    assert capsys.readouterr().err == ""
    workers.check_room([{"CPU": 16, "GPU": 8}], 8, 4, 1)
    workers.check_room([{"CPU": 16, "GPU": 2}], 8, 1, 1)
    workers.check_room([{"CPU": 5}, {"CPU": 5}], 4, 2, 0)
    workers.check_room([{"CPU": 5}, {"CPU": 5}], 5, 2, 0)
    workers.check_room([{"CPU": 8, "GPU": 2}], 5, 1, 0.4)
    error = capsys.readouterr().err
    assert [int(line.split(" work at a time")[0].split()[-1]) for line in error.splitlines()] == [4, 2, 4, 4]


@pytest.mark.parametrize(
    "nodes, threads, gpus",
    [([{"CPU": 16}] * 4, 64, 0), ([{"CPU": 16}, {"GPU": 8}], 1, 1), ([{"CPU": 16, "GPU": 1}] * 2, 1, 2), ([{}], 1, 0)],
)
def test_a_worker_that_no_machine_has_room_for_is_an_error_not_an_endless_wait(
    nodes: list[dict[str, float]], threads: int, gpus: float
) -> None:
    with pytest.raises(UserError, match=f"threads: expected .* {threads} threads and {gpus} GPUs"):
        workers.check_room(nodes, 1, threads, gpus)


@pytest.mark.parametrize(
    "nodes, count, gpus, threads",
    [
        ([{"CPU": 16}], 4, 0, 4),
        ([{"CPU": 16}] * 4, 1, 0, 16),
        ([{"CPU": 5}] * 2, 3, 0, 2),
        ([{"CPU": 2}], 8, 0, 1),
        ([{}, {"CPU": 64, "GPU": 8}], 8, 1, 8),
        ([{"CPU": 64, "GPU": 8}], 16, 1, 8),
    ],
)
def test_cores_are_shared_out_so_that_all_workers_fit_on_whole_machines(
    nodes: list[dict[str, float]], count: int, gpus: float, threads: int
) -> None:
    assert workers.threads_per_worker(nodes, count, gpus) == threads


class Clerk(Worker):
    """Notes runs instead of making them. The prompt is the number of bytes of the answer."""

    def make(self, config: Config) -> Outcome:
        with open(self.home / "made.txt", "a") as file:
            file.write(f"{config.out}\n")
        return Outcome("finished", error="x" * int(config.prompt))


STORE_WITHOUT_DISK = {"RAY_automatic_object_spilling_enabled": "0", "RAY_local_fs_capacity_threshold": "0"}
"""Settings of Ray with which a full store is full on most file systems: otherwise it goes on in files."""


def fill_store(ray: Any) -> list[Any]:
    """Fills Ray's object store as a foreign program would; returns what keeps it full."""
    kept: list[Any] = []
    for size in (2**23, 2**20, 2**17):
        with suppress(ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError):
            while len(kept) < 100:
                kept.append(ray.put(np.zeros(size, np.uint8)))
    if len(kept) == 100:
        pytest.skip("Ray's store goes on in files on this machine, whatever its settings say: it never gets full")
    return kept


def test_a_full_object_store_loses_no_run_and_makes_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and outcomes fit into messages, which need no store."""
    ray = pytest.importorskip("ray")
    for name, value in STORE_WITHOUT_DISK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(workers, "STORE_BYTES", 80 * 2**20)
    monkeypatch.chdir(tmp_path)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    journal = Journal(tmp_path / JOURNAL)
    try:
        pool = RayPool(journal.path, "cpu", workers=1, threads=1, gpus=0, address=None, worker=Clerk)
    except UserError as error:
        pytest.skip(f"Ray does not start on this machine now: {error}")
    try:
        kept = fill_store(ray)
        assert len(kept) > 5, "control: it was not full from the start"
        runs = [Run(Path(name), Config(prompt=size, out=Path(name))) for name, size in (("a", "0"), ("b", "9000"))]
        progress = Progress(len(runs))
        carry_out(runs, pool, journal, progress, retries=0, say=lambda text: None, show=lambda: None)
        assert progress.finished == 2 and (tmp_path / "made.txt").read_text().split() == ["a", "b"]
        assert [row["event"] for row in events(tmp_path)] == ["started", "finished"] * 2
    finally:
        pool.stop()
        journal.close()
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_a_long_temporary_folder_leaves_room_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def folder(name: str) -> dict[str, str]:
        monkeypatch.setattr(tempfile, "tempdir", name)
        return workers.ray_folder()

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert folder("/tmp") == {}
    assert folder("/scratch/slurm/users/somebody/projects/job.1355700/tmp") == {"_temp_dir": "/tmp/ray"}
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/ray")
    assert folder("/scratch/slurm/users/somebody/projects/job.1355700/tmp") == {}
