"""Errors that are the user's to mend, shown as one line without a traceback; and what the user should know of."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

# Outside a run there is no log, and Python would print a warning a second time in its own way.
logging.getLogger("gscfd").addHandler(logging.NullHandler())


class UserError(ValueError):
    """Bad input. The message names the argument, what was expected, what was got and what to do next."""


def warn(message: str) -> None:
    """Put it on the screen and into the run's log."""
    logging.getLogger("gscfd").warning(message)
    tqdm.write(f"warning: {message}", file=sys.stderr)
