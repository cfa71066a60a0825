"""Which runs a sweep is made of, what is left of them to do, and what is done when they fail: without Ray."""

import builtins
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from present import present

from gscfd import sweep
from gscfd.config import Config
from gscfd.errors import UserError
from gscfd.runs import names as runs_names
from gscfd.runs import options as runs_options
from gscfd.runs.folder import RunFolder
from gscfd.runs.names import next_config
from gscfd.sweeps import make as sweeps_make
from gscfd.sweeps import plan as sweeps_plan
from gscfd.sweeps.journal import JOURNAL, Journal, last_failures
from gscfd.sweeps.make import Progress, Run, carry_out, state_of
from gscfd.sweeps.options import SweepOptions
from gscfd.sweeps.plan import plan_runs
from gscfd.sweeps.workers import Outcome, Place

OutcomeState = Literal["finished", "failed", "refused", "lost"]
FEW = ["--coarse.steps", "2", "--refine.steps", "0", "--polish.steps", "0", "--init.count", "50"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# two objects\na yellow duck\n\n  a mug  \n")
    return path


@pytest.fixture
def planned(prompts: Path, tmp_path: Path) -> Callable[..., list[Run]]:
    def plan(*arguments: str, **settings: Any) -> list[Run]:
        return plan_runs(SweepOptions(prompts=prompts, out=tmp_path / "out", **settings), [*FEW, *arguments])

    return plan


def run_sweep(prompts: Path, out: Path, *arguments: str) -> int:
    return sweep.main(["--prompts", str(prompts), "--out", str(out), *FEW, *arguments])


def test_every_prompt_method_and_seed_is_a_run_those_of_a_prompt_together(planned: Callable[..., list[Run]]) -> None:
    runs = planned(seeds="0:2,7", guidance="sds,cfd")
    assert [(r.config.prompt, r.config.guidance, r.config.seed) for r in runs] == [
        (prompt, method, seed)
        for prompt in ("a yellow duck", "a mug")
        for method in ("sds", "cfd")
        for seed in (0, 1, 7)
    ]
    assert runs[0].name == "a-yellow-duck-sds-0" and runs[0].config.out == runs[0].folder
    assert {(r.config.coarse.steps, r.config.noise_kind) for r in runs} == {(2, "iid"), (2, "surface")}


def test_a_run_is_what_train_makes_of_its_options(planned: Callable[..., list[Run]], tmp_path: Path) -> None:
    (_, run) = planned("--coarse.cfg", "3", seeds="5")
    alone = ["--prompt", "a mug", "--seed", "5", "--coarse.cfg", "3", "--out", str(tmp_path / "out" / "a-mug-cfd-5")]
    assert run.config == runs_options.parse([*FEW, *alone])


def test_prompts_have_folders_of_their_own_whatever_else_is_in_the_file(
    planned: Callable[..., list[Run]], prompts: Path
) -> None:
    long = "a yellow duck on a brown table " * 3
    names: dict[str, str] = {}
    for texts in (["a mug", "A mug", "a  mug", "a mug,", long + "a", long + "b"], ["A mug", long + "b"]):
        prompts.write_text("\n".join(texts))
        found = {run.config.prompt: run.name for run in planned("--coarse.steps", "0")}
        assert len(set(found.values())) == len(texts)
        assert all(names.setdefault(prompt, name) == name for prompt, name in found.items())


@pytest.mark.parametrize("seeds, numbers", [("4", [4]), ("0:3", [0, 1, 2]), ("5,0:2", [5, 0, 1]), (" 1 , 2:3", [1, 2])])
def test_seeds_are_numbers_and_ranges_without_their_end(seeds: str, numbers: list[int]) -> None:
    assert sweeps_plan.read_seeds(seeds) == numbers


@pytest.mark.parametrize("seeds", ["", "x", "-1", "3:3", "8:0", "0:", "1.5", "0,0", "0:4,3", "0:99999999", "0:2:2"])
def test_bad_seeds_are_refused_by_name(seeds: str) -> None:
    with pytest.raises(UserError, match="seeds: expected"):
        sweeps_plan.read_seeds(seeds)


@pytest.mark.parametrize(
    "content, arguments, words",
    [
        (b"\n# nothing\n", [], ["prompts: expected at least one", "prompts.txt"]),
        (b"a mug\na duck\na mug", [], ["'a mug' in lines 1 and 3"]),
        (b"\xff\xfe", [], ["prompts.txt", "UTF-8"]),
        (None, [], ["prompts.txt", "No such file"]),
        (b"a mug\n\na zebra\na red mgu", [], ["prompts.txt, line 3", "'zebra'", "line 4", "'mgu' (nearest: 'mug')"]),
        (b"a mug", ["--guidance", "cfd,foo"], ["guidance", "'foo'", "sds"]),
        (b"a mug", ["--guidance", "cfd,cfd"], ["guidance: expected each method once"]),
        (b"a mug", ["--guidance", "cfd,sds", "--noise.kind", "surface"], ["noise.kind", "with --guidance sds"]),
        (b"a mug", ["--seed=3"], ["seed", "single run"]),
        (b"a mug", ["--viewer"], ["viewer", "single run"]),
        (b"a mug", ["--workers", "0"], ["workers: expected at least 1, got 0"]),
        (b"a mug", ["--seeds", "4:2"], ["seeds", "'4:2'"]),
        (b"a mug", ["--coarse.teacher", "/nowhere"], ["teacher", "/nowhere"]),
    ],
)
def test_bad_input_is_named_before_anything_starts(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.setattr(sweeps_make, "RayPool", lambda *a, **k: pytest.fail("Ray was started"))
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    try:
        code: object = run_sweep(tmp_path / "prompts.txt", tmp_path / "out", *arguments)
    except SystemExit as exited:  # by tyro, which frames its message
        code = exited.code
    error = " ".join(capsys.readouterr().err.split())
    assert code == 2 and all(word in error for word in words), error
    assert "Traceback" not in error and not (tmp_path / "out").exists()


def test_without_ray_the_error_says_how_to_install_it(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def no_ray(name: str, *rest: Any) -> Any:
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_ray)
    assert run_sweep(prompts, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'gscfd[sweep]'" in error
    assert run_sweep(prompts, tmp_path / "out", "--dry-run") == 0


def test_more_workers_than_cores_are_warned_of_and_cores_are_shared_out(
    prompts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps_make, "cores", lambda: 4)
    shares = {n: sweeps_make.local_threads(SweepOptions(prompts=prompts, workers=n)) for n in (1, 2, 3, 4)}
    assert shares == {1: 4, 2: 2, 3: 1, 4: 1}
    assert capsys.readouterr().err == ""
    assert sweeps_make.local_threads(SweepOptions(prompts=prompts, workers=5)) == 1
    assert "5 workers of 1 threads on 4 cores" in capsys.readouterr().err
    assert sweeps_make.local_threads(SweepOptions(prompts=prompts, workers=2, threads=3)) == 3
    assert "than --workers 1" in capsys.readouterr().err


def begin(run: Run) -> None:
    """Its folder, as a run leaves it that was killed at once."""
    with RunFolder(run.config):
        pass


def test_the_state_of_a_run_is_read_from_its_folder(planned: Callable[..., list[Run]], tmp_path: Path) -> None:
    run = planned()[0]
    assert state_of(run, {}) == "new" and next_config(run.config) == run.config
    begin(run)
    assert state_of(run, {}) == "stopped"
    assert state_of(run, {run.name: "no room"}) == "failed"
    todo = next_config(run.config)
    assert todo is not None and (todo.resume, todo.out) == (run.folder, None)
    with RunFolder(todo):
        assert state_of(run, {run.name: "no room"}) == "running"
    (run.folder / "turntable.png").write_text("the last file")
    assert state_of(run, {run.name: "no room"}) == "finished" and next_config(run.config) is None


def test_what_a_kill_before_the_settings_were_written_left_is_cleared_and_nothing_else(
    planned: Callable[..., list[Run]],
) -> None:
    run = planned()[0]
    run.folder.mkdir(parents=True)
    (run.folder / ".config.yaml.12.tmp").write_text("prom")
    assert next_config(run.config) == run.config and not run.folder.exists()
    run.folder.mkdir()
    (run.folder / "mine.txt").write_text("years of work")
    assert next_config(run.config) == run.config and (run.folder / "mine.txt").exists()
    with pytest.raises(UserError, match="exists"):
        runs_names.check_folder(run.config)


def test_runs_of_another_sweep_are_not_taken_for_this_one(
    planned: Callable[..., list[Run]], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planned("--coarse.cfg", "3")[0]
    begin(run)
    (run.folder / "turntable.png").write_text("")
    assert run_sweep(prompts, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "coarse.cfg = 3.0 (got 4.0)" in error and "another --out" in error


def test_a_sweep_gives_out_the_gpus_itself(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sweep(prompts, tmp_path / "out", "--device", "cuda:1") == 2
    assert "device: expected cuda, since" in (error := capsys.readouterr().err) and "CUDA_VISIBLE_DEVICES" in error


def test_dry_run_lists_every_run_with_its_state_and_writes_nothing(
    planned: Callable[..., list[Run]], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    duck, mug = planned()
    begin(duck)
    journal = Journal(tmp_path / "out" / JOURNAL)
    journal.write(mug.name, "started", attempt=1)
    journal.write(mug.name, "failed", error="no room")
    journal.close()
    with open(journal.path, "ab") as file:
        file.write(b'{"run": "a-mug')  # the driver was killed
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert run_sweep(prompts, tmp_path / "out", "--dry-run", "--seeds", "0:2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["stopped", "new", "failed", "new", "4"]
    assert lines[2].endswith("no room") and lines[4] == "4 runs: 2 new, 1 stopped, 1 failed"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_journal_that_was_cut_short_goes_on_in_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(b'{"run": "a", "event": "failed", "error": "x"}\n{"run": "b", "ev')
    journal = Journal(path)
    with pytest.raises(UserError, match="another sweep writes to"):
        Journal(path)
    journal.write("c", "lost", error="gone")
    assert last_failures(path) == {"a": "x", "c": "gone"}
    journal.write("a", "started")
    journal.close()
    assert last_failures(path) == {"c": "gone"}


class FakePool:
    """Workers that answer at once, each run with the outcomes that are given for it, in turn; else "finished"."""

    def __init__(self, size: int, outcomes: dict[str, list[OutcomeState]]) -> None:
        self.size, self.outcomes = size, outcomes
        self.started, self.most = Counter[str](), 0
        self.at_work: list[str] = []

    def free(self) -> bool:
        return len(self.at_work) < self.size

    def start(self, run: str, config: Config) -> Place:
        assert present(config.out).name == run
        self.started[run] += 1
        self.at_work.append(run)
        self.most = max(self.most, len(self.at_work))
        return Place("here", len(self.started))

    def wait(self, seconds: float) -> dict[str, Outcome]:
        run = self.at_work.pop(0)
        given = self.outcomes.get(run, [])
        return {run: Outcome(given.pop(0), "trouble") if given else Outcome("finished", seconds=1.0)}


def carried_out(
    runs: list[Run], path: Path, outcomes: dict[str, list[OutcomeState]], size: int = 2, retries: int = 2
) -> tuple[FakePool, Progress, list[str]]:
    pool = FakePool(size, outcomes)
    said: list[str] = []
    journal, progress = Journal(path), Progress(len(runs))
    carry_out(runs, pool, journal, progress, retries=retries, say=said.append, show=lambda: None)
    journal.close()
    return pool, progress, said


def test_runs_that_fail_come_again_and_then_are_reported_while_others_finish(
    planned: Callable[..., list[Run]], tmp_path: Path
) -> None:
    runs = planned(seeds="0:3")
    bad, ill, lost, wrong, *_ = (run.name for run in runs)
    outcomes: dict[str, list[OutcomeState]] = {
        bad: ["failed"] * 9,
        ill: ["failed"],
        lost: ["lost", "lost"],
        wrong: ["refused"],
    }
    pool, progress, said = carried_out(runs, tmp_path / JOURNAL, outcomes)
    assert pool.started == Counter({bad: 3, ill: 2, lost: 3, wrong: 1, runs[4].name: 1, runs[5].name: 1})
    assert pool.most == 2 and progress.finished == 4 and not progress.running
    assert progress.failed == {bad: "trouble", wrong: "trouble"}
    assert last_failures(tmp_path / JOURNAL) == progress.failed
    assert sum("given up" in line for line in said) == 2 and "6 runs finished" in said[-1] + said[-2]
    rows = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert [row["attempt"] for row in rows if row["run"] == bad and row["event"] == "started"] == [1, 2, 3]


def test_without_retries_one_failure_is_the_last(planned: Callable[..., list[Run]], tmp_path: Path) -> None:
    runs = planned()
    pool, progress, _ = carried_out(runs, tmp_path / JOURNAL, {runs[0].name: ["lost"]}, retries=0)
    assert pool.started[runs[0].name] == 1 and list(progress.failed) == [runs[0].name] and progress.finished == 1


def test_the_table_shows_where_each_running_run_is(planned: Callable[..., list[Run]]) -> None:
    run = planned()[0]
    begin(run)
    assert sweeps_make.reached(run.folder) == ""
    with open(run.folder / "stats.jsonl", "a") as stats:
        stats.write('{"stage": "coarse", "step": 0}\n{"stage": "coarse", "step": 1}\n{"stage": "co')
    assert sweeps_make.reached(run.folder) == "coarse, step 2"
    progress = Progress(30, {f"{i}": (run, Place("node", 7), 0.0) for i in range(sweeps_make.SHOWN_RUNS + 3)})
    assert sweeps_make.table(progress).row_count == sweeps_make.SHOWN_RUNS + 1
