"""The pipeline in memory, prompt in, splat out: stage after stage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch

from gscfd.config import Config, StageConfig, StageName, check, load_preset, merged
from gscfd.devices import run_device
from gscfd.distil.bar import StepBar
from gscfd.distil.edits import STAGES, LiveSettings, place
from gscfd.distil.floaters import remove_floaters
from gscfd.distil.loading import load_teachers
from gscfd.distil.lora import make_learner
from gscfd.distil.noises import stage_noise
from gscfd.distil.polish import run_polish
from gscfd.distil.preflight import warn_of_left_gpu
from gscfd.distil.stage import StepReport, run_stage
from gscfd.distil.start import read_start
from gscfd.distil.state import Checkpoint
from gscfd.gaussians import Gaussians, ball, rasterize
from gscfd.teachers.guided import GuidedTeacher

log = logging.getLogger("gscfd")


class OutOfMemory(RuntimeError):
    """A step did not fit in GPU memory. The message names settings that help."""


def memory_advice(config: Config, name: StageName) -> str:
    """Returns the three settings that save the most memory in the stage, among those that can still be lowered."""
    stage = config.stage(name)
    settings = [
        f"--{name}.views {stage.views // 2}" if stage.views > 1 else "",
        "--vae-checkpointing" if stage.views > 1 and not config.vae_checkpointing else "",
        f"--{name}.no-perp-neg" if stage.perp_neg else "",
        "--dtype bfloat16" if config.dtype == "float32" else "",
        f"--{name}.densify.max-count {stage.max_count // 2}" if stage.max_count else "",
        f"a smaller --{name}.teacher",
        "a smaller --init" if config.init.ply else f"--init.count {config.init.count // 2}",
    ]
    return ", ".join([setting for setting in settings if setting][:3])


def distil(
    config: Config,
    teachers: dict[StageName, GuidedTeacher],
    on_step: Callable[[StepReport], None],
    resume: Checkpoint | None = None,
    live: LiveSettings | None = None,
    start: Gaussians | None = None,
) -> Gaussians:
    """Runs the coarse stage, the refine stage, then the polish, and returns the splat.

    teachers: from `load_teachers`. on_step: called after every optimization step. resume: checkpoint to continue from.
    live: settings of this config and these teachers, for an `on_step` that makes edits. start: initial splat from
    `read_start`, instead of the ball; modified in place.

    Raises StageError if the watchdog gives up, and OutOfMemory if a step does not fit in GPU memory.
    """
    live = live or LiveSettings(config, teachers)

    def after_step(report: StepReport) -> None:
        on_step(report)
        live.move_to(place(report.stage, report.state.rollbacks, report.state.step))

    device = run_device(config)
    # One seed gives each part an independent stream.
    seeds = torch.randint(2**62, (6,), generator=torch.Generator().manual_seed(config.seed)).tolist()
    if start is None:
        start = ball(
            config.init.count,
            radius=config.init.radius,
            opacity=config.init.opacity,
            sh_degree=config.init.sh_degree,
            generator=torch.Generator().manual_seed(seeds[0]),
        )
    gaussians = start
    gaussians.params.to(device)
    stage_seeds: dict[StageName, int] = {"coarse": seeds[1], "refine": seeds[2], "polish": seeds[5]}
    learner_seeds: dict[StageName, int] = {"coarse": seeds[3], "refine": seeds[4]}
    for name, stage in config.stages().items():
        if resume is not None and STAGES.index(name) < STAGES.index(resume.stage):
            continue
        teacher, seed = teachers[name], stage_seeds[name]
        continued = resume.state if resume is not None and resume.stage == name else None
        numbers = continued.numbers if continued is not None else {"rollbacks": 0, "step": 0}
        live.move_to(place(name, numbers["rollbacks"], numbers["step"]))
        parts: dict[str, Any] = {
            "name": name,
            "teacher": teacher,
            "rasterize": rasterize,
            "noise": stage_noise(config, name, teacher, seed),
            "seed": seed,
            "watchdog": config.watchdog,
            "keep_every": config.checkpoint.every,
            "on_step": after_step,
            "resume": continued,
        }
        try:
            if isinstance(stage, StageConfig):
                learner = make_learner(config.guidance, teacher, stage, seed=learner_seeds[name])
                run_stage(gaussians, stage, method=live.method(name, learner), learner=learner, **parts)
            else:
                run_polish(gaussians, stage, time=live.time(name), **parts)
            removed = remove_floaters(gaussians, stage, rasterize, size=teacher.image_size, seed=seed)
            if removed:
                log.info("%s: removed %d Gaussians that hung in the air", name, removed)
        except torch.OutOfMemoryError as error:
            advice = memory_advice(config, name)
            raise OutOfMemory(f"{name}: out of GPU memory; what helps most: {advice}") from error
    return gaussians


Quality = Literal["draft", "normal", "high"]
QUALITIES: dict[str, Fraction] = {"draft": Fraction(1, 3), "normal": Fraction(1), "high": Fraction(2)}
"""Multiples of the number of steps."""


def generate(
    prompt: str,
    *,
    seed: int = 0,
    preset: str | Path = "toybox",
    config: Config | None = None,
    init: str | Path | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    steps: int | None = None,
    quality: Quality = "normal",
    progress: bool = True,
) -> Gaussians:
    """Makes a splat from a prompt without writing to disk.

    prompt: description in the teachers' vocabulary; `gscfd train --list-words` prints that of the toybox.
    seed: in [0, 2^63); the same seed on the same device gives the same splat, bit for bit on the CPU.
    preset: a name from `gscfd.config.presets()`, or the path of a .yaml file.
    config: all settings, instead of `preset`; its prompt and seed are replaced by the arguments.
    init: path of a 3DGS .ply or a mesh to start from instead of the ball, as with --init.
    on_step: called after every optimization step; it may read the report but must not change anything.
    steps: steps of the first stage; the other stages keep their share. quality: draft, normal or high, a third of the
    steps, all, or twice as many.
    progress: show a bar for every stage on standard error.

    Returns the Gaussians on the run's device: world z up, front at +x, roughly in the unit ball (docs/methods.md has
    the equations). Raises UserError for bad input, StageError if the watchdog gives up, and OutOfMemory if a step does
    not fit in GPU memory.
    """
    check(isinstance(prompt, str), "prompt", "a text", prompt)
    check(is_whole(seed), "seed", "a whole number", seed)
    check(steps is None or is_whole(steps), "steps", "a whole number", steps)
    check(isinstance(preset, (str, Path)), "preset", "the name of a preset or the path of a .yaml file", preset)
    check(config is None or isinstance(config, Config), "config", "a gscfd.Config", config)
    check(init is None or isinstance(init, (str, Path)), "init", "the path of a splat or mesh", init)
    config = replace(config or load_preset(str(preset)), prompt=prompt, seed=int(seed))
    if init is not None:
        config = replace(config, init=replace(config.init, ply=Path(init)))
    config = with_steps(config, steps, quality)
    warn_of_left_gpu(config)
    teachers = load_teachers(config)
    with StepBar(progress) as bar:

        def after_step(report: StepReport) -> None:
            bar.show(report)
            if on_step is not None:
                on_step(report)

        return distil(config, teachers, after_step, start=read_start(config.init))


def is_whole(number: object) -> bool:
    """Returns whether this is an integer, of Python or numpy."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def with_steps(config: Config, steps: int | None, quality: Quality) -> Config:
    """Returns the config with other numbers of steps, in the same proportions.

    steps: of the first stage, or None for the config's. Raises UserError for steps below 1 and an unknown quality.
    """
    check(quality in QUALITIES, "quality", " or ".join(QUALITIES), quality)
    check(steps is None or steps >= 1, "steps", "at least 1", steps)
    stages, factor = config.stages(), QUALITIES[quality]
    if not stages:
        return config
    if steps is not None:
        factor *= Fraction(int(steps), next(iter(stages.values())).steps)
    counts = {name: max(round(stage.steps * factor), 1) for name, stage in stages.items()}
    return merged(config, {name: {"steps": count} for name, count in counts.items()})
