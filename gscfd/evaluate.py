"""Scores finished runs with the papers' metrics: `gscfd evaluate RUNS... --report DIR`."""

from __future__ import annotations

import sys

import tyro

from gscfd.cli import exit_code
from gscfd.lab.options import EvaluateOptions


def main(arguments: list[str] | None = None) -> int:
    def command() -> None:
        options = tyro.cli(EvaluateOptions, args=arguments, prog="gscfd evaluate")
        from gscfd.lab.evaluation import evaluate

        evaluate(options)

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
