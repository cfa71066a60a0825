"""What the studio's folder holds: its runs, their states and pictures, and the removal of one."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from PIL import Image

from gscfd.errors import UserError
from gscfd.export.turntable import turntable_frames
from gscfd.files import is_locked, lock
from gscfd.gaussians import Gaussians
from gscfd.runs.names import FINISHED_FILE, foreign_files
from gscfd.studio.orders import Order, Orders
from gscfd.viewer.door import Answer

State = Literal["queued", "running", "elsewhere", "finished", "stopped", "failed"]
SHEET, COLUMNS = "turntable.png", 4
"""Contact sheet of a finished run, and its number of columns."""
FRAMES, SIZE = 8, 160
"""Pictures of one turn in a strip, and their width and height in pixels."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The C parser where PyYAML has one: it is ten times as fast."""


@dataclass(frozen=True)
class Entry:
    """A run of the gallery."""

    name: str
    state: State
    prompt: str
    seed: str
    preset: str
    guidance: str
    note: str = ""
    """Why it failed, its place in the queue, or that a stopped run is not on disk."""

    @property
    def has_splat(self) -> bool:
        """Whether the run may have a splat to show."""
        return self.state not in ("queued",)


class Gallery:
    """The runs of the folder: those on disk and those of the queue. Only one thread calls it, except `picture`."""

    def __init__(self, orders: Orders):
        self.folder, self.orders = orders.folder, orders
        self.facts: dict[str, tuple[int, dict[str, Any]]] = {}
        """Time of change and content of every config.yaml, by run."""
        self.strips: dict[str, tuple[int, bytes]] = {}
        """Time of change and picture of every run that has one."""

    def entries(self) -> list[Entry]:
        """Returns the run in progress, the queue, and then the other runs, the newest first."""
        on_disk = self.on_disk()
        making = self.orders.making.order.name if self.orders.making is not None else None
        first = [name for name in (making, *self.orders.waiting) if name is not None]
        ended = [*self.orders.failures, *(name for name in self.orders.known if name in self.orders.stopped)]
        gone = [name for name in ended if name not in on_disk and name not in first]
        rest = sorted(set(on_disk) - set(first), key=lambda name: on_disk[name], reverse=True)
        return [self.entry(name, name in on_disk) for name in (*first, *gone, *rest)]

    def on_disk(self) -> dict[str, int]:
        """Returns the time of change of every run's settings, by name. Links are left out: they may lead elsewhere."""
        found = {}
        with os.scandir(self.folder) as inside:
            for item in inside:
                if not item.name.startswith(".") and item.is_dir(follow_symlinks=False):
                    with suppress(OSError):
                        found[item.name] = (Path(item.path) / "config.yaml").stat().st_mtime_ns
        return found

    def entry(self, name: str, on_disk: bool) -> Entry:
        order = self.orders.known.get(name)
        facts = self.settings(name) if on_disk else {}
        state, note = self.state(name)
        prompt, seed, preset, guidance = (str(facts.get(key, order.value(f"--{key}") if order else "")) for key in KEYS)
        return Entry(name, state, prompt, seed, preset, guidance, note)

    def settings(self, name: str) -> dict[str, Any]:
        """Returns the settings of a run, as in its config.yaml; {} if that is damaged."""
        path = self.folder / name / "config.yaml"
        try:
            changed = path.stat().st_mtime_ns
            if self.facts.get(name, (0, {}))[0] != changed:
                read = yaml.load(path.read_text(encoding="utf-8", errors="replace"), LOADER)
                self.facts[name] = changed, steered(read) if isinstance(read, dict) else {}
        except (OSError, yaml.YAMLError):
            return {}
        return self.facts[name][1]

    def state(self, name: str) -> tuple[State, str]:
        """Returns the state of a run and a note on it."""
        if self.orders.making is not None and self.orders.making.order.name == name:
            return "running", ""
        if name in self.orders.waiting:
            place = self.orders.waiting.index(name)
            return "queued", "next" if place == 0 else f"{place} before it"
        if (self.folder / name / FINISHED_FILE).is_file():
            return "finished", ""
        if is_locked(self.folder / name / "stats.jsonl"):
            return "elsewhere", "started by another program"
        if name in self.orders.failures:
            return "failed", self.orders.failures[name]
        return "stopped", "" if (self.folder / name / "config.yaml").is_file() else "nothing is saved yet"

    def picture(self, path: str) -> Answer | None:
        """Returns the strip at "picture/NAME", of those that are made already."""
        kind, _, name = path.partition("/")
        strip = self.strips.get(name) if kind == "picture" else None
        return None if strip is None else ("image/jpeg", strip[1])

    def make_picture(self, names: Iterable[str]) -> bool:
        """Makes the first strip that is missing or out of date; returns whether there was one."""
        for name in names:
            source = source_of(self.folder / name)
            changed = 0 if source is None else source.stat().st_mtime_ns
            if source is not None and self.strips.get(name, (0, b""))[0] != changed:
                self.strips[name] = changed, strip(source)
                return True
        return False


KEYS = ("prompt", "seed", "preset", "guidance")


def steered(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings with the last prompt that was given in the viewer."""
    edits = settings.get("edits")
    given = [edit for edit in edits if isinstance(edit, dict)] if isinstance(edits, list) else []
    prompts = [edit["prompt"] for edit in given if edit.get("prompt")]
    return settings | {"prompt": prompts[-1]} if prompts else settings


def source_of(run: Path) -> Path | None:
    """Returns the file of which a run's strip is made: its contact sheet, or the splat of a stopped run."""
    return next((run / name for name in (SHEET, "splat.ply") if (run / name).is_file()), None)


def strip(source: Path) -> bytes:
    """Returns FRAMES pictures of one turn side by side as a .jpeg; b"" if the source is damaged."""
    try:
        frames = sheet_frames(source) if source.name == SHEET else splat_frames(source)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # pillow's, and UserError of a .ply
        return b""
    wide = Image.new("RGB", (SIZE * len(frames), SIZE))
    for i, frame in enumerate(frames):
        wide.paste(frame.resize((SIZE, SIZE), Image.Resampling.LANCZOS), (i * SIZE, 0))
    file = io.BytesIO()
    wide.save(file, format="JPEG", quality=85)
    return file.getvalue()


def sheet_frames(sheet: Path) -> list[Image.Image]:
    with Image.open(sheet) as image:
        whole = image.convert("RGB")
    side = whole.width // COLUMNS
    if side < 1 or whole.height < side:
        raise ValueError(f"a sheet of {whole.size} pixels")
    return [
        whole.crop((x, y, x + side, y + side))
        for y in range(0, whole.height - side + 1, side)
        for x in range(0, whole.width - side + 1, side)
    ]


def splat_frames(ply: Path) -> list[Image.Image]:
    frames: np.ndarray = turntable_frames(Gaussians.load_ply(ply), FRAMES, SIZE)
    return [Image.fromarray(frame) for frame in frames]


def delete(folder: Path, name: str) -> None:
    """Removes a run. Raises UserError if the folder holds other files, is being written or cannot be removed.

    name: one of `Gallery.on_disk`.
    """
    path = folder / name
    try:
        if foreign := foreign_files(path):
            raise UserError(f"delete: {name} also holds {', '.join(foreign[:3])}, which no run writes; move that first")
        with open(path / "stats.jsonl", "ab") as stats:
            if not lock(stats):
                raise UserError(f"delete: another program writes to {name}; stop it first")
            hidden = path.with_name(f".{name}.deleted")
            path.rename(hidden)
            shutil.rmtree(hidden)
    except OSError as error:
        raise UserError(f"delete: {name} cannot be removed ({error.strerror})") from None


def command(order: Order, folder: Path) -> str:
    """Returns the command that makes the run of an order."""
    options = [option for option in order.arguments if option]
    return " ".join(["gscfd train", *map(quoted, options), quoted(f"--out={folder / order.name}")])


def quoted(argument: str) -> str:
    """Returns the argument as a shell reads it, with quotes around the value alone: --prompt='a red car'."""
    from shlex import quote

    option, equals, value = argument.partition("=")
    return f"{option}={quote(value)}" if equals and option.startswith("--") else quote(argument)
