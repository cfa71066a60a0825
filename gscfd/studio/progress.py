"""Progress of a run that another process makes, read from its stats.jsonl as it grows."""

from __future__ import annotations

import json
import math
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from gscfd.config import Config
from gscfd.viewer.content import clock
from gscfd.viewer.snapshot import RATE_STEPS, Point

LONGEST_STEP = 1e9
"""Seconds beyond which a row is damaged."""


class Progress:
    """Reads the rows that were added since the last call."""

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config
        self.read_bytes = 0
        self.points: list[Point] = []
        self.stage, self.step = "", -1
        self.seconds: deque[float] = deque(maxlen=RATE_STEPS)
        """Time of the latest steps."""

    def look(self) -> bool:
        """Reads new rows; returns whether there are any."""
        path = self.folder / "stats.jsonl"
        size = path.stat().st_size if path.is_file() else 0
        if size < self.read_bytes:  # a resumed run has cut its file
            self.read_bytes, self.points = 0, []
        if size == self.read_bytes:
            return False
        with open(path, "rb") as file:
            file.seek(self.read_bytes)
            rows = file.read(size - self.read_bytes).split(b"\n")
        self.read_bytes = size - len(rows[-1])
        for row in rows[:-1]:
            with suppress(ValueError, RecursionError, LookupError, TypeError, AttributeError):  # a damaged row
                self.add(json.loads(row))
        return len(rows) > 1

    def add(self, row: dict[str, Any]) -> None:
        """Adds a step; a step that is made again replaces those from it on."""
        if "loss" not in row:
            return
        stage, step, count = str(row["stage"]), int(row["step"]), int(row["gaussians"])
        loss, seconds = float(row["loss"]), float(sum(row["seconds"].values()))
        if not (math.isfinite(loss) and 0 <= seconds < LONGEST_STEP):
            return
        self.stage, self.step = stage, step
        number = self.before() + self.step
        while self.points and self.points[-1].step >= number:
            self.points.pop()
        self.points.append(Point(number, loss, count))
        self.seconds.append(seconds)

    def before(self) -> int:
        """Returns the number of steps of the stages before the present one."""
        names = list(self.config.stages())
        earlier = names[: names.index(self.stage)] if self.stage in names else []
        return sum(self.config.stage(name).steps for name in earlier)

    @property
    def share(self) -> float:
        """Share of all steps that is done, in [0, 1]."""
        total = sum(stage.steps for stage in self.config.stages().values())
        return min((self.before() + self.step + 1) / total, 1.0) if self.points and total else 0.0

    def __str__(self) -> str:
        if not self.points:
            return "starting"
        steps = {str(name): stage.steps for name, stage in self.config.stages().items()}.get(self.stage, 0)
        facts = [f"{self.stage}: step {self.step + 1} of {steps}", f"{self.points[-1].gaussians:,} Gaussians"]
        if sum(self.seconds):
            rate = len(self.seconds) / sum(self.seconds)
            facts += [f"{rate:.1f} steps/s", f"{clock((steps - self.step - 1) / rate)} left in this stage"]
        return " · ".join(facts)
