"""Saved results of runs: finished splats, and checkpoints of runs that were stopped or are still in progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import viser

from gscfd.config import ServerConfig
from gscfd.distil.state import Checkpoint, part
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.runs.checkpoint import Checkpoints, DamagedError
from gscfd.viewer import content, server
from gscfd.viewer.display import CAMERA, OBJECT, Display
from gscfd.viewer.pace import Pace

TICK_SECONDS = 0.05
FRONT = (4.8, 0.0, 1.3)
"""Initial camera position for two splats, in units of their joint radius."""
LOOK_SECONDS = 2.0
"""Interval at which folders are checked for new files, seconds."""


@dataclass(frozen=True)
class Saved:
    """One splat on disk."""

    key: tuple[str, int]
    """Identity of the splat: different keys mean different splats."""
    read: Callable[[], tuple[str, Gaussians]]
    """Returns the name and the splat. Raises UserError or DamagedError."""


def saved(path: Path) -> list[Saved]:
    """Returns the splat of a .ply, or the splats of a run folder: its checkpoints, oldest first, then its splat.ply."""
    if path.is_file():
        return [Saved((path.name, path.stat().st_mtime_ns), lambda: (path.name, Gaussians.load_ply(path)))]
    checkpoints = Checkpoints(path / "checkpoints", keep=1)
    found = [Saved(("checkpoint", n), partial(read_checkpoint, checkpoints, n)) for n in checkpoints.numbers()]
    return found + (saved(path / "splat.ply") if (path / "splat.ply").is_file() else [])


def read_checkpoint(checkpoints: Checkpoints, number: int) -> tuple[str, Gaussians]:
    checkpoint: Checkpoint = checkpoints.read(number)
    name = f"{checkpoint.stage}, step {checkpoint.state.numbers['step']}"
    return name, Gaussians(**part(checkpoint.state.tensors, "now/params/"))


def labels(paths: list[Path]) -> list[str]:
    """Returns a name for each path that tells it from the others: the shortest end of the path that does; numbered if
    they are equal."""
    whole = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} {i}" for i, path in enumerate(paths, 1)]


class Source:
    """A .ply or run folder being shown, with a slider over its saved splats."""

    def __init__(self, path: Path, label: str, gui: viser.GuiApi):
        """label: names it on the page."""
        self.path, self.label = path, label
        self.states: list[Saved] = saved(path)
        self.splat: Gaussians | None = None
        self.shown: tuple[str, int] | None = None
        with gui.add_folder(label):
            self.slider = gui.add_slider("Saved step", 0, max(len(self.states) - 1, 1), 1, max(len(self.states) - 1, 0))
            self.text = gui.add_html("")
        self.settle()

    def look(self) -> None:
        """Checks for newly saved splats. A slider at the newest splat follows it."""
        states = saved(self.path)
        if [state.key for state in states] == [state.key for state in self.states]:
            return
        newest = self.slider.value >= len(self.states) - 1
        self.states = states
        self.settle()
        last = max(len(states) - 1, 0)
        self.slider.value = last if newest else min(self.slider.value, last)

    def settle(self) -> None:
        """Fits the slider to the number of saved splats."""
        self.slider.max = max(len(self.states) - 1, 1)
        self.slider.visible = len(self.states) > 1

    def read(self) -> bool:
        """Reads the splat at the slider's position; returns whether it differs from the previous one.

        Raises UserError for a .ply that cannot be read.
        """
        if not self.states:
            self.text.content = content.text_block("nothing is saved yet")
            return False
        state = self.states[min(self.slider.value, len(self.states) - 1)]
        if state.key == self.shown:
            return False
        try:
            name, self.splat = state.read()
        except DamagedError:  # replaced by a newer one during the read
            return False
        self.shown = state.key
        self.text.content = content.text_block(f"{name}: {len(self.splat):,} Gaussians")
        return True


class SavedViewer:
    """Shows one splat, or two side by side."""

    def __init__(self, paths: list[Path], config: ServerConfig, paint: content.Paint):
        """Raises UserError if the page cannot be served or a .ply cannot be read."""
        self.server = server.serve(config)
        self.address = server.address(self.server)
        self.pace, self.looked = Pace(1.0, config.bandwidth), time.monotonic()
        self.sources = [Source(path, label, self.server.gui) for path, label in zip(paths, labels(paths), strict=True)]
        self.display = Display(self.server, paint)
        for source in self.sources:
            label = "Download .ply" if len(paths) == 1 else f"Download {source.label.removesuffix('.ply')}.ply"
            self.display.add_download(label, source.path.stem, partial(getattr, source, "splat"))
        if len(paths) > 1:
            for i, (source, y) in enumerate(zip(self.sources, content.places(len(paths)), strict=True)):
                self.server.scene.add_label(f"{OBJECT}/labels/{i}", source.label, position=(0.0, y, -1.1))
        try:
            self.update()
        except UserError:
            server.stop(self.server)
            raise
        if self.display.gaussians is not None:
            center, radius = content.extent(self.display.gaussians)
            place = np.array(CAMERA if len(paths) == 1 else FRONT)
            self.server.initial_camera.look_at = tuple(center)
            self.server.initial_camera.position = tuple(center + radius * place)

    def update(self) -> None:
        """Reads the splats to show."""
        if any([source.read() for source in self.sources]):
            splats = [source.splat for source in self.sources]
            self.display.gaussians = content.side_by_side([splat for splat in splats if splat is not None])

    def tick(self, now: float) -> None:
        self.display.turn(now)
        if now - self.looked >= LOOK_SECONDS:
            self.looked = now
            for source in self.sources:
                source.look()
        if self.pace.ready(now):
            self.update()
            megabytes = self.display.refresh()
            self.pace.worked(time.monotonic(), 0.0, megabytes)

    def serve(self) -> None:
        """Serves the page until Ctrl-C."""
        try:
            while True:
                self.tick(time.monotonic())
                time.sleep(TICK_SECONDS)
        except KeyboardInterrupt:
            pass
        finally:
            server.stop(self.server)
