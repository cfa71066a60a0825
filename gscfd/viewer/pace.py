"""How much of the machine and of the network a viewer may take."""

from __future__ import annotations


class Pace:
    """When the viewer may work again: it takes a share of the time, and of the bandwidth."""

    def __init__(self, share: float, bandwidth: float):
        """share: of one core's time, in (0, 1]. bandwidth: megabytes per second to each browser."""
        self.share, self.bandwidth = share, bandwidth
        self.rested = self.sent = 0.0
        """Times from which on there is room again."""

    def ready(self, now: float, *, alone: bool = False) -> bool:
        """now: seconds on a clock that only grows. alone: no run needs the machine."""
        return now >= self.sent and (alone or now >= self.rested)

    def worked(self, now: float, seconds: float, megabytes: float) -> None:
        """Work that ended now took this long, and was this much to send."""
        self.rested = now + seconds * (1 / self.share - 1)
        self.sent = max(now, self.sent) + megabytes / self.bandwidth
