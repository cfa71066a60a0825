"""One command for all: `gscfd train "a yellow duck"` is `python -m gscfd.train --prompt "a yellow duck"`."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys
from importlib import import_module

from gscfd.cli import exit_code
from gscfd.completion import SHELLS, completion, parts_of
from gscfd.version import __version__

COMMANDS = {
    "train": ("gscfd.train", "turn a text prompt into a 3D Gaussian splat"),
    "view": ("gscfd.view", "show a splat, or two side by side, in the browser"),
    "studio": ("gscfd.studio.__main__", "type prompts and keep a gallery of runs, in the browser"),
    "export": ("gscfd.export.__main__", "write a splat for other programs"),
    "preview": ("gscfd.preview", "sample a stage's teacher before a run"),
    "image": ("gscfd.image", "turn a prompt into a picture, by distillation or by sampling"),
    "show-noise": ("gscfd.show_noise", "paint the noise of a finished run on its splat"),
    "sweep": ("gscfd.sweep", "make a run for every prompt, method and seed"),
    "evaluate": ("gscfd.evaluate", "score finished runs by the metrics of the papers"),
    "bench": ("gscfd.bench", "measure the papers' claims on the toybox"),
    "doctor": ("gscfd.doctor", "say what is missing for a run on the GPU"),
    "convert": ("gscfd.convert", "write MVDream as a plain diffusers folder"),
}
"""Module and summary of every command."""
WIDE = "200"
"""Columns of a terminal in which no list of values is broken."""
COMPLETION_USAGE = f"usage: gscfd completion {{{','.join(SHELLS)}}}"
COMPLETION_HELP = """\
Print a script that completes commands, options and their values. To use it in every terminal:

  bash   gscfd completion bash > ~/.local/share/bash-completion/completions/gscfd
  zsh    gscfd completion zsh >> ~/.zshrc
  fish   gscfd completion fish > ~/.config/fish/completions/gscfd.fish"""


def usage() -> str:
    """Returns the list of commands."""
    lines = [f"  {name:12}{summary}" for name, (_, summary) in COMMANDS.items()]
    lines.append(f"  {'completion':12}print a script that completes gscfd in {', '.join(SHELLS)}")
    example = 'gscfd train "a yellow duck" makes a first splat. gscfd COMMAND --help lists the options of a command.'
    return "\n".join(["usage: gscfd COMMAND [OPTIONS]", "", *lines, "", example])


def help_of(name: str, *part: str) -> str:
    """Returns the whole help text of a command, or of one of its parts, as a terminal shows it that is wide enough for
    every list of values."""
    said, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDE
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            import_module(COMMANDS[name][0]).main([*part, "--help-all" if name == "train" else "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return said.getvalue()


def print_completion(arguments: list[str]) -> int:
    """Prints the completion script of the shell named first, and returns 0. Raises UserError for an unknown shell."""
    shell = arguments[0] if arguments else ""
    if shell in ("-h", "--help"):
        print(f"{COMPLETION_USAGE}\n\n{COMPLETION_HELP}")
        return 0
    print(completion(shell, help_texts() if shell in SHELLS else {}), end="")
    return 0


def help_texts() -> dict[str, str]:
    """Returns the help text of every command, with those of its parts."""
    helps = {name: help_of(name) for name in COMMANDS}
    for name, text in helps.items():
        helps[name] += "".join(help_of(name, part) for part in parts_of(text))
    return {**helps, "completion": COMPLETION_USAGE}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: dispatch(arguments))


def dispatch(arguments: list[str]) -> int:
    """Runs the command named first, and returns its exit code."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"gscfd {__version__}")
        return 0
    if name == "completion":
        return print_completion(arguments[1:])
    if name not in COMMANDS:
        known = [*COMMANDS, "completion"]
        near = "".join(f"; did you mean {command!r}?" for command in difflib.get_close_matches(name, known, n=1))
        print(f"error: expected one of {', '.join(known)}, got {name!r}{near or '; see gscfd --help'}", file=sys.stderr)
        return 2
    code: int = import_module(COMMANDS[name][0]).main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
