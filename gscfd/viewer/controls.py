"""What is asked in the browser, kept until the training thread looks at it between two steps."""

from __future__ import annotations

import threading

from gscfd.config import Edit

LOOK_SECONDS = 0.1
"""How often a paused run looks for a signal."""


class Controls:
    """Written by the browser's threads, read by the training thread. Nobody holds the lock for longer than an
    assignment."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.paused = False
        self.stopping = False
        """Whether the run is asked to save and end."""
        self.answer = ""
        """What became of the last edit."""
        self.steps = 0
        """To be made although it is paused."""
        self.edits: list[Edit] = []
        self.released = False

    def release(self) -> None:
        """The viewer is gone: nothing holds the run any more."""
        with self.changed:
            self.released = True
            self.changed.notify_all()

    def pause(self, paused: bool) -> None:
        with self.changed:
            self.paused, self.steps = paused, 0
            self.changed.notify_all()

    def step(self) -> None:
        """Make one step, then hold."""
        with self.changed:
            self.paused, self.steps = True, self.steps + 1
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def edit(self, edit: Edit) -> None:
        """Ask for a change before the next step; its rollbacks and step are not known yet."""
        with self.changed:
            self.edits.append(edit)
            self.changed.notify_all()

    def take_edits(self) -> list[Edit]:
        """Those asked for since the last call."""
        with self.changed:
            edits, self.edits = self.edits, []
            return edits

    def may_step(self) -> bool:
        """Whether the next step may begin."""
        with self.changed:
            if self.paused and self.steps == 0 and not self.released:
                return False
            self.steps = max(self.steps - 1, 0)
            return True

    def wait(self) -> None:
        """Until something is asked, or LOOK_SECONDS."""
        with self.changed:
            self.changed.wait(LOOK_SECONDS)
