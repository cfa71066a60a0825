"""Training of a toybox teacher in the minutes that are left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kit import ROOT, Kit

WEIGHTS = ROOT / "gscfd/toybox/weights"
PIECE = 15 * 2**20
"""Bytes of a piece of the trained weights."""
MARGIN = 45.0
"""Seconds of the training's time for its start and its export."""
BATCH = 128
"""Groups per step: fills a GPU of 80 GB to a tenth."""
CAPACITY = 400_000
"""Groups on the GPU, 64 KB each at 64 pixels: more than five minutes render."""


class Renderer:
    """Renders groups of views into a folder, on all cores but two, behind everything else that runs."""

    def __init__(self, kit: Kit, kind: str):
        self.folder = Path(tempfile.mkdtemp(prefix="groups-"))
        size, grouped = ("64", "--grouped") if kind == "multiview" else ("128", "--no-grouped")
        command = [sys.executable, "-m", "gscfd.toybox.training.groups", "--out", str(self.folder), grouped]
        command += ["--size", size, "--count", "500" if kit.small else "1000000"]
        command += ["--workers", "1" if kit.small else str(max(1, (os.cpu_count() or 1) - 2))]
        with open(kit.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def close(self) -> None:
        """Ends the rendering."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, 15)
        self.process.wait()


def train(kit: Kit, data: Path, kind: str, options: Sequence[str]) -> None:
    """Trains a teacher from the shipped one on until the time is over, and packs it in pieces. options: further ones of
    gscfd.toybox.training.teacher, which replace those given here."""
    while not any(data.glob("*.safetensors")):
        time.sleep(0.2)
    out = Path(tempfile.mkdtemp(prefix="teacher-"))
    seconds = 5.0 if kit.small else kit.left() - MARGIN
    command = [sys.executable, "-m", "gscfd.toybox.training.teacher", "--out", str(out), "--data", str(data)]
    command += ["--space", str(WEIGHTS / "multiview/vae"), "--start", str(WEIGHTS / kind / "unet"), "--kind", kind]
    command += ["--minutes", f"{seconds / 60:.3f}", "--device", kit.device, "--words", str(WEIGHTS / "multiview")]
    command += ["--batch", "1" if kit.small else str(BATCH), "--capacity", "500" if kit.small else str(CAPACITY)]
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
