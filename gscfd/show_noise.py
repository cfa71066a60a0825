"""Shows the noise of a finished run: `gscfd show-noise RUN_DIR`."""

from __future__ import annotations

import sys

import tyro

from gscfd.cli import exit_code
from gscfd.lab.options import ShowNoiseOptions


def main(arguments: list[str] | None = None) -> int:
    def command() -> None:
        options = tyro.cli(ShowNoiseOptions, args=arguments, prog="gscfd show-noise")
        from gscfd.lab.noise_pictures import show

        show(options)

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
