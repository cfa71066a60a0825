"""Atomic writes, background work and file locks."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

UNFINISHED = re.compile(r"\.(.+)\.\d+\.tmp")
"""Name of the temporary file that a killed `atomic_write` leaves behind."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Yields a binary file that replaces `path` if the block succeeds; otherwise `path` is left unchanged.

    An OSError in the block names the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_writes(*paths: str | Path) -> Iterator[list[IO[bytes]]]:
    """Yields a binary file for each path. If the block succeeds, they replace their paths, the first path last;
    otherwise all paths are left unchanged.

    An OSError in the block names the first path.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_write(path)) for path in paths]
        yield files
        for file in files:  # before the first is replaced, so that a full disk shows
            file.flush()
            os.fsync(file.fileno())


def write_text(text: str, path: Path) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes a csv file with a column for every key."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file.getvalue(), path)


def write_whole(file: IO[bytes], data: bytes, path: Path) -> None:
    """Writes to an unbuffered file. Raises OSError, which names `path`, unless all bytes are written: a disk that fills
    up takes the first of them without an error."""
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class Background:
    """Runs one task at a time on its own thread. The next call other than `close` reraises a task's exception, once."""

    def __init__(self, name: str):
        """name: name of the thread."""
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self.last: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Starts a task after the previous one has ended."""
        self.wait()
        self.last = self.pool.submit(work)

    def busy(self) -> bool:
        """Returns whether a task is running."""
        if self.last is not None and self.last.done():
            self.wait()
        return self.last is not None

    def wait(self) -> None:
        """Waits until no task is running."""
        if self.last is not None:
            wait([self.last])
            last, self.last = self.last, None
            last.result()

    def close(self) -> None:
        """Waits for the task, then ends the thread."""
        self.pool.shutdown()


def is_writable(folder: Path) -> bool:
    """Returns whether files can be made in the folder, or in the nearest one above it that exists."""
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files of killed writes from the folder. No other process may be writing there."""
    for path in folder.glob(".*.tmp"):
        if UNFINISHED.fullmatch(path.name):
            path.unlink()


LOCK_TRIES, LOCK_PAUSE = 20, 0.05
"""Number of attempts to lock a file, and the seconds between two."""


def lock(file: IO[bytes]) -> bool:
    """Locks the file exclusively, until it is closed or the process ends. Returns False if another process holds it for
    longer than `is_locked` does, which is an instant."""
    for _ in range(LOCK_TRIES):
        if lock_now(file):
            return True
        time.sleep(LOCK_PAUSE)
    return False


def lock_now(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Returns whether a process holds the lock of the file. Holds it for an instant if no other does."""
    if not path.is_file():
        return False
    with open(path, "rb+") as file:
        return not lock_now(file)


def json_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a .jsonl file that are JSON objects, without those that a kill has cut short; [] if there is
    no file."""
    found = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                found.append(row)
    return found


def cache_folder() -> Path:
    """Returns the folder for files that can be made again: $XDG_CACHE_HOME/gscfd, or ~/.cache/gscfd."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gscfd"
