"""What all commands of the shell share."""

from __future__ import annotations

import sys
from collections.abc import Callable

from gscfd.errors import UserError


def exit_code(command: Callable[[], None]) -> int:
    """Run a command of the shell: 0, or 2 after the one line of a UserError."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
