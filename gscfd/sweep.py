"""A run for every prompt, method and seed, several at a time: `python -m gscfd.sweep --prompts FILE --seeds 0:8`.

What is to be done is read from the runs' folders alone, so that the same command continues a sweep that was stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, get_args

import tyro

from gscfd.config import Config, Guidance, ViewerConfig, check, load_run, plain
from gscfd.devices import run_device
from gscfd.errors import UserError, warn
from gscfd.files import lock
from gscfd.runs import LAST, changed_settings, slug
from gscfd.train import check_prompt, parse, preflight
from gscfd.workers import Outcome, Place, RayPool

if TYPE_CHECKING:
    from rich.table import Table

JOURNAL = "sweep.jsonl"
"""In the sweep's folder: a row for every begin and end of an attempt at a run."""
MOST_SEEDS = 100_000
REFRESH = 1.0
"""Seconds between two looks at the workers."""
SHOWN = 20
"""Most rows of the table of running runs."""
TAIL = 4096
"""Bytes at the end of stats.jsonl that hold its last row."""
PER_RUN = ("prompt", "seed", "resume", "overwrite", "viewer")
"""Settings of a run that a sweep sets itself."""

State = Literal["new", "stopped", "failed", "running", "finished"]


@dataclass(kw_only=True)
class Workers:
    """Who makes the runs."""

    workers: int = 1
    """Runs at a time."""
    threads: int | None = None
    """CPU threads of each worker. Unset: all cores shared out."""
    gpus: float | None = None
    """GPUs of each worker; 0.5 puts two on one. Unset: one where there are any, but none for runs on the CPU."""
    address: str | None = None
    """Of a Ray cluster: auto, or HOST:PORT. Unset: this machine alone."""
    retries: int = 2
    """How often a run that failed, or whose worker died, is tried again."""

    def __post_init__(self) -> None:
        check(self.workers >= 1, "workers", "at least 1", self.workers)
        check(self.threads is None or self.threads >= 1, "threads", "at least 1", self.threads)
        check(self.gpus is None or self.gpus >= 0, "gpus", "at least 0", self.gpus)
        check(self.retries >= 0, "retries", "at least 0", self.retries)


@dataclass(kw_only=True)
class Settings(Workers):
    """Make a run for every prompt, method and seed. All other options are those of gscfd.train, for every run."""

    prompts: Path
    """A text file with one prompt per line; empty lines, and those that start with #, are skipped."""
    seeds: str = "0"
    """Seeds and ranges: 0:8 is 0 to 7, 0,3,7:9 is 0, 3, 7 and 8."""
    guidance: str | None = None
    """Methods, as in cfd,sds. Unset: the one of the preset."""
    out: Path = Path("sweep")
    """Folder of the runs' folders."""
    dry_run: bool = False
    """List the runs and what state each is in, and stop."""


@dataclass(frozen=True)
class Run:
    """One of the sweep's."""

    folder: Path
    config: Config
    """With this folder as `out`."""

    @property
    def name(self) -> str:
        return self.folder.name


def read_prompts(path: Path) -> dict[str, int]:
    """The prompts of the file and the lines they stand in, from 1, in order.

    Raises UserError when it cannot be read, is empty, or says one twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"prompts: expected a text file with one prompt per line, got {path} ({reason})") from None
    prompts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        if prompt in prompts:
            raise UserError(f"prompts: expected each once, got {prompt!r} in lines {prompts[prompt]} and {number}")
        prompts[prompt] = number
    if not prompts:
        raise UserError(f"prompts: expected at least one in {path}, got none; write one per line")
    return prompts


def read_seeds(text: str) -> list[int]:
    """The numbers of seeds and ranges, whose end is not in them: "0,3,7:9" is 0, 3, 7, 8. Raises UserError."""
    expected = "seeds and ranges, each seed once, such as 0:8 (0 to 7) or 0,3,7"
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?::(\d+))?\s*", part)
        if match is None:
            raise UserError(f"seeds: expected {expected}, got {part!r} in {text!r}")
        first = int(match[1])
        end = int(match[2]) if match[2] else first + 1
        check(first < end, "seeds", f"{expected}, and a range that rises", part)
        check(end - first <= MOST_SEEDS, "seeds", f"at most {MOST_SEEDS}", part)
        seeds += range(first, end)
    check(len(set(seeds)) == len(seeds), "seeds", expected, text)
    return seeds


def read_methods(text: str | None) -> list[str | None]:
    """The names of --guidance; None for the preset's own. Raises UserError for one that is not known."""
    if text is None:
        return [None]
    names: list[str | None] = [name.strip() for name in text.split(",")]
    for name in names:
        check(name in get_args(Guidance), "guidance", f"{', '.join(get_args(Guidance))}, with commas between", name)
    check(len(set(names)) == len(names), "guidance", "each method once", text)
    return names


def run_name(config: Config) -> str:
    """Of its folder: the prompt, with a part of its checksum where the words alone do not tell it, method and seed."""
    words = slug(config.prompt)
    if words.replace("-", " ") != config.prompt:
        words += "-" + hashlib.sha256(config.prompt.encode()).hexdigest()[:8]
    return f"{words}-{config.guidance}-{config.seed}"


def plan_runs(settings: Settings, arguments: list[str]) -> list[Run]:
    """All runs of the sweep, those of one prompt together, whose text is encoded once.

    arguments: for gscfd.train. Raises UserError for what can be known to be wrong before the first run begins.
    """
    for name in PER_RUN:
        if any(re.split("[=.]", a)[0] in (f"--{name}", f"--no-{name}") for a in arguments):
            raise UserError(f"{name}: expected no --{name} in a sweep, where it belongs to a single run")
    prompts, seeds = read_prompts(settings.prompts), read_seeds(settings.seeds)
    parsed = [parse([*arguments, *(["--guidance", name] if name else [])]) for name in read_methods(settings.guidance)]
    bases = [replace(config, resume=None, overwrite=False, viewer=ViewerConfig()) for config in parsed]
    check_prompts(prompts, settings.prompts, bases[0])
    runs = []
    for prompt in prompts:
        for base in bases:
            for seed in seeds:
                config = replace(base, prompt=prompt, seed=seed)
                folder = settings.out / run_name(config)
                runs.append(Run(folder, replace(config, out=folder)))
    return runs


def check_prompts(prompts: dict[str, int], path: Path, config: Config) -> None:
    """Raise UserError that names every line with words that a toybox teacher never saw."""
    errors = []
    for prompt, line in prompts.items():
        try:
            check_prompt(replace(config, prompt=prompt))
        except UserError as error:
            errors.append(f"{path}, line {line}: {error}")
    if errors:
        raise UserError("\n".join(errors))


def state_of(run: Run, failures: dict[str, str]) -> State:
    """What the run's folder says. failures: of `last_failures`. Raises UserError for a run with other settings."""
    if not (run.folder / "config.yaml").is_file():
        return "failed" if run.name in failures else "new"
    if changed := changed_settings(run.config, plain(load_run(run.folder))):
        raise UserError(f"out: {run.folder} is a run with other settings: {changed}; choose another --out")
    if (run.folder / LAST).exists():
        return "finished"
    if is_locked(run.folder / "stats.jsonl"):
        return "running"
    return "failed" if run.name in failures else "stopped"


def is_locked(path: Path) -> bool:
    """Whether a process writes to the file."""
    if not path.is_file():
        return False
    with open(path, "rb+") as file:
        return not lock(file)


def last_failures(journal: Path) -> dict[str, str]:
    """Why, by the names of the runs whose last attempt did not end well."""
    failures: dict[str, str] = {}
    for line in journal.read_text().splitlines() if journal.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by a kill
        failures.pop(row["run"], None)
        if "error" in row:
            failures[row["run"]] = row["error"]
    return failures


class Journal:
    """The sweep's rows, written by one process at a time. Raises UserError when another one is at it, or the folder
    cannot be written."""

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: IO[bytes] = open(path, "ab", buffering=0)
            alone = lock(self.file)
        except OSError as error:
            raise UserError(
                f"out: expected a folder that can be written and has locks, got {path.parent} ({error.strerror}); "
                "choose another --out"
            ) from None
        if not alone:
            self.file.close()
            raise UserError(f"out: another sweep writes to {path.parent}; wait for its end, or choose another --out")

    def write(self, run: str, event: str, **facts: Any) -> None:
        row = {"time": round(time.time(), 3), "run": run, "event": event, **facts}
        self.file.write(b"\n" * self.cut_short() + json.dumps(row).encode() + b"\n")

    def cut_short(self) -> bool:
        """Whether a kill left half a row at the end."""
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) not in (b"", b"\n")

    def close(self) -> None:
        self.file.close()


class Pool(Protocol):
    """Workers that make runs; `gscfd.workers.RayPool`."""

    def free(self) -> bool: ...
    def start(self, run: str, config: Config) -> Place: ...
    def wait(self, seconds: float) -> dict[str, Outcome]: ...


@dataclass
class Progress:
    """Of a sweep."""

    total: int
    running: dict[str, tuple[Run, Place, float]] = field(default_factory=dict)
    """By name: the run, where, and since when (time.monotonic)."""
    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by the names of the runs that were given up."""

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
    """Make the runs; progress is kept up to date. A run that did not end well comes again after all others, but not
    more often than `retries` says, and not when its input is wrong."""
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
            elif again:
                say(f"{run.folder}  {outcome.state}: {outcome.error}; comes again")
                waiting.append(run)
            else:
                progress.failed[name] = outcome.error
                say(f"{run.folder}  {outcome.state}: {outcome.error}; given up")
        show()


def last_row(stats: Path) -> dict[str, Any]:
    """The last whole row of a run's stats.jsonl; empty when there is none."""
    if not stats.is_file():
        return {}
    with open(stats, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        rows = file.read().split(b"\n")[:-1]
    return json.loads(rows[-1]) if rows else {}


def reached(folder: Path) -> str:
    """Where a run is, in words."""
    row = last_row(folder / "stats.jsonl")
    return f"{row['stage']}, step {row['step'] + 1}" if row else ""


def table(progress: Progress) -> Table:
    """What runs now, and how far it is."""
    from rich.table import Table

    shown = Table(title=str(progress), title_justify="left", box=None)
    for column in ("run", "worker", "reached", "seconds"):
        shown.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for name, (run, place, since) in list(progress.running.items())[:SHOWN]:
        steps = run.config.coarse.steps, run.config.refine.steps
        where = f"{reached(run.folder) or 'starting'} of {steps[0]} + {steps[1]}"
        shown.add_row(name, f"{place.host}, {place.pid}", where, f"{time.monotonic() - since:.0f}")
    if len(progress.running) > SHOWN:
        shown.add_row(f"and {len(progress.running) - SHOWN} more")
    return shown


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_threads(settings: Workers) -> int:
    """Threads of each worker on this machine; warns when workers have to share cores."""
    threads = settings.threads or max(1, cores() // settings.workers)
    if settings.workers * threads > cores():
        warn(
            f"workers: {settings.workers} workers of {threads} threads on {cores()} cores take turns and are slower "
            f"than --workers {max(1, cores() // threads)}"
        )
    return threads


def list_runs(states: dict[str, State], runs: list[Run], failures: dict[str, str]) -> None:
    """The whole of --dry-run."""
    for run in runs:
        state = states[run.name]
        more = {"failed": failures.get(run.name, ""), "stopped": reached(run.folder), "running": reached(run.folder)}
        print(f"{state:9} {run.folder}  {more.get(state, '')}".rstrip())
    counts = Counter(states.values())
    print(f"{len(runs)} runs: " + ", ".join(f"{counts[state]} {state}" for state in get_args(State) if counts[state]))


def make_runs(out: Path, runs: list[Run], settings: Workers) -> Progress:
    """Make the runs that are not finished. out: folder of the journal. Raises UserError."""
    states = states_of(runs, last_failures(out / JOURNAL))
    todo = [run for run in runs if states[run.name] != "finished"]
    progress = Progress(len(runs), finished=len(runs) - len(todo))
    if todo:
        hand_out(out, todo, settings, progress)
    return progress


def hand_out(out: Path, todo: list[Run], settings: Workers, progress: Progress) -> None:
    """Make the runs by workers, with a table of what they do."""
    from rich.console import Console
    from rich.live import Live

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
    """By name. Raises UserError."""
    return {run.name: state_of(run, failures) for run in runs}


def sweep(settings: Settings, arguments: list[str]) -> int:
    """The whole command. Returns the exit code."""
    runs = plan_runs(settings, arguments)
    if settings.dry_run:
        failures = last_failures(settings.out / JOURNAL)
        list_runs(states_of(runs, failures), runs, failures)
        return 0
    progress = make_runs(settings.out, runs, settings)
    print(f"{settings.out}  {progress}")
    for name, error in progress.failed.items():
        print(f"  {settings.out / name}: {error}")
    return 1 if progress.failed else 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        settings, rest = tyro.cli(Settings, args=arguments, prog="python -m gscfd.sweep", return_unknown_args=True)
        return sweep(settings, rest)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
