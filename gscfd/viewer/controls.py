"""Requests from the browser, kept until the training thread reads them between two steps."""

from __future__ import annotations

import threading

from gscfd.config import Edit

LOOK_SECONDS = 0.1
"""Interval at which a paused run checks for signals, seconds."""


class Controls:
    """Shared state: browser threads write, the training thread reads. The lock is never held longer than an assignment
    takes."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.paused = False
        self.stopping = False
        """Whether a browser has asked the run to save and stop."""
        self.answer = ""
        """Result of the last edit, shown on the page."""
        self.steps = 0
        """Number of single steps to make while paused."""
        self.edits: list[Edit] = []
        self.released = False

    def release(self) -> None:
        """Stops holding the run, because the viewer is gone."""
        with self.changed:
            self.released = True
            self.changed.notify_all()

    def pause(self, paused: bool) -> None:
        with self.changed:
            self.paused, self.steps = paused, 0
            self.changed.notify_all()

    def step(self) -> None:
        """Makes one step, then pauses."""
        with self.changed:
            self.paused, self.steps = True, self.steps + 1
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def edit(self, edit: Edit) -> None:
        """Requests a change before the next step. The edit's `rollbacks` and `step` are filled in later."""
        with self.changed:
            self.edits.append(edit)
            self.changed.notify_all()

    def take_edits(self) -> list[Edit]:
        """Returns and clears the edits requested since the last call."""
        with self.changed:
            edits, self.edits = self.edits, []
            return edits

    def may_step(self) -> bool:
        """Returns whether the next step may begin, and uses up one single step."""
        with self.changed:
            if self.paused and self.steps == 0 and not self.released:
                return False
            self.steps = max(self.steps - 1, 0)
            return True

    def wait(self) -> None:
        """Waits for a request, at most LOOK_SECONDS."""
        with self.changed:
            self.changed.wait(LOOK_SECONDS)
