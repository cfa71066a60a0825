"""The folder of a run: what was asked, what happened, what came out."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

from tqdm import tqdm

from gscfd.config import Config, to_yaml
from gscfd.errors import UserError
from gscfd.export import FORMATS
from gscfd.export.turntable import turntable_frames, write_contact_sheet, write_video
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians
from gscfd.stage import StepReport

log = logging.getLogger("gscfd")
KNOWN = {"splat.ply", "turntable.mp4", "turntable.png", "config.yaml", "stats.jsonl", "log.txt"}
KNOWN |= {"noise.mp4", "noise.png", "noise-correlation.png"} | {f"splat.{name}" for name in FORMATS}
"""What a run, `gscfd.show_noise` and `gscfd.export` write."""
UNFINISHED = re.compile(r"\.(.+)\.\d+\.tmp")
"""What a write that was killed leaves behind (`files.atomic_write`)."""


def default_folder(prompt: str, seed: int) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "prompt"
    return Path("outputs") / f"{slug}-{seed}"


def foreign_files(folder: Path) -> list[str]:
    """Names in the folder that no run writes."""
    names = {path.name: UNFINISHED.fullmatch(path.name) for path in folder.iterdir()}
    return sorted(name for name, tmp in names.items() if (tmp[1] if tmp else name) not in KNOWN)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Raise UserError unless `path`, which exists, is a run that may be replaced."""
    if not overwrite:
        raise UserError(f"out: {path} exists; choose another --out, another --seed, or add --overwrite")
    if not path.is_dir():
        raise UserError(f"out: --overwrite replaces only a run of gscfd, and {path} is a file; choose another --out")
    foreign = foreign_files(path)
    if foreign or not (path / "config.yaml").is_file():
        what = f"holds {', '.join(foreign[:3])}" if foreign else "has no config.yaml"
        raise UserError(f"out: --overwrite replaces only a run of gscfd, and {path} {what}; choose another --out")


@contextmanager
def interrupt_between_steps() -> Iterator[Callable[[StepReport], None]]:
    """Ctrl-C takes effect in the callback this yields, where the Gaussians are whole; a second one at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asked.set()

    def on_step(report: StepReport) -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield on_step
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield on_step
    finally:
        signal.signal(signal.SIGINT, before)


class RunFolder:
    """Opens the folder, writes config, statistics, log and exports, and shows the progress.

    Raises UserError when the folder exists and `overwrite` is off, when it holds files that are not a run's, or when
    it cannot be written.
    """

    def __init__(self, config: Config):
        self.config = config
        self.path = config.out or default_folder(config.prompt, config.seed)
        self.latest: Gaussians | None = None
        self.stage = "coarse"
        self.started = time.monotonic()
        self.bar: tqdm | None = None
        self.stats: IO[str]
        self.handler: logging.Handler
        self.make_folder()
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.setLevel(logging.INFO)
        log.addHandler(self.handler)
        log.info("prompt %r, seed %d", config.prompt, config.seed)

    def make_folder(self) -> None:
        try:
            if self.path.exists():
                self.clear()
            self.path.mkdir(parents=True)
            with atomic_write(self.path / "config.yaml") as file:
                file.write(to_yaml(self.config).encode())
            self.stats = open(self.path / "stats.jsonl", "w")
            self.handler = logging.FileHandler(self.path / "log.txt", mode="w")
        except OSError as error:
            raise UserError(
                f"out: expected a folder that can be written, got {self.path} ({error.strerror}); choose another --out"
            ) from None

    def clear(self) -> None:
        """Remove an earlier run, if that was asked for and it is one."""
        check_replaceable(self.path, self.config.overwrite)
        shutil.rmtree(self.path)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        self.stats.close()
        log.removeHandler(self.handler)
        self.handler.close()

    def on_step(self, report: StepReport) -> None:
        """Record and show one step."""
        self.latest = report.gaussians
        row = {
            "stage": report.stage,
            "step": report.step,
            "t": round(report.t, 5),
            "loss": report.loss,
            "regulariser": report.regulariser,
            "gaussians": report.count,
            "seconds": {name: round(value, 6) for name, value in report.seconds.items()},
        }
        self.stats.write(json.dumps(row) + "\n")
        if self.bar is None or self.stage != report.stage:
            if self.bar is not None:
                self.bar.close()
            self.stage = report.stage
            self.bar = tqdm(total=report.steps, desc=report.stage, unit="step", dynamic_ncols=True)
        self.bar.set_postfix(t=f"{report.t:.2f}", gaussians=report.count, refresh=False)
        self.bar.update()

    def finish(self, gaussians: Gaussians) -> None:
        """Write the splat and its pictures."""
        if self.bar is not None:
            self.bar.close()
        gaussians.save_ply(self.path / "splat.ply")
        frames = turntable_frames(gaussians, frames=48, size=256)
        write_contact_sheet(frames[::6], self.path / "turntable.png")
        write_video(frames, self.path / "turntable.mp4")
        seconds = time.monotonic() - self.started
        log.info("done in %.1f s with %d Gaussians", seconds, len(gaussians))
        print(f"{self.path}/splat.ply  {len(gaussians)} Gaussians in {seconds:.0f} s; see turntable.mp4 beside it")

    def stopped(self, reason: str, code: int) -> int:
        """Keep what there is; returns the exit code."""
        log.error(reason)
        kept = "nothing was made yet"
        if self.latest is not None and len(self.latest):
            try:
                self.latest.save_ply(self.path / "splat.ply")
                kept = f"the splat so far is in {self.path}/splat.ply"
            except OSError as error:
                kept = f"the splat so far could not be written: {error.strerror}"
        print(f"\nstopped: {reason}; {kept}")
        return code
