"""Makes many runs, several at a time: run states, workers and progress."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gscfd.config import Config, load_run, plain
from gscfd.devices import run_device
from gscfd.distil.preflight import preflight
from gscfd.errors import UserError, warn
from gscfd.files import is_locked
from gscfd.runs.names import FINISHED_FILE, changed_settings
from gscfd.sweeps.journal import JOURNAL, Journal, last_failures
from gscfd.sweeps.options import Workers
from gscfd.sweeps.workers import Outcome, Place, RayPool

if TYPE_CHECKING:
    from rich.table import Table


REFRESH = 1.0
"""Interval at which workers are polled, seconds."""
SHOWN_RUNS = 20
"""Maximum number of rows in the table of running runs."""
TAIL_BYTES = 4096
"""Number of bytes at the end of stats.jsonl that contain its last row."""
State = Literal["new", "stopped", "failed", "running", "finished"]


@dataclass(frozen=True)
class Run:
    """A run of the sweep."""

    folder: Path
    config: Config
    """Settings, with this folder as `out`."""
    setting: str = ""
    """Name of the setting in the sweep's matrix; "" without one."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What the setting changes, by dotted name."""

    @property
    def name(self) -> str:
        return self.folder.name


def state_of(run: Run, failures: dict[str, str]) -> State:
    """Returns the state of a run, from its folder. failures: from `last_failures`. Raises UserError for a run with
    other settings."""
    if not (run.folder / "config.yaml").is_file():
        return "failed" if run.name in failures else "new"
    if changed := changed_settings(run.config, plain(load_run(run.folder))):
        raise UserError(f"out: {run.folder} is a run with other settings: {changed}; choose another --out")
    if (run.folder / FINISHED_FILE).exists():
        return "finished"
    if is_locked(run.folder / "stats.jsonl"):
        return "running"
    return "failed" if run.name in failures else "stopped"


class Pool(Protocol):
    """Workers that make runs, such as `gscfd.sweeps.workers.RayPool`."""

    def free(self) -> bool: ...
    def start(self, run: str, config: Config) -> Place: ...
    def wait(self, seconds: float) -> dict[str, Outcome]: ...


@dataclass
class Progress:
    """Progress of a sweep."""

    total: int
    running: dict[str, tuple[Run, Place, float]] = field(default_factory=dict)
    """Run, place and start time (time.monotonic) by run name."""
    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Error of each run that was given up, by run name."""

    def __str__(self) -> str:
        text = f"{self.finished} of {self.total} runs finished"
        return text + (f", {len(self.failed)} failed" if self.failed else "")


def carry_out(
    todo: Iterable[Run],
    pool: Pool,
    journal: Journal,
    progress: Progress,
    *,
    retries: int,
    say: Callable[[str], None],
    show: Callable[[], None],
) -> None:
    """Makes the runs and keeps `progress` up to date. A run that did not finish is retried at most `retries` times,
    unless its input is wrong: at the end of the queue, or next if it lost its worker."""
    waiting, attempts = deque(todo), Counter[str]()
    while waiting or progress.running:
        while waiting and pool.free():
            run = waiting.popleft()
            attempts[run.name] += 1
            place = pool.start(run.name, run.config)
            progress.running[run.name] = run, place, time.monotonic()
            journal.write(run.name, "started", attempt=attempts[run.name], **asdict(place))
        for name, outcome in pool.wait(REFRESH).items():
            run, _, _ = progress.running.pop(name)
            facts = {"error": outcome.error} if outcome.error else {}
            journal.write(name, outcome.state, seconds=round(outcome.seconds, 3), **facts)
            again = outcome.state != "refused" and attempts[name] <= retries
            if outcome.state == "finished":
                progress.finished += 1
                say(f"{run.folder}  finished in {outcome.seconds:.0f} s; {progress}")
            elif again and outcome.state == "lost":
                say(f"{run.folder}  lost: {outcome.error}; will be retried next")
                waiting.appendleft(run)
            elif again:
                say(f"{run.folder}  {outcome.state}: {outcome.error}; will be retried at the end of the queue")
                waiting.append(run)
            else:
                progress.failed[name] = outcome.error
                say(f"{run.folder}  {outcome.state}: {outcome.error}; given up")
        show()


def last_row(stats: Path) -> dict[str, Any]:
    """Returns the last complete row of a run's stats.jsonl, or an empty dict if there is none or it is damaged."""
    if not stats.is_file():
        return {}
    with open(stats, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        rows = file.read().split(b"\n")[:-1]
    with suppress(ValueError, RecursionError):
        row = json.loads(rows[-1] if rows else b"{}")
        return row if isinstance(row, dict) else {}
    return {}


def reached(folder: Path) -> str:
    """Returns the stage and step a run has reached, as text."""
    row = last_row(folder / "stats.jsonl")
    known = isinstance(row.get("step"), int)
    return f"{row.get('stage')}, step {row['step'] + 1}" if known else ""


def table(progress: Progress) -> Table:
    """Returns a table of the running runs and their progress."""
    from rich.table import Table

    shown = Table(title=str(progress), title_justify="left", box=None)
    for column in ("run", "worker", "reached", "seconds"):
        shown.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for name, (run, place, since) in list(progress.running.items())[:SHOWN_RUNS]:
        steps = " + ".join(str(stage.steps) for stage in run.config.stages().values())
        where = f"{reached(run.folder) or 'starting'} of {steps}"
        shown.add_row(name, f"{place.host}, {place.pid}", where, f"{time.monotonic() - since:.0f}")
    if len(progress.running) > SHOWN_RUNS:
        shown.add_row(f"and {len(progress.running) - SHOWN_RUNS} more")
    return shown


def cores() -> int:
    """Returns the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_threads(settings: Workers) -> int:
    """Returns the number of threads per worker on this machine; warns if workers have to share cores."""
    threads = settings.threads or max(1, cores() // settings.workers)
    if settings.workers * threads > cores():
        warn(
            f"workers: {settings.workers} workers of {threads} threads on {cores()} cores take turns and are slower "
            f"than --workers {max(1, cores() // threads)}"
        )
    return threads


def check_starts(runs: list[Run], states: dict[str, State]) -> None:
    """Raises UserError if a new run starts from a file that is not there."""
    for run in runs:
        file = run.config.init.ply
        if states[run.name] == "new" and file is not None and not file.is_file():
            place = f"settings, {run.setting!r}: " if run.setting else ""
            raise UserError(f"{place}init: expected a splat or a mesh, got {file}, which is not there; check the path")


def make_runs(out: Path, runs: list[Run], settings: Workers) -> Progress:
    """Makes the runs that are not finished. out: folder of the journal. Raises UserError."""
    states = states_of(runs, last_failures(out / JOURNAL))
    check_starts(runs, states)
    todo = [run for run in runs if states[run.name] != "finished"]
    progress = Progress(len(runs), finished=len(runs) - len(todo))
    if todo:
        hand_out(out, todo, settings, progress)
    return progress


def hand_out(out: Path, todo: list[Run], settings: Workers, progress: Progress) -> None:
    """Makes the runs with workers and shows a table of their progress."""
    from rich.console import Console
    from rich.live import Live

    if chosen := [run.config.device for run in todo if ":" in run.config.device]:
        raise UserError(
            f"device: expected cuda, since a sweep gives each run a GPU of its own, got {chosen[0]}; to use only some "
            "GPUs, set CUDA_VISIBLE_DEVICES"
        )
    local = settings.address is None
    if local:
        for config in {run.config.guidance: run.config for run in todo}.values():
            preflight(config)
    console = Console()
    journal = Journal(out / JOURNAL)
    try:
        pool = RayPool(
            journal.path,
            run_device(todo[0].config).type if local else todo[0].config.device,
            workers=settings.workers,
            threads=local_threads(settings) if local else settings.threads,
            gpus=settings.gpus,
            address=settings.address,
        )
        try:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                carry_out(
                    todo,
                    pool,
                    journal,
                    progress,
                    retries=settings.retries,
                    say=lambda text: console.print(text, soft_wrap=True, markup=False, highlight=False),
                    show=lambda: live.update(table(progress), refresh=True) if console.is_terminal else None,
                )
        finally:
            pool.stop()
    finally:
        journal.close()


def states_of(runs: list[Run], failures: dict[str, str]) -> dict[str, State]:
    """Returns the state of each run by name. Raises UserError for a run with other settings."""
    return {run.name: state_of(run, failures) for run in runs}
