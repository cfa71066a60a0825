"""Saved results of runs: finished splats, and checkpoints of runs that were stopped or are still in progress."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import viser

from gscfd.config import ServerConfig
from gscfd.distil.state import Checkpoint, part
from gscfd.errors import UserError
from gscfd.export.write import title_of
from gscfd.gaussians import Gaussians
from gscfd.runs.checkpoint import Checkpoints, DamagedError
from gscfd.viewer import content, server
from gscfd.viewer.display import CAMERA, OBJECT, TICK_SECONDS, Display
from gscfd.viewer.door import Door
from gscfd.viewer.pace import Pace

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
    try:
        return name, Gaussians(**part(checkpoint.state.tensors, "now/params/"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DamagedError(f"{checkpoints.path(number, 'json')} has no splat: {error}") from error


def labels(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths that tell them apart; a path given twice has a number."""
    parts = [path.resolve().parts for path in paths]
    names = [""] * len(paths)
    for length in range(max(map(len, parts), default=0), 0, -1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len(set(ends)) == len(set(parts)):
            names = ends
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


class Source:
    """A .ply or run folder being shown, with a slider over its saved splats."""

    def __init__(self, path: Path, label: str, gui: viser.GuiApi):
        self.path, self.label = path, label
        self.states: list[Saved] = saved(path)
        self.splat: Gaussians | None = None
        self.shown: tuple[str, int] | None = None
        self.text = gui.add_html("")
        last = max(len(self.states) - 1, 0)
        self.slider = gui.add_slider("Saved step", 0, max(last, 1), 1, last, visible=last > 0)

    def look(self) -> None:
        """Checks for newly saved splats. A slider at the newest splat follows it."""
        states = saved(self.path)
        if [state.key for state in states] == [state.key for state in self.states]:
            return
        newest, last = self.slider.value >= len(self.states) - 1, max(len(states) - 1, 0)
        self.states = states
        self.slider.max, self.slider.visible = max(last, 1), last > 0
        self.slider.value = last if newest else min(self.slider.value, last)

    def read(self) -> bool:
        """Reads the splat at the slider's position; returns whether it differs from the previous one.

        Raises UserError for a .ply that cannot be read, if it is the first; a later one is waited for.
        """
        if not self.states:
            self.say("nothing is saved yet")
            return False
        state = self.states[min(self.slider.value, len(self.states) - 1)]
        if state.key == self.shown:
            return False
        try:
            name, self.splat = state.read()
        except (DamagedError, FileNotFoundError):  # replaced by a newer one, or removed, during the read
            return False
        except UserError as error:  # in the middle of being written
            if self.splat is None:
                raise
            self.shown = state.key
            self.say(str(error))
            return False
        self.shown = state.key
        self.say(f"{name}: {len(self.splat):,} Gaussians")
        return True

    def say(self, what: str) -> None:
        text = content.text_block(f"<b>{html.escape(self.label)}</b><br>{html.escape(what)}")
        if self.text.content != text:
            self.text.content = text

    def remove(self) -> None:
        """Removes the controls."""
        self.text.remove()
        self.slider.remove()


class Showcase:
    """The saved splat that is shown, or the two side by side. Only one thread calls it."""

    def __init__(self, server: viser.ViserServer, display: Display, folder: viser.GuiFolderHandle):
        """folder: where the sliders over the saved splats stand."""
        self.server, self.display, self.folder = server, display, folder
        self.sources: list[Source] = []
        self.marks: list[viser.LabelHandle] = []
        self.looked = 0.0

    def show(self, paths: Sequence[Path]) -> None:
        """Shows other results. Raises UserError for a .ply that cannot be read."""
        for handle in [*self.sources, *self.marks]:
            handle.remove()
        names = labels(paths)
        with self.folder:
            self.sources = [Source(path, name, self.server.gui) for path, name in zip(paths, names, strict=True)]
        self.marks = []
        if len(paths) > 1:
            add = self.server.scene.add_label
            places = enumerate(zip(names, content.places(len(paths)), strict=True))
            self.marks = [
                add(f"{OBJECT}/label-{i}", name, position=(0.0, y, -1.1), anchor="top-center")
                for i, (name, y) in places
            ]
            self.display.stand()  # about a common axis they would hide each other
        self.display.gaussians = None
        self.update()

    def aim(self) -> None:
        """Points every camera at what is shown."""
        if self.display.gaussians is None:
            return
        center, radius = content.extent(self.display.gaussians, len(self.sources))
        position = center + radius * np.array(CAMERA if len(self.sources) == 1 else FRONT)
        self.display.aim(center, position)

    def update(self) -> None:
        """Reads the splats to show. Points the cameras at them when there are more than before."""
        before = sum(source.splat is not None for source in self.sources)
        if any([source.read() for source in self.sources]):
            count = len(self.sources)
            splats = [None if s.splat is None else content.in_reach(s.splat, count) for s in self.sources]
            self.display.gaussians = content.side_by_side(splats)
            if sum(splat is not None for splat in splats) > before:
                self.aim()

    def look(self, now: float) -> None:
        """Looks for newly saved splats, every LOOK_SECONDS."""
        if now - self.looked >= LOOK_SECONDS:
            self.looked = now
            for source in self.sources:
                source.look()

    def splat(self, index: int) -> Gaussians | None:
        """Returns one of the splats that are shown."""
        return self.sources[index].splat if index < len(self.sources) else None


class SavedViewer:
    """Shows one splat, or two side by side."""

    def __init__(self, paths: list[Path], config: ServerConfig, paint: content.Paint):
        """Raises UserError if the page cannot be served or a .ply cannot be read."""
        names = labels(paths)
        door = Door(config.host, f"{' and '.join(names)} · gscfd")
        self.server = server.serve(config, door)
        self.address = server.address(self.server)
        self.pace = Pace(1.0, config.bandwidth)
        folder = self.server.gui.add_folder(None)
        self.display = Display(self.server, door, paint)
        self.showcase = Showcase(self.server, self.display, folder)
        for i, (path, name) in enumerate(zip(paths, names, strict=True)):
            with self.server.gui.add_folder("Download" if len(paths) == 1 else f"Download {name}"):
                self.display.add_download(
                    partial(str, path.stem), partial(self.showcase.splat, i), partial(title_of, path)
                )
        try:
            self.showcase.show(paths)
        except UserError:
            server.stop(self.server)
            raise

    def tick(self, now: float) -> None:
        self.display.turn(now)
        self.showcase.look(now)
        if self.pace.ready(now):
            self.showcase.update()
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
