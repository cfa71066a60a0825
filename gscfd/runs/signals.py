"""Handling of Ctrl-C, SIGTERM and a closed terminal (SIGHUP) between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gscfd.distil.stage import StepReport


class Interrupted(KeyboardInterrupt):
    """SIGINT (Ctrl-C), SIGTERM or SIGHUP has arrived."""

    def __init__(self, number: int):
        self.code = 128 + number
        """Exit code of the command."""


@contextmanager
def interrupt_between_steps(save: Callable[[StepReport], None]) -> Iterator[Callable[[StepReport], None]]:
    """Yields a callback in which Ctrl-C, SIGTERM and SIGHUP take effect, between steps, where the Gaussians are
    consistent: it saves and raises Interrupted. A second signal raises Interrupted at once, without saving. An ignored
    SIGHUP (nohup) stays ignored."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise Interrupted(number)
        asked.append(number)

    def on_step(report: StepReport) -> None:
        if asked:
            save(report)
            raise Interrupted(asked[0])

    if threading.current_thread() is not threading.main_thread():
        yield on_step
        return
    hangup = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL else ()
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, *hangup)}
    try:
        yield on_step
        if asked:
            raise Interrupted(asked[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
