"""Measures a toybox teacher: `python -m gscfd.toybox.measure TEACHER`."""

from __future__ import annotations

import sys

import tyro

from gscfd.cli import exit_code
from gscfd.lab.options import MeasureOptions


def main(arguments: list[str] | None = None) -> int:
    def command() -> None:
        options = tyro.cli(MeasureOptions, args=arguments, prog="python -m gscfd.toybox.measure")
        from gscfd.lab.teachers import measure

        measure(options)

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
