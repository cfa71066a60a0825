"""Code shared by all commands."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gscfd.errors import UserError
from gscfd.files import is_writable
from gscfd.screen import lasting_screen

FAULTS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE),
}
"""Errors of the machine's files, which are no fault of the program: no permission, no room, a name that cannot be."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell gives it."""
MOST_TEXTS = 5
"""Number of texts that an error lists."""


def exit_code(command: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Runs a command and returns its exit code: 2 after printing a UserError or one of FAULTS as one line, 1 if the GPU
    runs out of memory, 130 on Ctrl-C, otherwise the command's result, with None as 0. A screen that fails changes
    nothing.

    interrupted: message printed on Ctrl-C.
    """
    with lasting_screen():
        try:
            return command() or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            if error.errno not in FAULTS:
                raise
            print(
                f"error: {error.filename or 'a file'}: {error.strerror}; choose another, or free space", file=sys.stderr
            )
            return 2
        except KeyboardInterrupt:
            below = "\n" if sys.stderr.isatty() else ""  # the terminal has echoed ^C
            print(f"{below}{interrupted}", file=sys.stderr)
            return INTERRUPTED
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch.OutOfMemoryError, without importing torch
                raise
            print("error: out of GPU memory; end other programs on the GPU, or use --device cpu", file=sys.stderr)
            return 1


def option(arguments: list[str], name: str) -> str | None:
    """Returns the last value given for the option `name`, such as "--preset", or None, without parsing the rest."""
    values = [value for key, value in zip(arguments, arguments[1:], strict=False) if key == name]
    values += [argument.removeprefix(f"{name}=") for argument in arguments if argument.startswith(f"{name}=")]
    return values[-1] if values else None


def with_prompt(read: Callable[..., Any], arguments: list[str]) -> Any:
    """Returns the options of a command line in which the prompt stands with or without --prompt, at any place. Raises
    UserError for several texts, as a prompt without quotes is.

    read: `tyro.cli` of options that have a `prompt`, which takes `args` and `return_unknown_args`.
    """
    options, rest = read(args=arguments, return_unknown_args=True)
    if not rest:
        return options
    texts = rest if (prompt := option(arguments, "--prompt")) is None else [prompt, *rest]
    if any(text.startswith("-") for text in rest):
        known = arguments
        if not rest[0].startswith("-"):  # the prompt, which is no part of the mistake
            known = [argument for argument in arguments if argument != rest[0]]
        return read(args=known)
    if len(texts) > 1:
        got = ", ".join(repr(text) for text in texts[:MOST_TEXTS]) + (", ..." if len(texts) > MOST_TEXTS else "")
        raise UserError(f'prompt: expected one text, got {got}; put it in quotes, as in "a yellow duck"')
    return replace(options, prompt=rest[0])


def check_out(out: Path, ending: str, overwrite: bool, *, make_folder: bool = False) -> None:
    """Raises UserError unless a file may be written to `out`.

    ending: required end of the file name. make_folder: whether the caller creates a missing folder.
    """
    if not out.name.endswith(ending):
        raise UserError(f"out: expected a name that ends in {ending}, got {out}")
    if not make_folder and not os.path.isdir(out.parent):
        raise UserError(f"out: expected a file in an existing folder, got {out}; create {out.parent} first")
    if not is_writable(out.parent):
        raise UserError(f"out: expected a folder that can be written, got {out.parent}; choose another --out")
    if out.is_dir():
        raise UserError(f"out: {out} exists and is a folder; choose another --out")
    if out.exists() and not overwrite:
        raise UserError(f"out: {out} exists; choose another --out, or add --overwrite")
