"""Checks of the settings before a run. No network is loaded for them."""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING

import torch

from gscfd.config import Config, StageName
from gscfd.devices import choose_dtype, left_alone, missing_kernels, run_device
from gscfd.distil.schedule import anneal
from gscfd.errors import UserError, warn
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.kinds import check_teacher, known_words
from gscfd.toybox.forms import nearest_form
from gscfd.toybox.words import COMMANDS, check_words

if TYPE_CHECKING:
    from gscfd.teachers.guided import GuidedTeacher


TeacherKey = tuple[str, str, torch.device, torch.dtype, bool, bool]
"""Stage, source, device, precision, and whether the networks are compiled and their encoder saves memory."""
KeptTeachers = dict[TeacherKey, "GuidedTeacher"]
"""Teachers by `teacher_key`. Stages do not share a teacher because each sets its own prompt; they share networks."""


def teacher_key(config: Config, name: StageName) -> TeacherKey:
    """Returns the key of a stage's teacher: all settings that its networks depend on."""
    device = run_device(config)
    dtype = choose_dtype(config.dtype, device)
    return name, config.stage(name).teacher, device, dtype, config.compile, config.vae_checkpointing


def preflight(config: Config, kept: KeptTeachers | None = None) -> None:
    """Raises UserError for problems that are detectable before the run: device, noise, prompt and teachers.

    kept: teachers that are already loaded, which are not checked again.
    """
    check_settings(config)
    for name, stage in config.stages().items():
        if teacher_key(config, name) not in (kept or {}):
            check_teacher(stage.teacher)


def check_settings(config: Config, advice: str = COMMANDS) -> None:
    """Raises UserError for settings that cannot work, without checking the teachers' files.

    advice: what to do about words of the prompt that the toybox's teachers do not know.
    """
    check_start(config)
    check_kernels(config)
    check_densify(config)
    check_compile(config)
    check_prompt(config, advice)
    for name, stage in config.stages().items():
        if stage.negative_prompt is not None and known_words(stage.teacher):
            check_words(f"{name}.negative-prompt", stage_prompt(config.prompt, stage).negative or "")


LEAST_START = 0.5
"""Time, as a fraction of T, below which a stage only refines what is there."""


def check_start(config: Config) -> None:
    """Raises UserError if nothing gives the object its shape: neither a file nor a stage that starts at a high time."""
    stages = list(config.distillations().values())
    shaped = any(s.t_schedule == "uniform" or anneal(0, s.t_points, s.t_min, s.t_max) >= LEAST_START for s in stages)
    if config.init.ply is None and not shaped:
        raise UserError(
            f"init: expected a splat or a mesh to start from, since no stage starts at a time of {LEAST_START:g} or "
            "above, got none; add --init FILE, or --coarse.steps N"
        )


def check_kernels(config: Config) -> None:
    """Raises UserError if compiled code for the run's device is missing.

    A run with --device auto and toybox teachers may fall back to the CPU; with other teachers that would be too slow.
    """
    on_cuda = run_device(config).type == "cuda"
    if on_cuda and config.noise_kind == "radial" and config.noise.device == "render":
        raise UserError("noise.kind: radial has no CUDA kernel; use --noise.kind surface, or --noise.device cpu")
    small = all(known_words(stage.teacher) for stage in config.stages().values())
    missing = missing_kernels(config) if on_cuda else left_alone(config)
    if missing and (on_cuda or not small):
        raise UserError(f"{missing}\nOr run on the CPU, which is slow: --device cpu")


def warn_of_left_gpu(config: Config) -> None:
    """Warns if the run uses the CPU although a GPU is present."""
    if missing := left_alone(config):
        warn(f"device: using the CPU: a GPU is present, but compiled code for it is missing.\n{missing}")


def check_densify(config: Config) -> None:
    """Raises UserError if the run's device does not support the densification strategy of a stage."""
    for name, stage in config.distillations().items():
        if stage.densify.strategy == "mcmc" and run_device(config).type != "cuda":
            raise UserError(
                f"{name}.densify.strategy: expected default on the CPU, got mcmc, which needs gsplat's CUDA kernels; "
                f"use a machine with CUDA, or --{name}.densify.strategy default"
            )


def check_compile(config: Config) -> None:
    """Raises UserError if the networks are to be compiled but the run's device does not support it."""
    if not config.compile:
        return
    if run_device(config).type != "cuda":
        raise UserError("compile: expected a CUDA device, got the CPU, where compiling gains nothing; use --no-compile")
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            "compile: expected the package triton, which torch.compile needs on CUDA, got none; use --no-compile, or "
            "install a build of torch that includes it"
        )


def check_prompt(config: Config, advice: str = COMMANDS) -> None:
    """Raises UserError for an empty prompt or words that a toybox teacher does not know, in the edits too."""
    if not config.prompt.strip():
        raise UserError('prompt: expected a description such as --prompt "a yellow duck", got nothing')
    if any(known_words(stage.teacher) for stage in config.stages().values()):
        check_words("prompt", config.prompt, advice)
        warn_of_form(config.prompt)
        for edit in config.edits:
            check_words("edits: prompt", edit.prompt or "", advice)


@functools.cache
def warn_of_form(prompt: str) -> None:
    """Warns, once, of a prompt in a form that the toybox teachers never saw."""
    if near := nearest_form(prompt):
        warn(f"prompt: the toybox teachers never saw sentences like {prompt!r}; the nearest known one is {near!r}")
