"""Write a splat for other programs: `gscfd export RUN_DIR|PLY --to FORMAT`."""

from __future__ import annotations

import sys

import tyro

from gscfd.cli import exit_code
from gscfd.export.options import ExportOptions


def main(arguments: list[str] | None = None) -> int:
    def command() -> None:
        options = tyro.cli(ExportOptions, args=arguments, prog="gscfd export")
        from gscfd.export.write import export

        export(options)

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
