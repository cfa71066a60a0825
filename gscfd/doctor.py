"""Checks what a GPU needs to make a run: `gscfd doctor`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from gscfd.cli import exit_code

if TYPE_CHECKING:
    from gscfd.health import Finding


@dataclass(kw_only=True)
class Doctor:
    """Check driver, GPU, torch, compiler, kernels, memory and weights; say what to do about each that is missing.

    Exits with 0 if a run on the GPU can start, and 1 if not. Weights do not count: a run fetches them. Compiles the
    noise kernels if they never were, which takes a second, and nothing else.
    """


def show(name: str, finding: Finding) -> None:
    """Prints a check's name, state, details and next action."""
    print(f"{finding.state:8}{name}: {finding.words}")
    if finding.action:
        print(f"{'':8}  do: {finding.action}")


def diagnose() -> int:
    """Prints all findings. Returns 0 if a run on the GPU can start, otherwise 1."""
    from gscfd.health import findings, weights

    bad = 0
    for name, finding in findings():
        show(name, finding)
        bad += finding.state != "ok"
    for name, finding in weights():
        show(f"weights of {name}", finding)
    if bad:
        print(f"\nA run on a GPU cannot start here: {bad} checks failed. Runs on the CPU can: --device cpu")
        return 1
    print("\nA run on the GPU can start.")
    return 0


def main(arguments: list[str] | None = None) -> int:
    tyro.cli(Doctor, args=arguments, prog="gscfd doctor")
    return exit_code(diagnose)


if __name__ == "__main__":
    sys.exit(main())
