"""Limits on the compute time and bandwidth that a viewer uses."""

from __future__ import annotations


class Pace:
    """Decides when the viewer may work again, given its share of the time and of the bandwidth."""

    def __init__(self, share: float, bandwidth: float):
        """share: of one core's time, in (0, 1]. bandwidth: megabytes per second to each browser."""
        self.share, self.bandwidth = share, bandwidth
        self.rested = self.sent = 0.0
        """Times at which compute time and bandwidth are available again."""

    def ready(self, now: float, *, alone: bool = False) -> bool:
        """Returns whether the viewer may work now.

        now: seconds on a monotonic clock. alone: no run needs the machine.
        """
        return now >= self.sent and (alone or now >= self.rested)

    def worked(self, now: float, seconds: float, megabytes: float) -> None:
        """Records work that ended at `now`, took `seconds` and sent `megabytes`."""
        self.rested = now + seconds * (1 / self.share - 1)
        self.sent = max(now, self.sent) + megabytes / self.bandwidth
