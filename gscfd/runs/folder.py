"""The folder of a run: its settings, statistics, log, checkpoints and results."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from gscfd.config import Config, plain, to_yaml
from gscfd.deferred import DeferredNumbers
from gscfd.devices import run_device
from gscfd.distil.bar import StepBar
from gscfd.distil.edits import changes, place, place_of
from gscfd.distil.stage import StepReport
from gscfd.distil.start import read_splat
from gscfd.distil.state import Checkpoint, paper_gradient_variance, part, scaled_gradient_variance
from gscfd.errors import UserError, warn
from gscfd.export.turntable import THREE_QUARTERS, turntable_frames
from gscfd.files import Background, atomic_write, lock, remove_unfinished, write_whole
from gscfd.gaussians import Gaussians
from gscfd.pictures import write_contact_sheet, write_picture, write_video
from gscfd.runs.checkpoint import Checkpoints
from gscfd.runs.names import (
    FINISHED_FILE,
    START_FILE,
    VIDEO_FILE,
    check_replaceable,
    check_resumable,
    check_same_settings,
    folder_of,
    is_empty,
)

log = logging.getLogger("gscfd")
VARIANCES = ("means", "sh0")
"""Parameters whose gradient variance (CFD Eq. 15) is recorded, in two forms: positions and colors."""
TURN_FRAMES, TURN_SIZE, TURN_FPS = 80, 512, 20
"""The turntable of a finished run: one turn in four seconds."""
VARIANCE_EVERY = 10
"""Number of steps between two records of the gradient variance."""


class Busy(UserError):
    """Another process is writing to the run folder."""


class Stopped(RuntimeError):
    """The run stopped before it was finished. The message says why and what was kept."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
        """Exit code of the command."""


class LogFile(logging.FileHandler):
    """A log file that ignores write errors such as a full disk; the run reports them itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class RunFolder:
    """Opens the folder, writes config, statistics, log, checkpoints and exports, and shows the progress.

    While it is open, stats.jsonl is locked so that no other process can write to the folder. Raises Busy if another
    process holds the lock, and UserError if the folder exists and neither `overwrite` nor `resume` is given, contains
    files that do not belong to a run, or cannot be written.
    """

    def __init__(self, config: Config, start: Gaussians | None = None):
        """start: initial splat, if --init is given and --resume is not."""
        self.config, self.start = config, start
        self.path = folder_of(config)
        self.checkpoints = Checkpoints(self.path / "checkpoints", config.checkpoint.keep)
        self.saving = Background("checkpoint")
        self.rows = 0
        self.waiting: dict[str, Any] | None = None
        """Row of the last step. It is written after the next step, when reading it does not stall the device."""
        self.latest: Gaussians | None = None
        """Splat after the last step."""
        self.good: Checkpoint | None = None
        """Checkpoint of the last good state."""
        reset_peak_memory(run_device(config))
        self.started = self.saved = time.monotonic()
        self.bar = StepBar()
        self.stats: IO[bytes]
        self.handler: logging.Handler
        self.open_files()
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.setLevel(logging.INFO)
        log.addHandler(self.handler)
        log.info("prompt %r, seed %d", config.prompt, config.seed)

    def open_files(self) -> None:
        try:
            if not self.config.resume:
                self.make_folder()
            self.stats = self.locked_stats()
            self.handler = LogFile(self.path / "log.txt", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(
                f"out: expected a writable folder, got {self.path} ({error.strerror}); choose another --out"
            ) from None

    def make_folder(self) -> None:
        """Creates the folder, replacing an earlier run if `overwrite` is set, and writes the config to it."""
        empty = self.path.is_dir() and is_empty(self.path)
        if self.path.exists():
            check_replaceable(self.path, self.config.overwrite)
            if not empty:
                with self.locked_stats():
                    shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=empty)
        if self.start is not None:
            self.start.save_ply(self.path / START_FILE)
        self.write_config(self.config)

    def write_config(self, config: Config) -> None:
        with atomic_write(self.path / "config.yaml") as file:
            file.write(to_yaml(config).encode())

    def record(self, config: Config) -> None:
        """Saves settings with edits, for a resume. Raises OSError on failure, leaving everything unchanged."""
        self.write_config(replace(config, resume=None))
        self.config = config

    def locked_stats(self) -> IO[bytes]:
        """Opens and locks stats.jsonl for appending, unbuffered so that rows are on disk at once.

        Raises Busy if another process holds the lock.
        """
        stats = open(self.path / "stats.jsonl", "ab", buffering=0)
        if not lock(stats):
            stats.close()
            raise Busy(f"out: another process writes to {self.path}; wait until it ends, or choose another --out")
        return stats

    def rewind(self) -> Checkpoint | None:
        """Returns the checkpoint from which a resumed run continues, the newest intact one, or None for the start.

        Discards everything written after that checkpoint.
        """
        check_resumable(self.config, self.path)
        remove_unfinished(self.path)
        remove_unfinished(self.checkpoints.folder)
        checkpoint = self.checkpoints.newest()
        if checkpoint is not None:
            check_same_settings(self.config, checkpoint.config)
        self.keep_rows(checkpoint.rows if checkpoint else 0)
        where = f"{checkpoint.stage}, step {checkpoint.state.numbers['step']}" if checkpoint else "the start"
        log.info("resumed from %s", where)
        print(f"resumed from {where}")
        return checkpoint

    def read_start(self) -> Gaussians | None:
        """Returns the run's initial splat, or None for the ball. Raises UserError if its file has been removed."""
        return read_splat(self.path / START_FILE) if self.config.init.ply else None

    def keep_rows(self, rows: int) -> None:
        """Truncates stats.jsonl to this many rows."""
        lines = (self.path / "stats.jsonl").read_bytes().splitlines(keepends=True)
        if len(lines) < rows:
            warn(f"resume: {self.path}/stats.jsonl has lost {rows - len(lines)} of {rows} rows")
        self.rows = min(rows, len(lines))
        self.stats.truncate(sum(map(len, lines[: self.rows])))

    def save(self, report: StepReport) -> None:
        """Writes a checkpoint of the state after this step and waits for it. Raises OSError on failure; earlier
        checkpoints remain."""
        self.begin_to_write(self.checkpoint(report))
        self.saving.wait()

    def begin_to_write(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in the background, after the previous one. Raises OSError if the previous one failed."""
        self.saving.start(partial(self.write, checkpoint))
        self.saved = time.monotonic()

    def write(self, checkpoint: Checkpoint) -> None:
        os.fsync(self.stats.fileno())
        self.checkpoints.save(checkpoint)

    def checkpoint(self, report: StepReport) -> Checkpoint:
        """Returns a checkpoint of the state after this step."""
        self.write_row()
        return Checkpoint(
            stage=report.stage,
            state=report.state.state_dict(),
            rows=self.rows,
            device=report.gaussians.device.type,
            config=plain(self.config),
        )

    def go_back(self) -> None:
        """Writes the last good state after an interrupted step, which leaves an inconsistent state in memory."""
        self.latest = None
        if self.good is None:
            return
        self.good.state.wait()
        self.latest = Gaussians(**part(self.good.state.tensors, "now/params/"))
        try:
            self.begin_to_write(self.good)
            self.saving.wait()
        except OSError as error:
            warn(f"the last good state could not be written: {error.strerror}; earlier checkpoints are intact")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        self.saving.close()
        self.stats.close()
        log.removeHandler(self.handler)
        self.handler.close()

    def on_step(self, report: StepReport) -> None:
        """Records and shows a step, and saves its state if a checkpoint is due."""
        self.latest = report.gaussians
        self.write_row()
        self.waiting = row(report) | self.edits_of(report)
        self.bar.show(report)
        busy = self.saving.busy()
        if report.trouble or report.step + 1 == report.steps:
            self.write_row()
        if report.trouble:
            warn(f"{report.stage}: {report.trouble}; back to step {report.state.step} with half the step size")
        elif report.state.good_step == report.state.step:
            self.good = self.checkpoint(report)
            if not busy and time.monotonic() - self.saved >= self.config.checkpoint.seconds:
                self.begin_to_write(self.good)

    def write_row(self) -> None:
        """Writes the row of the last step unless it has been written."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            row = json.dumps(waiting, default=arrived).encode() + b"\n"
            write_whole(self.stats, row, self.path / "stats.jsonl")
            self.rows += 1

    def edits_of(self, report: StepReport) -> dict[str, Any]:
        """Returns the edits that take effect at this step, for its row."""
        where = place(report.stage, report.state.rollbacks - bool(report.trouble), report.step)
        made = [changes(edit) for edit in self.config.edits if place_of(edit) == where]
        return {"edits": made} if made else {}

    def finish(self, gaussians: Gaussians) -> None:
        """Writes the splat and its turntable, and removes the checkpoints."""
        self.bar.close()
        self.saving.wait()
        gaussians.save_ply(self.path / "splat.ply")
        frames = turntable_frames(gaussians, TURN_FRAMES, TURN_SIZE, start=THREE_QUARTERS, shadow=True)
        write_picture(frames[0], self.path / "thumbnail.png")
        try:
            write_video(frames, self.path / VIDEO_FILE, TURN_FPS)
            seen = f"{VIDEO_FILE} and {FINISHED_FILE} beside it"
        except UserError as error:  # without ffmpeg
            warn(f"no {VIDEO_FILE} was written. {error}")
            seen = f"{FINISHED_FILE} beside it"
        write_contact_sheet(frames[:: TURN_FRAMES // 8, ::2, ::2], self.path / FINISHED_FILE)
        self.checkpoints.clear()
        seconds = time.monotonic() - self.started
        log.info("done in %.1f s with %d Gaussians", seconds, len(gaussians))
        print(f"{self.path}/splat.ply  {len(gaussians)} Gaussians in {seconds:.0f} s; see {seen}")

    def stopped(self, reason: str, code: int) -> Stopped:
        """Saves the splat so far, and returns the exception to raise. code: exit code of the command."""
        with suppress(OSError):
            self.write_row()
        try:
            self.saving.wait()
        except OSError as error:
            warn(f"the last checkpoint could not be written: {error.strerror}; earlier ones are intact")
        log.error(reason)
        kept = "no splat was made yet"
        if self.latest is not None and len(self.latest):
            try:
                self.latest.save_ply(self.path / "splat.ply")
                kept = f"the splat so far is in {self.path}/splat.ply"
            except OSError as error:
                kept = f"the splat so far could not be written: {error.strerror}"
        return Stopped(f"{reason}; {kept}", code)


def variances(report: StepReport) -> dict[str, DeferredNumbers]:
    """Returns the gradient variances for the row of every VARIANCE_EVERY-th step, NaN if all gradients were 0, and {}
    for other steps."""
    if (report.step + 1) % VARIANCE_EVERY:
        return {}
    optimizers = {name: report.state.optimizers[name] for name in VARIANCES}
    found = {name: scaled_gradient_variance(optimizer) for name, optimizer in optimizers.items()}
    found |= {f"{name}_paper": paper_gradient_variance(optimizer) for name, optimizer in optimizers.items()}
    return {"gradient_variance": DeferredNumbers(found)}


def reset_peak_memory(device: torch.device) -> None:
    """Starts `peak_memory` anew, since a worker of a sweep makes many runs. Main memory has a peak that can be reset on
    Linux alone, where /proc may be read-only; elsewhere it stays that of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory of the process in bytes since `reset_peak_memory`: GPU memory on CUDA, main memory on the
    CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def row(report: StepReport) -> dict[str, Any]:
    """Returns the step's row in stats.jsonl. That of a rolled-back step has the reason and the next step."""
    place = {"stage": report.stage, "step": report.step}
    if report.trouble:
        return {**place, "trouble": report.trouble, "back_to": report.state.step, "rollbacks": report.state.rollbacks}
    return {
        **place,
        "t": round(report.t, 5),
        "loss": report.loss,
        "regularizer": report.regularizer,
        "gaussians": report.count,
        "memory": peak_memory(report.gaussians.device),
        **variances(report),
        "seconds": report.seconds,
    }


def arrived(value: Any) -> Any:
    """Converts values that were computed on a device to JSON types. JSON has no NaN and no infinity, which on CUDA last
    until the watchdog's next check: they are null, or left out of a mapping."""
    if isinstance(value, Mapping):
        return {name: round(number, 6) for name, number in value.items() if math.isfinite(number)}
    return number if math.isfinite(number := float(value)) else None
