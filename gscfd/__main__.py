"""One command for all: `gscfd train --prompt "a yellow duck"` is `python -m gscfd.train --prompt "a yellow duck"`."""

from __future__ import annotations

import sys
from importlib import import_module

from gscfd.cli import exit_code
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


def usage() -> str:
    """Returns the list of commands."""
    lines = [f"  {name:12}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: gscfd COMMAND [OPTIONS]", "", *lines, "", "gscfd COMMAND --help lists its options."])


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
    if name not in COMMANDS:
        print(f"error: expected one of {', '.join(COMMANDS)}, got {name!r}; see gscfd --help", file=sys.stderr)
        return 2
    code: int = import_module(COMMANDS[name][0]).main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
