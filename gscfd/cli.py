"""What all commands of the shell share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from gscfd.errors import UserError


def exit_code(command: Callable[[], int | None], *, interrupted: str | None = None) -> int:
    """Runs a command of the shell and returns its exit code: 2 after the one line of a UserError, 1 when the GPU's
    memory is full, else what the command returns, where None is 0.

    interrupted: printed after Ctrl-C, with exit code 130; unset: Ctrl-C is not caught.
    """
    try:
        return command() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, without importing it here
            raise
        print("error: out of GPU memory; end other programs on the GPU, or use --device cpu", file=sys.stderr)
        return 1


def check_out(out: Path, ending: str, overwrite: bool, *, make_folder: bool = False) -> None:
    """Raises UserError unless a file may be written to `out`.

    ending: of its name. make_folder: whether its folder is made if it is missing.
    """
    if not out.name.endswith(ending):
        raise UserError(f"out: expected a name that ends in {ending}, got {out}")
    if not make_folder and not out.parent.is_dir():
        raise UserError(f"out: expected a file in an existing folder, got {out}; make {out.parent} first")
    if out.is_dir():
        raise UserError(f"out: {out} exists and is a folder; choose another --out")
    if out.exists() and not overwrite:
        raise UserError(f"out: {out} exists; choose another --out, or add --overwrite")
