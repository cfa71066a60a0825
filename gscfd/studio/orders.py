"""The queue of the studio, on disk, and the process that makes its first run.

Every change is a row of the journal before it takes effect, so that a killed studio loses nothing: the next one reads
the rows again, goes on watching a run that is still being made, and resumes one that was cut off.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gscfd.config import NOISE_OF, Config, MethodName, check, load_preset, presets
from gscfd.distil.preflight import check_settings
from gscfd.errors import UserError
from gscfd.files import is_locked, remove_unfinished
from gscfd.runs.names import FINISHED_FILE, slug
from gscfd.sweeps.journal import Journal, read_rows
from gscfd.teachers.kinds import is_here, known_words

JOURNAL = "studio.jsonl"
"""File in the studio's folder with a row for every event of the queue."""
OUTPUT = "studio.log"
"""File in the studio's folder with the output of the latest run."""
TAIL_BYTES = 8192
"""Number of bytes at the end of the output in which the reason of a failure is looked for."""
STOP_SECONDS = 60.0
"""Time that a run has to save itself when the studio ends."""
WORDS = "the form lists the words that they know. Free text needs a preset with other teachers"
"""What to do about words that the toybox's teachers do not know."""
WATCHED: tuple[str, ...] = ("--checkpoint.every", "5", "--checkpoint.seconds", "1")
"""Options of runs with the toybox's teachers, whose checkpoints are small: the page shows the splat at checkpoints."""
STOPPED = {-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGHUP}
"""Exit codes of a run that was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is typed into the page."""

    prompt: str
    preset: str
    seed: int = 0
    guidance: MethodName = "cfd"
    start: Path | None = None
    """Splat to start from; None: the ball."""
    refine: bool = False
    """Whether to skip the coarse stage, for a splat that is to be sharpened."""

    def config(self, device: Literal["auto", "cpu", "cuda"]) -> Config:
        """Returns the settings of the run. Raises UserError for what cannot be made.

        The teachers' files are left to the run: looking for those of the hub, or fetching them, would hold the page up.
        """
        check(self.prompt.isprintable(), "prompt", "one line of text", self.prompt)
        check(bool(self.prompt), "prompt", "a description such as: a yellow duck", self.prompt)
        check(self.preset in presets(), "preset", " or ".join(presets()), self.preset)
        check(self.guidance in NOISE_OF, "guidance", " or ".join(NOISE_OF), self.guidance)
        config = self.settings()
        check_settings(replace(config, device=device), WORDS)
        if not config.stages():
            raise UserError(f"refine: expected a preset with a refine or polish stage, got {self.preset}")
        return config

    def settings(self) -> Config:
        """Returns the settings of the run, not yet checked."""
        config = load_preset(self.preset)
        coarse = replace(config.coarse, steps=0) if self.refine else config.coarse
        init = replace(config.init, ply=self.start)
        return replace(config, prompt=self.prompt, seed=self.seed, guidance=self.guidance, init=init, coarse=coarse)

    @property
    def fetches(self) -> bool:
        """Whether the run begins by fetching its teachers from the hub."""
        return not all(is_here(stage.teacher) for stage in self.settings().stages().values())

    def arguments(self, device: Literal["auto", "cpu", "cuda"]) -> tuple[str, ...]:
        """Returns the options of gscfd.train, without --out. Raises UserError for what cannot be made."""
        config = self.config(device)
        small = all(known_words(stage.teacher) for stage in config.stages().values())
        return (
            f"--prompt={self.prompt}",
            *("--preset", self.preset, "--seed", str(self.seed), "--guidance", self.guidance),
            *((f"--init={self.start}",) if self.start is not None else ()),
            *(("--coarse.steps", "0") if self.refine else ()),
            *(("--device", device) if device != "auto" else ()),
            *(WATCHED if small else ()),
        )


@dataclass(frozen=True)
class Order:
    """A run of the queue: the name of its folder, and the options of gscfd.train that start it."""

    name: str
    arguments: tuple[str, ...]

    def value(self, option: str) -> str:
        """Returns the value of an option, such as "--seed", or "" if it is not given."""
        for argument, after in itertools.pairwise((*self.arguments, "")):
            if argument == option:
                return after
            if argument.startswith(f"{option}="):
                return argument.removeprefix(f"{option}=")
        return ""


@dataclass
class Making:
    """The run in progress."""

    order: Order
    pid: int
    process: subprocess.Popen[bytes] | None
    """None if an earlier studio started it."""
    stopping: bool = False

    def ended(self, folder: Path) -> bool:
        if self.process is not None:
            return self.process.poll() is not None
        return not is_run(self.pid, folder / self.order.name)


class Orders:
    """The queue. Only one thread calls it.

    Raises UserError if another studio has the folder or if it cannot be written.
    """

    def __init__(self, folder: Path):
        """folder: absolute."""
        self.folder = folder
        self.journal = opened(folder)
        self.known: dict[str, Order] = {}
        """Every order that was ever given and not removed, by name."""
        self.waiting: list[str] = []
        self.failures: dict[str, str] = {}
        """Why a run failed, by name."""
        self.stopped: set[str] = set()
        """Orders that were stopped, also those of which nothing is on disk yet."""
        self.making: Making | None = None
        self.trouble = ""
        """Why the journal cannot be written at the moment."""
        self.replay(read_rows(folder / JOURNAL))

    def replay(self, rows: list[dict[str, Any]]) -> None:
        """Restores the queue from the journal, and puts a run that was cut off before all others."""
        started: dict[str, int] = {}
        for row in rows:
            name, event = row["run"], row.get("event")
            self.waiting = [other for other in self.waiting if other != name]
            started.pop(name, None)
            self.stopped.discard(name)
            if event == "queued":
                if isinstance(row.get("arguments"), list):
                    self.known[name] = Order(name, tuple(map(str, row["arguments"])))
                self.failures.pop(name, None)
                self.waiting.append(name)
            elif event == "starting":
                self.waiting.insert(0, name)
            elif event == "started":
                started[name] = row["pid"] if isinstance(row.get("pid"), int) else 0
            elif event == "failed":
                self.failures[name] = str(row.get("error", ""))
            elif event in ("stopping", "stopped") and name in self.known:
                self.stopped.add(name)
            elif event == "removed":
                self.known.pop(name, None)
                self.failures.pop(name, None)
        for name, pid in started.items():
            self.adopt(name, pid)

    def adopt(self, name: str, pid: int) -> None:
        """Goes on with a run that an earlier studio started."""
        if is_run(pid, self.folder / name):
            self.making = Making(self.known.get(name) or Order(name, ()), pid, None)
        elif self.is_finished(name):
            self.write(name, "finished")
        else:
            self.waiting.insert(0, name)

    def is_finished(self, name: str) -> bool:
        return (self.folder / name / FINISHED_FILE).is_file()

    def write(self, name: str, event: str, **facts: Any) -> None:
        """Writes a row. Raises UserError if the disk is full or gone."""
        try:
            self.journal.write(name, event, **facts)
        except OSError as error:
            raise UserError(
                f"{self.folder / JOURNAL}: cannot be written ({error.strerror}); free space, then try again"
            ) from None

    def free_name(self, prompt: str, seed: int) -> str:
        """Returns the name of a folder that does not exist and is not promised to another order."""
        base = f"{slug(prompt)}-{seed}"
        names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in self.known and not (self.folder / name).exists())

    def add(self, wish: Wish, device: Literal["auto", "cpu", "cuda"]) -> Order:
        """Queues a new run. Raises UserError, and queues nothing, if it cannot be made or written down."""
        order = Order(self.free_name(wish.prompt, wish.seed), wish.arguments(device))
        self.write(order.name, "queued", arguments=order.arguments)
        self.known[order.name] = order
        self.waiting.append(order.name)
        return order

    def resume(self, name: str) -> None:
        """Queues a run again that was stopped or has failed, also one that was started elsewhere."""
        if name in self.waiting or (self.making is not None and self.making.order.name == name):
            raise UserError(f"continue: {name} is in the queue already")
        self.write(name, "queued")
        self.failures.pop(name, None)
        self.stopped.discard(name)
        self.waiting.append(name)

    def remove(self, name: str) -> None:
        """Takes a run out of the queue, or forgets one that is no longer on disk."""
        on_disk = (self.folder / name / "config.yaml").is_file()
        self.write(name, "stopped" if on_disk else "removed")
        self.waiting = [other for other in self.waiting if other != name]
        self.failures.pop(name, None)
        self.stopped.discard(name)
        if not on_disk:
            self.known.pop(name, None)

    def stop(self) -> None:
        """Asks the run in progress to save itself and end, as Ctrl-C does; a second call changes nothing."""
        if self.making is None or self.making.stopping:
            return
        self.write(self.making.order.name, "stopping")
        self.making.stopping = True
        self.signal(self.making)

    def signal(self, making: Making) -> None:
        if not making.ended(self.folder):
            with suppress(ProcessLookupError):
                os.kill(making.pid, signal.SIGTERM)

    def tick(self) -> None:
        """Records a run that has ended, and starts the next one. Sets `trouble` if a row cannot be written; nothing has
        changed then, and the next call tries again."""
        try:
            if self.making is not None and self.making.ended(self.folder):
                self.settle(self.making)
            if self.making is None and self.waiting and not self.is_made_elsewhere(self.waiting[0]):
                self.start(self.waiting[0])
            self.trouble = ""
        except UserError as error:
            self.trouble = str(error)

    def is_made_elsewhere(self, name: str) -> bool:
        return is_locked(self.folder / name / "stats.jsonl")

    def settle(self, making: Making) -> None:
        name, code = making.order.name, None if making.process is None else making.process.returncode
        if self.is_finished(name):
            self.write(name, "finished")
        elif making.stopping or code in STOPPED:
            self.write(name, "stopped")
            if name in self.known:
                self.stopped.add(name)
        else:
            reason = why(self.folder / OUTPUT, code)
            self.write(name, "failed", error=reason)
            self.failures[name] = reason
        self.making = None

    def start(self, name: str) -> None:
        """Starts or resumes the first run of the queue. Drops one that is finished, and one that was started elsewhere
        and is no longer on disk: nothing says how to make it."""
        path = self.folder / name
        on_disk, order = (path / "config.yaml").is_file(), self.known.get(name)
        if self.is_finished(name) or (order is None and not on_disk):
            self.write(name, "finished" if self.is_finished(name) else "removed")
            self.waiting.remove(name)
            return
        order = order or Order(name, ())
        arguments = (f"--resume={path}",) if on_disk else (*order.arguments, f"--out={path}")
        if not on_disk:
            clear(path)
        self.write(name, "starting")  # a full disk is found out before the run begins
        process = launch(arguments, self.folder / OUTPUT)
        self.making = Making(order, process.pid, process)
        self.waiting.remove(name)
        self.write(name, "started", pid=process.pid)

    def close(self) -> None:
        """Ends the run in progress, which saves itself, and the journal. The next studio resumes the run."""
        if self.making is not None:
            self.signal(self.making)
            end = time.monotonic() + STOP_SECONDS
            while not self.making.ended(self.folder) and time.monotonic() < end:
                time.sleep(0.1)
        self.journal.close()


def opened(folder: Path) -> Journal:
    """Returns the folder's journal. Raises UserError if another studio has it."""
    if (folder / "config.yaml").is_file():
        raise UserError(f"folder: expected a folder of runs, got the run {folder}; choose {folder.parent}")
    try:
        return Journal(folder / JOURNAL, "folder", "studio")
    except UserError:
        served = [row.get("address") for row in read_rows(folder / JOURNAL) if row.get("event") == "serving"]
        if served and is_locked(folder / JOURNAL):
            raise UserError(
                f"folder: another studio serves {folder}; open {served[-1]}, or choose another folder"
            ) from None
        raise


def clear(path: Path) -> None:
    """Removes a folder that a run left before its settings were written, unless it holds other files."""
    if path.is_dir():
        remove_unfinished(path)
        with suppress(OSError):
            path.rmdir()


def launch(arguments: tuple[str, ...], output: Path) -> subprocess.Popen[bytes]:
    """Starts gscfd.train in a process of its own, which outlives the studio if that is killed."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "gscfd.train", *arguments, "--no-viewer"]
    with open(output, "wb") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def is_run(pid: int, path: Path) -> bool:
    """Returns whether the process is a gscfd.train that makes the run in this folder."""
    command = command_of(pid)
    return "gscfd.train" in command and any(f"--{option}={path}\0" in command for option in ("out", "resume"))


def command_of(pid: int) -> str:
    """Returns the command line of a process, each argument followed by a NUL; "" if there is none."""
    if sys.platform == "linux":
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        return ""
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "args="], capture_output=True, text=True, check=False)
    return listed.stdout.strip().replace(" ", "\0") + "\0"


def why(output: Path, code: int | None) -> str:
    """Returns the reason of a failure: the error of the run's output, or the signal that killed it."""
    lines = tail(output).splitlines() if output.is_file() else []
    said = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    if said:
        return said[-1].split(": ", 1)[1]
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}, as a system does that has run out of memory"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")


def tail(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read().decode(errors="replace")
