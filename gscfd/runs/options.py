"""Parsing of a run's command line into a Config, and its help."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import tyro

from gscfd.cli import option, with_prompt
from gscfd.config import Config, load_preset, load_run

HELP = """\
usage: gscfd train PROMPT [OPTIONS]

Turn a text prompt into a 3D Gaussian splat, in a folder of its own.

  gscfd train "a yellow duck"
  gscfd train "a red car" --seed 3 --out outputs/car
  gscfd train --resume outputs/car

what to make
  PROMPT, --prompt TEXT    description of the object, in the teacher's words
  --list-words             print the words that the built-in teachers know
  --seed N                 seed of all random draws: another seed, another object (0)
  --init FILE              start from this splat or mesh instead of a ball

how to make it
  --preset NAME            teachers and settings: toybox, fast, mvdream-sd21, ... or a .yaml file
  --guidance METHOD        cfd, sds, fsd, cds, ism, sdi, vsd or dsd (cfd)
  --coarse.steps N         steps that shape the object (300 with the toybox)
  --polish.steps N         steps that remove speckle (32 with the toybox)
  --coarse.cfg SCALE       strength of the prompt (6 with the toybox)
  --device DEVICE          auto, cpu or cuda (auto)

where it goes
  --out DIR                run folder (outputs/<prompt>-<seed>)
  --overwrite              replace an earlier run in the folder
  --resume DIR             continue a stopped run as if it had never stopped

to look at
  --viewer, --no-viewer    serve the page for watching the run (on in a terminal)
  --viewer.port N          port of the page (8080)
  --dry-run                print the plan, memory and time, and exit

  -h, --help               print this text
  --help-all               print all options, with the defaults of --preset
"""
"""The options that people use. Values in parentheses are defaults."""


def default_preset(device: str | None) -> tuple[str, str]:
    """Returns the default preset and the reason for it. device: the --device option, or None if it is not given."""
    if device == "cpu":
        return "toybox", "without a CUDA device"
    import torch

    if not torch.cuda.is_available():
        return "toybox", "without a CUDA device"
    from gscfd.teachers.kinds import is_here

    large = load_preset("mvdream-sd21")
    missing = [stage.teacher for stage in (large.coarse, large.refine) if not is_here(stage.teacher)]
    if missing:
        return "toybox", f"without {' and '.join(missing)} on this machine"
    return "mvdream-sd21", "with a CUDA device and both teachers on this machine"


def reader(arguments: list[str]) -> Callable[..., Any]:
    """Returns `tyro.cli` of a Config whose defaults are those of the preset, or of the run to resume, that the
    arguments name."""
    folder = option(arguments, "--resume")
    # Commands that only print do not import torch.
    device = "cpu" if {"-h", "--help", "--list-words"} & set(arguments) else option(arguments, "--device")
    preset = option(arguments, "--preset") or default_preset(device)[0]
    default = load_preset(preset) if folder is None else load_run(Path(folder))
    default = replace(default, viewer=replace(default.viewer, on=sys.stdout.isatty()))
    description = "Turn a text prompt into a 3D Gaussian splat. The prompt may stand without --prompt."
    return partial(tyro.cli, Config, default=default, prog="gscfd train", description=description)


def parse(arguments: list[str]) -> Config:
    """Returns the Config of options: the settings of the preset, or of the run to resume, overridden by the
    arguments."""
    return cast(Config, reader(arguments)(args=arguments))


def parse_command(arguments: list[str]) -> Config:
    """Returns the Config of a command line: options as in `parse`, and the prompt with or without --prompt, at any
    place. Prints the help and exits if asked to."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        raise SystemExit(0)
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    return cast(Config, with_prompt(reader(arguments), arguments))
