"""Errors that are the user's to mend: shown as one line, without a traceback."""


class UserError(ValueError):
    """Bad input. The message names the argument, what was expected, what was got and what to do next."""
