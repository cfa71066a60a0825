"""Measures the methods on the toybox.

`gscfd bench papers --size smoke --out DIR` reproduces the papers' claims. All methods share the same prompts,
seeds, teacher and number of steps. The runs form a sweep (`gscfd.sweep`). `gscfd bench pipeline --out DIR`
measures what the pipeline makes of a teacher without errors (`gscfd.lab.ideal`), `gscfd bench coverage --out DIR` which
of several objects the seeds of each method end at, and `gscfd bench full-size --out DIR` the presets for large
teachers, at their sizes. Finished runs and images are kept and unfinished ones made, so repeating a command
continues where it stopped.
"""

from __future__ import annotations

import shutil
import sys

import tyro

from gscfd.cli import exit_code
from gscfd.lab.options import Bench, CoverageOptions, FullSizeOptions, PipelineOptions


def bench(options: Bench) -> int:
    """Measures and prints the first table. Returns the exit code: 1 if any run failed."""
    if isinstance(options, PipelineOptions):
        from gscfd.lab.pipeline import pipeline

        report = pipeline(options)
    elif isinstance(options, CoverageOptions):
        from gscfd.lab.coverage import coverage

        report = coverage(options)
    elif isinstance(options, FullSizeOptions):
        from gscfd.lab.full_size import full_size

        report = full_size(options)
    else:
        from gscfd.lab.papers import papers

        report = papers(options)
    table = report.tables[0].text(shutil.get_terminal_size().columns)
    print("\n".join(["", *report.warnings, table, f"{options.out}/report.html"]))
    return 1 if report.warnings else 0


def main(arguments: list[str] | None = None) -> int:
    return exit_code(
        lambda: bench(tyro.cli(Bench, args=arguments, prog="gscfd bench")),
        interrupted="interrupted; the same command continues",
    )


if __name__ == "__main__":
    sys.exit(main())
