"""The studio: `gscfd studio` serves a page for all runs of a folder."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import tyro

from gscfd.cli import exit_code
from gscfd.studio.options import StudioOptions


def studio(options: StudioOptions) -> None:
    """Serves the page until Ctrl-C or SIGTERM. Raises UserError for bad input."""
    from gscfd.studio.page import Studio

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # an ignored SIGHUP (nohup) stays ignored
            signal.signal(number, end)
    page = Studio(options)
    print(f"studio: {page.address}", flush=True)
    page.serve()


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: studio(tyro.cli(StudioOptions, args=arguments, prog="gscfd studio")))


if __name__ == "__main__":
    sys.exit(main())
