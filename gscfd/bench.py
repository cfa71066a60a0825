"""The papers' claims, measured again on the toybox: `python -m gscfd.bench papers --size smoke --out DIR`.

Every method has the same prompts, seeds, teacher and number of steps. The runs are a sweep (`gscfd.sweep`). Runs and
pictures that are there are kept, and half-done ones continued: the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys

import tyro

from gscfd.cli import exit_code
from gscfd.lab.options import BenchOptions


def bench(options: BenchOptions) -> int:
    """Measures the claims and prints their table. Returns the exit code: 1 if runs failed."""
    from gscfd.lab.papers import papers

    report = papers(options)
    print("\n".join(["", *report.warnings, report.tables[0].markdown(), f"{options.out}/report.html"]))
    return 1 if report.warnings else 0


def main(arguments: list[str] | None = None) -> int:
    options = tyro.cli(BenchOptions, args=arguments, prog="python -m gscfd.bench")
    return exit_code(lambda: bench(options), interrupted="interrupted; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
