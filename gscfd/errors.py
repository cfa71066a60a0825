"""Errors that the user can fix, shown as one line without a traceback, and warnings."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

# Outside a run there is no log file, and Python's last-resort handler would print every warning a second time.
logging.getLogger("gscfd").addHandler(logging.NullHandler())


class UserError(ValueError):
    """Bad input. The message has the argument's name, the expected and the actual value, and the next step to take."""


def warn(message: str) -> None:
    """Prints a warning to stderr and writes it to the run's log."""
    logging.getLogger("gscfd").warning(message)
    tqdm.write(f"warning: {message}", file=sys.stderr)
