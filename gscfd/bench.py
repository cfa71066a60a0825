"""Reproduces the papers' claims on the toybox: `python -m gscfd.bench papers --size smoke --out DIR`.

All methods share the same prompts, seeds, teacher and number of steps. The runs form a sweep (`gscfd.sweep`). Finished
runs and images are kept and unfinished ones resumed, so repeating the command continues where it stopped.
"""

from __future__ import annotations

import sys

import tyro

from gscfd.cli import exit_code
from gscfd.lab.options import BenchOptions


def bench(options: BenchOptions) -> int:
    """Measures the claims and prints the table. Returns the exit code: 1 if any run failed."""
    from gscfd.lab.papers import papers

    report = papers(options)
    print("\n".join(["", *report.warnings, report.tables[0].markdown(), f"{options.out}/report.html"]))
    return 1 if report.warnings else 0


def main(arguments: list[str] | None = None) -> int:
    return exit_code(
        lambda: bench(tyro.cli(BenchOptions, args=arguments, prog="gscfd bench")),
        interrupted="interrupted; the same command continues",
    )


if __name__ == "__main__":
    sys.exit(main())
