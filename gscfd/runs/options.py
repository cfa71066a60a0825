"""Parsing of a run's command line into a Config."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import tyro

from gscfd.config import Config, load_preset, load_run


def option(arguments: list[str], name: str) -> str | None:
    """Returns the last value given for the option `name`, such as "--preset", or None, without parsing the rest."""
    values = [value for key, value in zip(arguments, arguments[1:], strict=False) if key == name]
    values += [argument.removeprefix(f"{name}=") for argument in arguments if argument.startswith(f"{name}=")]
    return values[-1] if values else None


def default_preset(device: str | None) -> tuple[str, str]:
    """Returns the default preset and the reason for it. device: the --device option, or None if it is not given."""
    if device == "cpu":
        return "toybox", "without a CUDA device"
    import torch

    from gscfd.teachers.load import is_here

    if not torch.cuda.is_available():
        return "toybox", "without a CUDA device"
    large = load_preset("mvdream-sd21")
    missing = [stage.teacher for stage in (large.coarse, large.refine) if not is_here(stage.teacher)]
    if missing:
        return "toybox", f"without {' and '.join(missing)} on this machine"
    return "mvdream-sd21", "with a CUDA device and both teachers on this machine"


def parse(arguments: list[str]) -> Config:
    """Returns the Config of a command line: the settings of the preset, or of the run to resume, overridden by the
    arguments."""
    folder = option(arguments, "--resume")
    # Commands that only print do not import torch.
    device = "cpu" if {"-h", "--help", "--list-words"} & set(arguments) else option(arguments, "--device")
    preset = option(arguments, "--preset") or default_preset(device)[0]
    default = load_preset(preset) if folder is None else load_run(Path(folder))
    default = replace(default, viewer=replace(default.viewer, on=sys.stdout.isatty()))
    return tyro.cli(
        Config,
        args=arguments,
        default=default,
        prog="python -m gscfd.train",
        description="Turn a text prompt into a 3D Gaussian splat.",
    )
