"""Files that are whole or not there."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import IO

UNFINISHED = re.compile(r"\.(.+)\.\d+\.tmp")
"""What a write that was killed leaves behind (`atomic_write`)."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends well, and leaves it as it was when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Background:
    """One piece of work at a time, on a thread of its own. What it raises is raised once, by the next call but
    `close`."""

    def __init__(self, name: str):
        """name: of the thread."""
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self.last: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin, once the work before it has ended."""
        self.wait()
        self.last = self.pool.submit(work)

    def busy(self) -> bool:
        """Whether work goes on."""
        if self.last is not None and self.last.done():
            self.wait()
        return self.last is not None

    def wait(self) -> None:
        """Until no work goes on."""
        if self.last is not None:
            wait([self.last])
            last, self.last = self.last, None
            last.result()

    def close(self) -> None:
        """Let the work end, and then the thread."""
        self.pool.shutdown()


def remove_unfinished(folder: Path) -> None:
    """Remove what writes that were killed left in the folder. No other process may be writing there."""
    for path in folder.glob(".*.tmp"):
        if UNFINISHED.fullmatch(path.name):
            path.unlink()


def lock(file: IO[bytes]) -> bool:
    """Whether this process now holds the file alone: until the file is closed, or the process ends in any way."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
