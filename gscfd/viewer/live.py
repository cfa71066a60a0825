"""A run while it goes on: the training thread leaves copies here, a thread of the viewer's own shows them."""

from __future__ import annotations

import logging
import threading
import time

import torch
from threadpoolctl import threadpool_limits

from gscfd.config import Config
from gscfd.distil.edits import LiveSettings
from gscfd.distil.stage import StepReport
from gscfd.gaussians import Gaussians
from gscfd.runs.names import folder_of
from gscfd.viewer import server
from gscfd.viewer.content import Paint
from gscfd.viewer.controls import Controls
from gscfd.viewer.display import Display
from gscfd.viewer.pace import Pace
from gscfd.viewer.panel import Panel
from gscfd.viewer.snapshot import History, Snapshot, take

log = logging.getLogger("gscfd")
UPDATE_SECONDS = 0.5
"""Least time between two steps that are shown."""
TICK_SECONDS = 0.1
SHARE = 0.015
"""Of one core's time that the viewer takes from a run."""
CLOSING_SECONDS = 2.0


class LiveViewer:
    """Serves the page. Whatever happens to it, the run goes on: `on_step` and `offer` copy, when the viewer's thread
    has asked for it, and wait for nobody."""

    def __init__(self, config: Config, paint: Paint):
        """Raises UserError when the page cannot be served."""
        self.server = server.serve(config.viewer)
        self.address = server.address(self.server)
        self.controls, self.history = Controls(), History()
        self.pace = Pace(SHARE, config.viewer.bandwidth)
        self.panel = Panel(self.server, self.controls, config)
        self.display = Display(self.server, paint)
        self.display.add_download("Download .ply", folder_of(config).name, self.newest)
        self.wanted = threading.Event()
        """Whether there is use for another snapshot."""
        self.snapshot: Snapshot | None = None
        self.shown: Snapshot | None = None
        self.asked = 0.0
        """When the last snapshot was asked for."""
        self.offered: tuple[StepReport, Config] | None = None
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.work, name="viewer", daemon=True)
        self.thread.start()

    # On the training thread.

    def on_step(self, report: StepReport, live: LiveSettings) -> None:
        """Count a step, and leave a copy if it is wanted."""
        self.history.add(report, live.config)
        self.offer(report, live)

    def offer(self, report: StepReport, live: LiveSettings) -> None:
        """Leave a copy if it is wanted, and news."""
        last = report.step + 1 == report.steps and self.shown is not None
        news = self.offered is None or self.offered[0] is not report or self.offered[1] is not live.now
        if news and (self.wanted.is_set() or last):
            self.wanted.clear()
            self.offered = report, live.now
            self.snapshot = take(report, live, self.history)

    def close(self) -> None:
        """Stop serving; a viewer that does not end is left behind."""
        self.closing.set()
        self.thread.join(CLOSING_SECONDS)
        server.stop(self.server)

    # On the viewer's own.

    def newest(self) -> Gaussians | None:
        return None if self.snapshot is None else self.snapshot.gaussians

    def work(self) -> None:
        # With a second team of OpenMP threads the process has more threads than the machine cores, and the run's wait
        # for each other asleep, which took a fourth of its speed. Asking torch keeps it from setting the number later.
        torch.get_num_threads()
        try:
            with threadpool_limits(1, "openmp"):
                while not self.closing.wait(TICK_SECONDS):
                    self.tick(time.monotonic())
        except Exception as error:  # of whatever kind: it ends here, and not in the run
            log.warning("viewer: stopped (%r); the run goes on", error)
        finally:
            self.wanted.clear()
            self.controls.release()

    def tick(self, now: float) -> None:
        """Look what has changed, and show it when there is time and bandwidth for it."""
        if not self.server.get_clients():
            self.wanted.clear()
            return
        self.display.turn(now)
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
