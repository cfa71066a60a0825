"""A run in progress: the training thread leaves copies here, and the viewer's own thread shows them."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from gscfd.config import Config
from gscfd.distil.edits import LiveSettings
from gscfd.distil.stage import StepReport
from gscfd.gaussians import Gaussians
from gscfd.runs.names import folder_of
from gscfd.viewer import content, server
from gscfd.viewer.content import Paint
from gscfd.viewer.controls import Controls
from gscfd.viewer.display import TICK_SECONDS, Display
from gscfd.viewer.door import Door
from gscfd.viewer.pace import Pace
from gscfd.viewer.panel import Panel
from gscfd.viewer.snapshot import History, Snapshot, take

log = logging.getLogger("gscfd")
UPDATE_SECONDS = 0.5
"""Minimum time between two steps that are shown."""
SHARE = 0.015
"""Share of one core's time that the viewer takes from a run."""
CLOSING_SECONDS = 2.0
RELOAD_SECONDS = 5.0
"""Time in which a browser that reloads the page is back."""


@dataclass(frozen=True, eq=False)
class Ending:
    """The end of a run."""

    message: str
    splat: Gaussians | None
    """The saved splat, if there is one."""


class LiveViewer:
    """Serves the page. Viewer errors never affect the run: `on_step` and `offer` make a copy if the viewer's thread has
    asked for one, and never wait."""

    def __init__(self, config: Config, paint: Paint):
        """Raises UserError if the page cannot be served."""
        door = Door(config.viewer.host, f"{config.prompt} · gscfd")
        self.server = server.serve(config.viewer, door)
        self.address = server.address(self.server)
        self.config, self.controls, self.history = config, Controls(), History()
        self.pace = Pace(SHARE, config.viewer.bandwidth)
        self.panel = Panel(self.server, self.controls, config)
        self.display = Display(self.server, door, paint)
        folder = folder_of(config)
        self.download = self.display.add_download(lambda: folder.name, self.newest, str, ["ply"])
        self.downloads = self.display.add_download(lambda: folder.name, self.newest, self.prompt)
        self.downloads.visible = False
        self.ending: Ending | None = None
        self.wanted = threading.Event()
        """Set while the viewer wants another snapshot."""
        self.snapshot: Snapshot | None = None
        self.shown: Snapshot | None = None
        self.asked = 0.0
        """Time of the last request for a snapshot."""
        self.offered: tuple[StepReport, Config] | None = None
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.work, name="viewer", daemon=True)
        self.thread.start()

    # Called on the training thread.

    def on_step(self, report: StepReport, live: LiveSettings) -> None:
        """Records a step, and leaves a copy if the viewer wants one."""
        self.history.add(report, live.config)
        self.offer(report, live)

    def offer(self, report: StepReport, live: LiveSettings) -> None:
        """Leaves a copy if the viewer wants one and the step or the settings are new."""
        last = report.step + 1 == report.steps and self.shown is not None
        news = self.offered is None or self.offered[0] is not report or self.offered[1] is not live.now
        if news and (self.wanted.is_set() or last):
            self.wanted.clear()
            self.offered = report, live.now
            self.snapshot = take(report, live, self.history)

    def end(self, message: str, folder: Path) -> None:
        """Shows how the run ended, and its splat if one was saved. Lets go of the run's teachers."""
        self.wanted.clear()
        splat = Gaussians.load_ply(folder / "splat.ply") if (folder / "splat.ply").is_file() else None
        self.snapshot = self.shown = self.offered = None
        self.ending = Ending(message, splat)

    def stay(self) -> None:
        """Serves the page until no browser has shown it for RELOAD_SECONDS. Returns at once if none does now."""
        seen = time.monotonic() if self.server.get_clients() else -math.inf
        while self.thread.is_alive() and time.monotonic() - seen < RELOAD_SECONDS:
            time.sleep(TICK_SECONDS)
            if self.server.get_clients():
                seen = time.monotonic()

    def close(self) -> None:
        """Stops serving. A viewer thread that does not end in CLOSING_SECONDS is abandoned."""
        self.closing.set()
        self.thread.join(CLOSING_SECONDS)
        server.stop(self.server)

    # Called on the viewer's own thread.

    def newest(self) -> Gaussians | None:
        if self.ending is not None:
            return self.ending.splat
        return None if self.snapshot is None else self.snapshot.gaussians

    def prompt(self) -> str:
        """Returns the prompt of the latest step."""
        return (self.panel.settings or self.config).prompt

    def work(self) -> None:
        # With a second team of OpenMP threads, the process has more threads than the machine has cores, and the run's
        # threads sleep while waiting for each other, which cost a quarter of the run's speed. Calling
        # torch.get_num_threads keeps torch from setting the number later.
        torch.get_num_threads()
        try:
            with threadpool_limits(1, "openmp"):
                while not self.closing.wait(TICK_SECONDS):
                    self.tick(time.monotonic())
        except Exception as error:  # of any kind: a viewer error must not end the run
            log.warning("viewer: stopped (%r); the run continues", error)
        finally:
            self.wanted.clear()
            self.controls.release()

    def tick(self, now: float) -> None:
        """Shows what has changed if time and bandwidth allow."""
        if not self.server.get_clients():
            self.wanted.clear()
            return
        self.display.turn(now)
        if self.ending is not None:
            self.show_ending(self.ending)
            self.display.refresh()
            return
        self.panel.tell()
        if not self.pace.ready(now, alone=self.controls.paused):
            return
        began, megabytes, snapshot = time.thread_time(), 0.0, self.snapshot
        if snapshot is not None and snapshot is not self.shown:
            megabytes += self.panel.show(snapshot)
            self.display.gaussians, self.shown = snapshot.gaussians, snapshot
        self.panel.decode()
        megabytes += self.display.refresh()
        ended = time.monotonic()
        self.pace.worked(ended, time.thread_time() - began, megabytes)
        if ended - self.asked >= UPDATE_SECONDS:
            self.asked = ended
            self.wanted.set()

    def show_ending(self, ending: Ending) -> None:
        if self.panel.ended:
            return
        self.panel.end(ending.message, None if ending.splat is None else content.sheet(ending.splat))
        self.display.gaussians = ending.splat or self.display.gaussians
        self.download.visible, self.downloads.visible = False, ending.splat is not None
