"""Journal of a sweep or a studio: a row for every event of its runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import IO, Any

from gscfd.errors import UserError
from gscfd.files import json_rows, lock, write_whole

JOURNAL = "sweep.jsonl"
"""File in the sweep's folder with a row for every start and end of an attempt at a run."""


class Busy(UserError):
    """Another process writes to the journal."""


def last_failures(journal: Path) -> dict[str, str]:
    """Returns the error of each run whose last attempt failed, by run name."""
    failures: dict[str, str] = {}
    for row in read_rows(journal):
        failures.pop(row["run"], None)
        if "error" in row:
            failures[row["run"]] = str(row["error"])
    return failures


def read_rows(journal: Path) -> list[dict[str, Any]]:
    """Returns the whole rows of the journal that name a run; a kill may have cut one short."""
    return [row for row in json_rows(journal) if isinstance(row.get("run"), str)]


class Journal:
    """Writes rows, one process at a time. Raises Busy if another process holds the journal, and UserError if the folder
    cannot be written."""

    def __init__(self, path: Path, option: str = "out", what: str = "sweep"):
        """option: that names the folder, for error messages. what: the writing command, also for them."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: IO[bytes] = open(path, "ab", buffering=0)
            alone = lock(self.file)
        except OSError as error:
            raise UserError(
                f"{option}: expected a writable folder with file locks, got {path.parent} ({error.strerror}); "
                "choose another one"
            ) from None
        if not alone:
            self.file.close()
            raise Busy(f"{option}: another {what} writes to {path.parent}; wait until it ends, or choose another")

    def write(self, run: str, event: str, **facts: Any) -> None:
        """Writes a row. Raises OSError if it could not be written whole."""
        row = {"time": round(time.time(), 3), "run": run, "event": event, **facts}
        data = b"\n" * self.cut_short() + json.dumps(row).encode() + b"\n"
        write_whole(self.file, data, self.path)

    def cut_short(self) -> bool:
        """Returns whether the last row is incomplete because the process was killed."""
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return file.read(1) not in (b"", b"\n")

    def close(self) -> None:
        self.file.close()
