"""Standard output and error that may disappear: what is said there never decides what a command does."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

RAW_BYTES = re.compile("([\udc80-\udcff]+)")
"""Bytes that the system's encoding lacks, as Python holds them."""


class Screen:
    """A text stream whose text is lost if it cannot be written: to a closed terminal, a pipe that nobody reads, a full
    disk, or no stream at all. Characters outside the stream's encoding become escapes. The rest is the stream's own."""

    def __init__(self, stream: TextIO | None):
        self.stream = stream

    def write(self, text: str) -> int:
        """Returns the length of the text, written or lost."""
        with suppress(OSError, ValueError, AttributeError):
            self.present.write(self.known(text))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self.present.flush()

    def isatty(self) -> bool:
        """Returns whether a person may be reading."""
        with suppress(OSError, ValueError, AttributeError):
            return self.present.isatty()
        return False

    @property
    def present(self) -> TextIO:
        """The stream. Raises AttributeError if there is none."""
        if self.stream is None:
            raise AttributeError("the process was started without this stream")
        return self.stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.present, name)

    def known(self, text: str) -> str:
        """Returns the text with escapes for what the stream's encoding lacks. Bytes of a file name that are no text in
        the system's encoding stay as they are if the stream can write them."""
        encoding = getattr(self.present, "encoding", None) or "utf-8"
        writes_bytes = getattr(self.present, "errors", None) == "surrogateescape"
        parts = RAW_BYTES.split(text) if writes_bytes else [text]
        shown = [part.encode(encoding, "backslashreplace").decode(encoding) for part in parts[::2]]
        return "".join(a + b for a, b in zip(shown, [*parts[1::2], ""], strict=True))

    def let_go(self) -> None:
        """Writes what is buffered. If that fails, drops it, so that Python's own attempt at exit does not fail."""
        try:
            self.present.flush()
        except (OSError, ValueError, AttributeError):
            with suppress(OSError, ValueError, AttributeError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.present.fileno())


@contextmanager
def lasting_screen() -> Iterator[None]:
    """Makes standard output and error a `Screen` within the block."""
    out, error = Screen(sys.stdout), Screen(sys.stderr)
    try:
        with redirect_stdout(cast("TextIO", out)), redirect_stderr(cast("TextIO", error)):
            yield
    finally:
        out.let_go()
        error.let_go()
