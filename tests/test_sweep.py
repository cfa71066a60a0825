"""Which runs a sweep is made of, what is left of them to do, and what is done when they fail: without Ray."""

import builtins
import csv
import importlib.util
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from present import present

from gscfd import sweep
from gscfd.config import Config
from gscfd.errors import UserError
from gscfd.runs import names as runs_names
from gscfd.runs import options as runs_options
from gscfd.runs.folder import RunFolder, peak_memory
from gscfd.runs.names import next_config
from gscfd.sweeps import make as sweeps_make
from gscfd.sweeps import matrix as sweeps_matrix
from gscfd.sweeps.journal import JOURNAL, Journal, last_failures
from gscfd.sweeps.make import Progress, Run, carry_out, make_runs, state_of
from gscfd.sweeps.options import SweepOptions
from gscfd.sweeps.plan import list_runs, plan_runs
from gscfd.sweeps.table import kept_rows, one_type, table_rows, write_table
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
    assert sweeps_matrix.read_seeds(seeds) == numbers


@pytest.mark.parametrize("seeds", ["", "x", "-1", "3:3", "8:0", "0:", "1.5", "0,0", "0:4,3", "0:99999999", "0:2:2"])
def test_bad_seeds_are_refused_by_name(seeds: str) -> None:
    with pytest.raises(UserError, match="seeds: expected"):
        sweeps_matrix.read_seeds(seeds)


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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be reset here")
def test_the_memory_of_a_run_is_not_that_of_an_earlier_one_in_the_same_worker(
    planned: Callable[..., list[Run]],
) -> None:
    cpu, large = torch.device("cpu"), torch.ones(2**27)
    before = peak_memory(cpu)
    assert before > large.nbytes
    del large
    assert peak_memory(cpu) == before, "control"
    with RunFolder(planned()[0].config):
        assert peak_memory(cpu) < before - 2**28


def test_what_a_kill_before_the_settings_were_written_left_is_cleared_and_nothing_else(
    planned: Callable[..., list[Run]],
) -> None:
    run = planned()[0]
    run.folder.mkdir(parents=True)
    (run.folder / ".config.yaml.12.tmp").write_text("prom")
    assert next_config(run.config) == run.config and not run.folder.exists()
    run.folder.mkdir()
    (run.folder / "init.ply").write_bytes(b"ply")
    assert next_config(run.config) == run.config and not run.folder.exists()
    run.folder.mkdir()
    (run.folder / "mine.txt").write_text("years of work")
    assert next_config(run.config) == run.config and (run.folder / "mine.txt").exists()
    with pytest.raises(UserError, match=r"holds mine\.txt"):
        runs_names.check_folder(run.config)


def test_runs_of_another_sweep_are_not_taken_for_this_one(
    planned: Callable[..., list[Run]], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planned("--coarse.cfg", "3")[0]
    begin(run)
    (run.folder / "turntable.png").write_text("")
    assert run_sweep(prompts, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "coarse.cfg = 3.0 (got 6.0)" in error and "another --out" in error


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


def test_a_sweep_that_is_refused_leaves_the_table_of_the_one_at_work(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    other = Journal(out / JOURNAL)
    (out / "runs.csv").write_text("of the other sweep")
    assert run_sweep(prompts, out) == 2 and "another sweep writes to" in capsys.readouterr().err
    assert (out / "runs.csv").read_text() == "of the other sweep"
    other.close()


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


def test_a_lost_run_goes_on_next_and_a_failed_one_after_all_others(
    planned: Callable[..., list[Run]], tmp_path: Path
) -> None:
    runs = planned(seeds="0:3")
    cases: list[tuple[OutcomeState, int]] = [("lost", 1), ("failed", len(runs))]
    for outcome, place in cases:
        path = tmp_path / f"{outcome}.jsonl"
        carried_out(runs, path, {runs[0].name: [outcome]}, size=1)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        started = [row["run"] for row in rows if row["event"] == "started"]
        assert started.index(runs[0].name, 1) == place and len(started) == len(runs) + 1


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


# Matrix and table

MATRIX = """
prompts: [a yellow duck, a mug]
methods: [cfd, sds]
seeds: 0:2
settings:
  plain: {}
  weak guidance: {coarse: {cfg: 2.0}}
"""


@pytest.fixture
def matrix(tmp_path: Path) -> Callable[..., list[Run]]:
    def plan(text: str, *arguments: str) -> list[Run]:
        path = tmp_path / "matrix.yaml"
        path.write_text(text)
        return plan_runs(SweepOptions(matrix=path, out=tmp_path / "out"), [*FEW, *arguments])

    return plan


def test_a_matrix_makes_a_run_for_every_combination(matrix: Callable[..., list[Run]]) -> None:
    runs = matrix(MATRIX)
    said = [(r.config.prompt, r.config.guidance, r.setting, r.config.seed) for r in runs]
    assert len(runs) == len(set(said)) == len({r.name for r in runs}) == 2 * 2 * 2 * 2
    assert {(r.setting, r.config.coarse.cfg) for r in runs} == {("plain", 6.0), ("weak guidance", 2.0)}
    assert all(r.config.coarse.steps == 2 for r in runs), "options apply to every run"
    assert [r.config.prompt for r in runs] == ["a yellow duck"] * 8 + ["a mug"] * 8


@pytest.mark.parametrize("seeds", ["4:8", "[4:6, 6, 7]", "'4:8'"])
def test_a_range_of_seeds_needs_no_quotes(matrix: Callable[..., list[Run]], seeds: str) -> None:
    assert [r.config.seed for r in matrix(f"prompts: [a mug]\nseeds: {seeds}")] == [4, 5, 6, 7]


def test_a_setting_that_starts_from_a_missing_file_is_refused_before_anything_starts(
    matrix: Callable[..., list[Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"prompts: [a mug]\nsettings: {{a: {{init: {{ply: {tmp_path / 'start.ply'}}}}}}}"
    runs = matrix(text)
    for use in (lambda: list_runs(tmp_path / "out", runs), lambda: make_runs(tmp_path / "out", runs, SweepOptions())):
        with pytest.raises(UserError, match=r"settings, 'a': init: expected a splat or a mesh, got .*start\.ply"):
            use()
    (tmp_path / "start.ply").write_bytes(b"")
    list_runs(tmp_path / "out", runs)
    assert "1 new" in capsys.readouterr().out, "control"


def test_runs_keep_their_names_when_a_matrix_is_extended(matrix: Callable[..., list[Run]], prompts: Path) -> None:
    few = {r.name: r.config for r in matrix("prompts: [a mug]\nmethods: [cfd]")}
    more = {r.name: r.config for r in matrix(MATRIX + "  strong: {coarse: {cfg: 8.0}}\n")}
    assert few == {"a-mug-cfd-0": more["a-mug-cfd-0"]}
    assert "a-mug-sds-weak-guidance-1" in more and "a-mug-sds-strong-1" in more


def test_the_matrix_of_the_docs_makes_the_runs_that_they_say(matrix: Callable[..., list[Run]]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "sweeps.md").read_text()
    texts = re.findall(r"^```yaml\n(prompts:.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(texts) == 1 and len(matrix(texts[0])) == 2 * 2 * 4 * 3
    assert "2 × 2 × 4 × 3 here" in page


@pytest.mark.parametrize(
    "text, words",
    [
        ("- a mug", ["matrix: expected a mapping", "prompts, methods, seeds, settings"]),
        ("prompts: [a mug", ["matrix: expected yaml in"]),
        ("methods: [cfd]", ["matrix: expected 'prompts'"]),
        ("prompts: [a mug]\nmethod: [cfd]", ["matrix: expected the keys", "'method'"]),
        ("prompts: []", ["a list of prompts", "not empty"]),
        ("prompts: a mug", ["a list of prompts"]),
        ("prompts: [a mug, '']", ["texts as prompts"]),
        ("prompts: [a mug]\nmethods: []", ["a list of methods", "not empty"]),
        ("prompts: [a mug]\nseeds: []", ["a list of seeds", "not empty"]),
        ("prompts: [a mug]\nsettings: {}", ["settings by name, at least one"]),
        ("prompts: [a mug, a duck, a mug]", ["each of the prompts once", "'a mug' twice"]),
        ("prompts: [a mug]\nmethods: [cfd, cfd]", ["each of the methods once", "'cfd' twice"]),
        ("prompts: [a mug]\nseeds: [1, 1]", ["each of the seeds once", "'1' twice"]),
        ("prompts: [a mug]\nseeds: [0.5]", ["texts as seeds"]),
        ("prompts: [a mug]\nprompts: [a duck]", ["each key once", "'prompts' twice"]),
        ("prompts: [a mug]\nsettings: {a: {}, a: {noise: {beta: 1.0}}}", ["each key once", "'a' twice"]),
        ("prompts: [a mug]\nsettings: {a: {}, b: {}}", ["each run once", "'a' and 'b'"]),
        ("prompts: [a mug]\nsettings: {a: {coarse: {cfg: 2}}, A: {coarse: {cfg: 3}}}", ["same run or folder", "'A'"]),
        ("prompts: [a mug]\nsettings: {a: {noise: {bata: 1}}}", ["'a'", "unknown key 'noise.bata'", "'beta'"]),
        ("prompts: [a mug]\nsettings: {a: {coarse: {cfg: many}}}", ["'a'", "coarse.cfg", "'many'"]),
        ("prompts: [a mug]\nsettings: {a: {seed: 1}}", ["'a': expected no 'seed'"]),
        ("prompts: [a mug]\nsettings: {a: 3}", ["'a': expected changes as in a preset"]),
        ("prompts: [a mug]\nmethods: [nerf]", ["matrix: expected methods among", "'nerf'"]),
        ("prompts: [a mug, a zebra]", ["matrix.yaml, prompt 2", "'zebra'"]),
    ],
)
def test_a_bad_matrix_is_one_clear_error_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    (tmp_path / "matrix.yaml").write_text(text)
    assert sweep.main(["--matrix", str(tmp_path / "matrix.yaml"), "--out", str(tmp_path / "out"), *FEW]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and all(word in error for word in words), error
    assert "Traceback" not in error and not (tmp_path / "out").exists()


def test_a_matrix_takes_the_place_of_prompts_seeds_and_guidance(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "matrix.yaml").write_text("prompts: [a mug]")
    given = ["--matrix", str(tmp_path / "matrix.yaml")]
    wrong = {
        "either --prompts FILE or --matrix": [*given, "--prompts", str(prompts)],
        "got both or neither": [],
        "no --seeds beside --matrix": [*given, "--seeds", "3"],
        "write 'methods' into": [*given, "--guidance", "cfd"],
        "a .csv or .parquet file": [*given, "--table", "runs.xlsx"],
    }
    for words, arguments in wrong.items():
        assert sweep.main([*arguments, *FEW, "--dry-run"]) == 2
        assert words in capsys.readouterr().err


def worked(runs: list[Run], out: Path) -> None:
    """Leaves the second run failed twice, and the first finished."""
    begin(runs[0])
    (runs[0].folder / "turntable.png").write_text("the last file")
    (runs[0].folder / "stats.jsonl").write_text('{"stage": "coarse", "step": 1, "gaussians": 70}\n')
    journal = Journal(out / JOURNAL)
    journal.write(runs[0].name, "started", attempt=1, host="here", pid=1)
    journal.write(runs[0].name, "finished", seconds=2.5)
    for attempt in (1, 2):
        journal.write(runs[1].name, "started", attempt=attempt, host="there", pid=2)
        journal.write(runs[1].name, "failed", seconds=1.0, error="no room")
    journal.close()


def test_the_table_has_a_row_for_every_run_with_what_changed_and_what_became_of_it(
    matrix: Callable[..., list[Run]], tmp_path: Path
) -> None:
    runs = matrix(MATRIX)
    worked(runs, tmp_path / "out")
    write_table(tmp_path / "out", runs, tmp_path / "runs.csv")
    with open(tmp_path / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [str(run.folder) for run in runs]
    assert [rows[0][k] for k in ("state", "attempts", "seconds", "gaussians", "host")] == [
        "finished",
        "1",
        "2.5",
        "70",
        "here",
    ]
    assert [rows[1][k] for k in ("state", "attempts", "seconds", "error")] == ["failed", "2", "2.0", "no room"]
    assert {(row["setting"], row["coarse.cfg"]) for row in rows} == {("plain", ""), ("weak guidance", "2.0")}
    assert {row["state"] for row in rows[2:]} == {"new"}


def test_a_parquet_table_holds_the_rows_of_the_csv(matrix: Callable[..., list[Run]], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    runs = matrix(MATRIX + "  mixed: {coarse: {cfg: 1, cds: {gap: [0.2, 0.3]}}}\n")
    worked(runs, tmp_path / "out")
    write_table(tmp_path / "out", runs, tmp_path / "runs.parquet")
    rows = parquet.read_table(tmp_path / "runs.parquet").to_pylist()
    assert rows == table_rows(tmp_path / "out", runs)
    assert one_type([1, None, "a"]) == ["1", None, "a"] and one_type([1, 2.5, None]) == [1.0, 2.5, None]


def test_a_sweep_that_loses_its_workers_leaves_its_table(
    planned: Callable[..., list[Run]], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(out: Path, runs: list[Run], settings: SweepOptions) -> None:
        if out == tmp_path / "out":
            worked(runs, out)
        raise UserError("workers: 4 died before they were ready")

    monkeypatch.setattr(sweeps_make, "make_runs", lost)
    assert run_sweep(prompts, tmp_path / "out") == 2
    assert [row["state"] for row in kept_rows(tmp_path / "out" / "runs.csv", tmp_path / "out")] == ["finished"]
    assert run_sweep(prompts, tmp_path / "none") == 2 and not (tmp_path / "none").exists(), "control: nothing started"


def test_a_run_has_one_row_from_whatever_folder_the_sweep_is_made(
    planned: Callable[..., list[Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = planned()
    for run in runs:
        begin(run)
    monkeypatch.chdir(tmp_path)
    here = [replace(run, folder=run.folder.relative_to(tmp_path)) for run in runs]
    write_table(Path("out"), here, tmp_path / "runs.csv")
    for folder, made in (("out", runs[:1]), ("out", runs), (runs[0].folder, runs[:1])):
        monkeypatch.chdir(tmp_path / folder)
        write_table(tmp_path / "out", made, tmp_path / "runs.csv")
        with open(tmp_path / "runs.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [Path(row["run"]) for row in rows] == [run.folder for run in runs]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_table_keeps_the_rows_of_other_runs_that_are_still_there(
    ending: str, planned: Callable[..., list[Run]], tmp_path: Path
) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    path, runs = tmp_path / f"runs{ending}", planned(seeds="0:2")
    worked(runs, tmp_path / "out")

    def told() -> dict[str, Any]:
        return {Path(row["run"]).name: row["state"] for row in kept_rows(path, tmp_path / "out")}

    write_table(tmp_path / "out", runs, path)
    assert told() == {runs[0].name: "finished"}, "control: only the first has a folder"
    others = planned(seeds="2")
    for run in others:
        begin(run)
    write_table(tmp_path / "out", others, path)
    assert told() == {runs[0].name: "finished", **{run.name: "stopped" for run in others}}
    (others[0].folder / "turntable.png").write_text("the last file")
    write_table(tmp_path / "out", others[:1], path)
    assert told()[others[0].name] == "finished" and len(told()) == 3, "a run has one row, the newest"
    shutil.rmtree(runs[0].folder)
    write_table(tmp_path / "out", others, path)
    assert runs[0].name not in told()
    path.write_text("run,other\nout,1\n")
    write_table(tmp_path / "out", others, path)
    assert len(told()) == 2, "a file that is no such table is replaced"


def test_without_pyarrow_a_parquet_table_is_refused_before_the_sweep(
    monkeypatch: pytest.MonkeyPatch, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    assert run_sweep(prompts, tmp_path / "out", "--table", str(tmp_path / "t.parquet")) == 2
    assert "pip install 'gscfd[sweep]'" in capsys.readouterr().err and not (tmp_path / "out").exists()
