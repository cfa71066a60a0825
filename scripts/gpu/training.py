"""Training of a toybox teacher in the minutes that are left."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kit import ROOT, Kit, Part

WEIGHTS = ROOT / "gscfd/toybox/weights"
PIECE = 15 * 2**20
"""Bytes of a piece of the trained weights."""
MARGIN = 45.0
"""Seconds of the training's time for its imports and its export. The training counts the reading of its data itself."""
BATCH = 128
"""Groups per step: fills a GPU of 80 GB to a tenth."""
CAPACITY = {"multiview": 400_000, "singleview": 100_000}
"""Groups that are rendered, and kept on the GPU: 64 KB each at 64 pixels, 256 KB at 128, so 26 GB there and on disk."""
LEAST = 20.0
"""Seconds of training under which none begins."""


class Renderer:
    """Renders groups of views into a folder, on all cores but two, behind everything else that runs."""

    def __init__(self, kit: Kit, kind: str):
        self.folder = Path(tempfile.mkdtemp(prefix="groups-"))
        size, grouped = ("64", "--grouped") if kind == "multiview" else ("128", "--no-grouped")
        command = [sys.executable, "-m", "gscfd.toybox.training.groups", "--out", str(self.folder), grouped]
        command += ["--size", size, "--count", "500" if kit.small else str(CAPACITY[kind])]
        command += ["--workers", "1" if kit.small else str(max(1, (os.cpu_count() or 1) - 2))]
        with open(kit.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def fault(self) -> str | None:
        """Returns why there are no groups and will be none; None if there are, or may be. For the process that started
        the rendering: no other sees it end."""
        if any(self.folder.glob("*.safetensors")) or self.process.poll() is None:
            return None
        return f"the rendering of groups ended with exit code {self.process.returncode}; the log has its words"

    def close(self) -> None:
        """Ends the rendering, and makes room for another."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, 15)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def part(renderer: Renderer, kind: str, options: Sequence[str]) -> Part:
    """Returns the training as a part that may take all the time that is left."""
    fault = renderer.fault()

    def work(kit: Kit) -> None:
        if fault is not None:
            return kit.note(failed=fault)
        train(kit, renderer.folder, kind, options)

    return Part("training", work, math.inf)


def train(kit: Kit, data: Path, kind: str, options: Sequence[str]) -> None:
    """Trains a teacher from the shipped one on until the time is over, and packs it in pieces. options: further ones of
    gscfd.toybox.training.teacher, which replace those given here."""
    while not any(data.glob("*.safetensors")):
        time.sleep(0.2)
    seconds = 5.0 if kit.small else kit.left() - MARGIN
    if seconds < LEAST and not kit.small:
        return kit.note(
            failed=f"no time was left: {kit.left():.0f} s, and the start and the export may take {MARGIN:.0f}"
        )
    out = Path(tempfile.mkdtemp(prefix="teacher-"))
    command = [sys.executable, "-m", "gscfd.toybox.training.teacher", "--out", str(out), "--data", str(data)]
    command += ["--space", str(WEIGHTS / "multiview/vae"), "--start", str(WEIGHTS / kind / "unet"), "--kind", kind]
    command += ["--minutes", f"{seconds / 60:.3f}", "--device", kit.device, "--words", str(WEIGHTS / "multiview")]
    command += ["--batch", "1" if kit.small else str(BATCH), "--capacity", "500" if kit.small else str(CAPACITY[kind])]
    done = subprocess.run([*command, *options], cwd=ROOT)
    losses = out / "losses.csv"
    if losses.exists():
        shutil.copy(losses, kit.out / "losses.csv")
    last = losses.read_text().splitlines()[-1] if losses.exists() else ""
    groups = 500 * sum(1 for _ in data.glob("*.safetensors"))
    kit.check("training", done.returncode == 0, measured=f"last losses {last}; {groups} groups", wanted="exit code 0")
    if done.returncode == 0:
        pack(out / "teacher", kit.out)


def pack(teacher: Path, out: Path) -> None:
    """Writes a folder as one archive in pieces: `cat weights-* | tar -x`."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.add(teacher, arcname="teacher")
        file.seek(0)
        for number, piece in enumerate(iter(lambda: file.read(PIECE), b"")):
            (out / f"weights-{number:02}").write_bytes(piece)
