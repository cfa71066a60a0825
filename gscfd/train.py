"""The command line, `python -m gscfd.train --prompt "a yellow duck"`: chooses the parts; all else receives them."""

from __future__ import annotations

import importlib.util
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import tyro
from torch import Tensor

from gscfd import noise
from gscfd.checkpoint import Checkpoint
from gscfd.config import Config, Edit, StageConfig, StageName, load_preset, load_run, presets
from gscfd.devices import choose_dtype, left_alone, missing_kernels, run_device
from gscfd.edits import LiveSettings, changes, edited, place, stage_prompt
from gscfd.errors import UserError, warn
from gscfd.gaussians import Gaussians, ball
from gscfd.lora import Lora, unet_of
from gscfd.plan import plan
from gscfd.rasterize import rasterize
from gscfd.runs import (
    Interrupted,
    RunFolder,
    Stopped,
    check_replaceable,
    check_resumable,
    folder_of,
    interrupt_between_steps,
)
from gscfd.stage import StageError, StepReport, run_stage
from gscfd.start import read_start
from gscfd.teachers import load_teacher
from gscfd.teachers.find import TOYBOX
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import check_teacher, is_here
from gscfd.teachers.tuning import checkpoint_encoder, compile_networks
from gscfd.toybox.forms import nearest_form, word_table
from gscfd.toybox.objects import unknown_words, vocabulary
from gscfd.types import Cameras, Noise, Render

if TYPE_CHECKING:
    from gscfd.viewer.live import LiveViewer

log = logging.getLogger("gscfd")
NOISES = {
    "surface": noise.surface,
    "radial": noise.radial,
    "world_map": noise.world_map,
    "fixed": noise.fixed,
    "iid": noise.iid,
}


def preflight(config: Config, kept: KeptTeachers | None = None) -> None:
    """Raise UserError for what can be known to fail before anything is made: device, noise, prompt, teachers that are
    not kept."""
    check_settings(config)
    for name, stage in (("coarse", config.coarse), ("refine", config.refine)):
        if stage.steps and teacher_key(config, name) not in (kept or {}):
            check_teacher(stage.teacher)


def check_settings(config: Config) -> None:
    """Raise UserError for settings that cannot be, whatever the teachers are."""
    check_kernels(config)
    check_densify(config)
    check_compile(config)
    check_prompt(config)
    for name, stage in (("coarse", config.coarse), ("refine", config.refine)):
        if stage.steps and stage.teacher.startswith(TOYBOX) and stage.negative_prompt is not None:
            check_words(f"{name}.negative-prompt", stage.negative_prompt)


def check_kernels(config: Config) -> None:
    """Raise UserError where the run lacks compiled code for the device that it needs."""
    on_cuda = run_device(config).type == "cuda"
    if on_cuda and config.noise_kind == "radial" and config.noise.device == "render":
        raise UserError("noise.kind: radial has no CUDA kernel; use --noise.kind surface, or --noise.device cpu")
    teachers = [stage.teacher for stage in (config.coarse, config.refine) if stage.steps]
    small = all(teacher.startswith(TOYBOX) for teacher in teachers)
    missing = missing_kernels(config) if on_cuda else left_alone(config)
    if missing and (on_cuda or not small):
        raise UserError(f"{missing}\nOr leave the GPU alone, and wait: --device cpu")


def warn_of_left_gpu(config: Config) -> None:
    """Say so when the run takes the CPU although there is a GPU."""
    if missing := left_alone(config):
        warn(f"device: the CPU is used, although there is a GPU, for want of compiled code.\n{missing}")


def check_densify(config: Config) -> None:
    """Raise UserError where the device of the run cannot densify as a stage asks."""
    for name, stage in (("coarse", config.coarse), ("refine", config.refine)):
        if stage.steps and stage.densify.strategy == "mcmc" and run_device(config).type != "cuda":
            raise UserError(
                f"{name}.densify.strategy: expected default on the CPU, got mcmc, which needs gsplat's CUDA kernels; "
                f"use a machine with CUDA, or --{name}.densify.strategy default"
            )


def check_compile(config: Config) -> None:
    """Raise UserError where the networks cannot be compiled on the device of the run."""
    if not config.compile:
        return
    if run_device(config).type != "cuda":
        raise UserError("compile: expected a CUDA device, got the CPU, where compiling gains nothing; use --no-compile")
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            "compile: expected the package triton, which torch compiles with on CUDA, got none; use "
            "--no-compile, or install a build of torch that brings it"
        )


def check_prompt(config: Config) -> None:
    """Raise UserError for an empty prompt, or words that a toybox teacher never saw."""
    if not config.prompt.strip():
        raise UserError('prompt: expected a description such as --prompt "a yellow duck", got nothing')
    stages = [stage for stage in (config.coarse, config.refine) if stage.steps]
    if not any(stage.teacher.startswith(TOYBOX) for stage in stages):
        return
    check_words("prompt", config.prompt)
    if near := nearest_form(config.prompt):
        warn(
            f"prompt: the toybox teachers never saw sentences like {config.prompt!r}; the nearest of theirs is {near!r}"
        )


def check_words(name: str, text: str) -> None:
    """Raise UserError for words of the argument `name` that a toybox teacher never saw."""
    unknown = unknown_words(text)
    if unknown:
        words = ", ".join(f"{word!r} (nearest: {near!r})" for word, near in unknown)
        raise UserError(
            f"{name}: the toybox teachers do not know {words}; --list-words shows the {len(vocabulary())} words they "
            "know. Free text needs teachers of your own: --coarse.teacher DIR --refine.teacher DIR"
        )


def stage_noise(config: Config, stage: StageName, shape: tuple[int, int, int], seed: int) -> Noise:
    """The noise of one stage, bound to its state, drawn where the render is or, as config.noise.device says, on the
    CPU: then what it needs of the render is copied there, and the noise back."""
    channels, height, width = shape
    field = noise.NoiseField(
        seed,
        channels,
        height,
        width,
        gamma=config.noise_gamma(stage),
        beta=config.noise.beta,
        theta=config.noise.theta,
        span=getattr(config, stage).steps,
    )
    kind = NOISES[config.noise_kind]

    def draw(cameras: Cameras, render: Render, step: int) -> Tensor:
        if config.noise.device == "render":
            return kind(field, cameras, render, step)
        return kind(field, cameras.to("cpu"), render.to("cpu"), step).to(render.rgb.device)

    return draw


NOISE_SAMPLES = 4
"""Pixels of a render, both ways, under one pixel of the noise that is painted for people."""


def painted_noise(config: Config, cameras: Cameras, render: Render) -> Tensor:
    """[V, 3, H / 4, W / 4] the run's kind of noise for any views, to look at.

    cameras, render: of sizes that NOISE_SAMPLES divides.
    """
    height, width = cameras.height // NOISE_SAMPLES, cameras.width // NOISE_SAMPLES
    field = noise.NoiseField(
        config.seed, 3, height, width, gamma=0.0, beta=config.noise.beta, theta=config.noise.theta, span=1
    )
    return NOISES[config.noise_kind](field, cameras.to("cpu"), render.to("cpu"), 0)


KeptTeachers = dict[tuple[str, str, torch.device, torch.dtype], GuidedTeacher]
"""Teachers by `teacher_key`. A stage's teacher is its own, because it is told the stage's prompt."""


def teacher_key(config: Config, name: str) -> tuple[str, str, torch.device, torch.dtype]:
    """What tells the teacher of the stage `name` from others."""
    device = run_device(config)
    return name, getattr(config, name).teacher, device, choose_dtype(config.dtype, device)


def load_teachers(config: Config, kept: KeptTeachers | None = None) -> dict[str, GuidedTeacher]:
    """The teachers of the stages that have steps, told the prompt: all that can fail fails before the first step.

    kept: those of earlier calls, which are used again; those that are loaded now are added."""
    kept = {} if kept is None else kept
    preflight(config, kept)
    teachers: dict[str, GuidedTeacher] = {}
    for name, stage in (("coarse", config.coarse), ("refine", config.refine)):
        if stage.steps == 0:
            continue
        _, source, device, dtype = key = teacher_key(config, name)
        try:
            if key not in kept:
                kept[key] = load_teacher(source, device=device, dtype=dtype)
                if config.vae_checkpointing:
                    checkpoint_encoder(kept[key])
                if config.compile:
                    compile_networks(kept[key], mode="reduce-overhead")
            if config.guidance == "vsd":
                unet_of(kept[key], f"{name}.teacher")
            teachers[name] = kept[key]
            teachers[name].set_prompt(stage_prompt(config.prompt, stage))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{name}.teacher: expected one that fits the GPU's memory, got {stage.teacher}; try --dtype bfloat16, "
                "a smaller teacher, or end other programs on the GPU (--dry-run shows what is needed)"
            ) from error
    return teachers


class OutOfMemory(RuntimeError):
    """A step did not fit the GPU's memory: the message says what helps."""


def memory_advice(config: Config, name: str) -> str:
    """The three settings of the stage that save the most memory, of those that can still be changed."""
    stage: StageConfig = getattr(config, name)
    settings = [
        f"--{name}.views {stage.views // 2}" if stage.views > 1 else "",
        "--vae-checkpointing" if stage.views > 1 and not config.vae_checkpointing else "",
        f"--{name}.no-perp-neg" if stage.perp_neg else "",
        "--dtype bfloat16" if config.dtype == "float32" else "",
        f"--{name}.densify.max-count {stage.densify.max_count // 2}",
        f"a smaller --{name}.teacher",
        "a smaller --init" if config.init.ply else f"--init.count {config.init.count // 2}",
    ]
    return ", ".join([setting for setting in settings if setting][:3])


def distil(
    config: Config,
    teachers: dict[str, GuidedTeacher],
    on_step: Callable[[StepReport], None],
    resume: Checkpoint | None = None,
    live: LiveSettings | None = None,
    start: Gaussians | None = None,
) -> Gaussians:
    """Prompt in, splat out: the coarse stage, then the refine stage.

    teachers: of `load_teachers`. resume: where to continue. live: of this config and these teachers, for an `on_step`
    that makes edits. start: of `read_start`, in place of the ball; it is changed.
    """
    live = live or LiveSettings(config, teachers)

    def after_step(report: StepReport) -> None:
        on_step(report)
        live.move_to(place(report.stage, report.state.rollbacks, report.state.step))

    device = run_device(config)
    # One seed, one independent stream for each part.
    seeds = torch.randint(2**62, (5,), generator=torch.Generator().manual_seed(config.seed)).tolist()
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
    stages: dict[StageName, tuple[StageConfig, int, int]] = {
        "coarse": (config.coarse, seeds[1], seeds[3]),
        "refine": (config.refine, seeds[2], seeds[4]),
    }
    if resume is not None and resume.stage == "refine":
        del stages["coarse"]
    for name, (stage, seed, lora_seed) in stages.items():
        if name not in teachers:
            continue
        teacher = teachers[name]
        continued = resume.state if resume is not None and resume.stage == name else None
        learner = Lora(teacher, stage.vsd, seed=lora_seed) if config.guidance == "vsd" else None
        numbers = continued.numbers if continued is not None else {"rollbacks": 0, "step": 0}
        live.move_to(place(name, numbers["rollbacks"], numbers["step"]))
        try:
            run_stage(
                gaussians,
                stage,
                name=name,
                teacher=teacher,
                rasterize=rasterize,
                noise=stage_noise(config, name, teacher.latent_shape, seed),
                method=live.method(name, learner),
                seed=seed,
                watchdog=config.watchdog,
                keep_every=config.checkpoint.every,
                on_step=after_step,
                learner=learner,
                resume=continued,
            )
        except torch.OutOfMemoryError as error:
            advice = memory_advice(config, name)
            raise OutOfMemory(f"{name}: out of GPU memory; what helps most: {advice}") from error
    return gaussians


def generate(
    prompt: str,
    *,
    seed: int = 0,
    preset: str = "toybox",
    config: Config | None = None,
    init: str | Path | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> Gaussians:
    """Make a splat from a prompt, in Python; nothing is written to disk.

    prompt: in the words of the teachers; the toybox's are listed by `python -m gscfd.train --list-words`.
    seed: in [0, 2^63); the same seed on the same device gives the same splat, bit for bit on the CPU.
    preset: a name of `gscfd.config.presets()`, or the path of a .yaml file.
    config: every setting, instead of `preset`; its prompt and seed are replaced by these.
    init: path of a 3DGS .ply to start from, in place of the ball, as --init.
    on_step: called after every optimisation step; reads the report and changes nothing.

    Returns the Gaussians on the run's device: world z up, front at +x, in about the unit ball (docs/methods.md has the
    equations). Raises UserError for bad input, StageError when the watchdog gives up, and OutOfMemory for a step that
    does not fit the GPU.
    """
    config = replace(config or load_preset(preset), prompt=prompt, seed=seed)
    if init is not None:
        config = replace(config, init=replace(config.init, ply=Path(init)))
    warn_of_left_gpu(config)
    teachers = load_teachers(config)
    return distil(config, teachers, on_step or (lambda report: None), start=read_start(config.init))


def train(config: Config) -> int:
    """The whole command: run folder, progress, viewer, exports. Returns the exit code."""
    preflight(config)
    check_folder(config)
    teachers = load_teachers(config)
    warn_of_left_gpu(config)
    if run_device(config).type == "cuda" and config.noise.device == "cpu":
        print("noise: drawn on the CPU and copied to the GPU (--noise.device cpu)")
    if config.compile:
        print("compile: the first steps of each stage compile the teacher's networks, which takes minutes")
    if config.edits:
        print(f"edits made in the viewer are made again at their steps: {len(config.edits)} (edits: in config.yaml)")
    try:
        with watched(config) as viewer:
            make_run(config, teachers, viewer)
    except Stopped as stopped:
        print(f"\nstopped: {stopped}")
        return stopped.code
    return 0


def make_run(config: Config, teachers: dict[str, GuidedTeacher], viewer: LiveViewer | None = None) -> None:
    """Make a run in its folder, from its start or from where it was stopped, to its end.

    teachers: of `load_teachers`. viewer: shows every step, and steers. Raises Stopped when the run cannot go on, and
    UserError when its folder cannot be had.
    """
    live = LiveSettings(config, teachers)
    start = read_start(config.init) if config.resume is None else None
    with RunFolder(config, start) as run:
        try:
            resume = run.rewind() if config.resume is not None else None
            if config.resume is not None and resume is None:
                start = run.read_start()
            check_device(config, resume)
            with interrupt_between_steps(run.save) as interrupt:

                def on_step(report: StepReport) -> None:
                    run.on_step(report)
                    interrupt(report)
                    if viewer is not None:
                        steer(viewer, live, run, report, interrupt)

                gaussians = distil(config, teachers, on_step, resume, live, start)
            run.finish(gaussians)
        except KeyboardInterrupt as interrupted:
            code = interrupted.code if isinstance(interrupted, Interrupted) else 130
            raise run.stopped(f"interrupted; continue with --resume {run.path}", code=code) from None
        except OutOfMemory as error:
            run.go_back()
            raise run.stopped(f"{error}; as it is, with more memory: --resume {run.path}", code=1) from error
        except StageError as error:
            raise run.stopped(str(error), code=1) from error
        except OSError as error:
            raise run.stopped(f"could not write: {error}; make room and --resume {run.path}", code=1) from error


def show_plan(config: Config) -> int:
    """The whole command of --dry-run: what a run would do, and nothing of it. Returns the exit code."""
    check_settings(config)
    folder = check_folder(config)
    device = run_device(config)
    start = read_start(config.init) if config.resume is None else None
    print("\n".join(plan(config, folder, device, choose_dtype(config.dtype, device), start)))
    return 0


def check_folder(config: Config) -> Path:
    """The folder of the run. Raises UserError when it is in the way, or is no run to resume."""
    folder = folder_of(config)
    if config.resume is not None:
        check_resumable(config, folder)
    elif folder.exists():
        check_replaceable(folder, config.overwrite)
    return folder


def check_device(config: Config, resume: Checkpoint | None) -> None:
    """Raise UserError when the run was begun on another kind of device, where the same numbers round differently."""
    device = run_device(config).type
    if resume is not None and resume.device != device:
        raise UserError(
            f"resume: expected {resume.device}, where {config.resume} was begun, got {device}; "
            f"continue with --device {resume.device} where there is one, or start again"
        )


@contextmanager
def watched(config: Config) -> Iterator[LiveViewer | None]:
    """The viewer, if it is wanted. Raises UserError when it cannot be served."""
    if not config.viewer.on:
        yield None
        return
    from gscfd.viewer.live import LiveViewer

    viewer = LiveViewer(config, lambda cameras, render: painted_noise(config, cameras, render))
    print(f"viewer: {viewer.address}", flush=True)
    try:
        yield viewer
    finally:
        viewer.close()


def steer(
    viewer: LiveViewer,
    live: LiveSettings,
    run: RunFolder,
    report: StepReport,
    interrupt: Callable[[StepReport], None],
) -> None:
    """Show a step in the browser, and do what is asked there until the next one may begin. Raises Interrupted, as
    Ctrl-C does, when that is to stop."""
    controls = viewer.controls
    viewer.on_step(report, live)
    while True:
        for edit in controls.take_edits():
            controls.answer = make_edit(live, run, report, edit)
        if controls.stopping:
            run.save(report)
            raise Interrupted(signal.SIGINT)
        if controls.may_step():
            return
        viewer.offer(report, live)
        interrupt(report)
        controls.wait()


def make_edit(live: LiveSettings, run: RunFolder, report: StepReport, edit: Edit) -> str:
    """Make an edit of the page before the next step, or not; returns what the page says of it."""
    edit = replace(edit, rollbacks=report.state.rollbacks, step=report.state.step)
    try:
        if edit.stage != report.stage or edit.step == report.steps:
            raise UserError(f"the {edit.stage} stage has made its last step; try again in the next stage")
        check_prompt(edited(live.now, edit))
        live.edit(edit, run.record)
    except UserError as error:
        return f"Not changed. {error}"
    text = ", ".join(f"{name} {value}" for name, value in changes(edit).items())
    log.info("%s: from step %d on %s", edit.stage, edit.step, text)
    return f"From step {edit.step + 1} on: {text}"


def option(arguments: list[str], name: str) -> str | None:
    """The last value given for --name, before the rest can be read."""
    values = [value for key, value in zip(arguments, arguments[1:], strict=False) if key == name]
    values += [argument.removeprefix(f"{name}=") for argument in arguments if argument.startswith(f"{name}=")]
    return values[-1] if values else None


def default_preset(device: str | None) -> tuple[str, str]:
    """The preset where none is named, and why it is that one. device: as in Config, if it is named."""
    if device == "cpu" or not torch.cuda.is_available():
        return "toybox", "without a CUDA device"
    large = load_preset("mvdream-sd21")
    missing = [stage.teacher for stage in (large.coarse, large.refine) if not is_here(stage.teacher)]
    if missing:
        return "toybox", f"without {' and '.join(missing)} on this machine"
    return "mvdream-sd21", "with a CUDA device and both teachers on this machine"


def parse(arguments: list[str]) -> Config:
    """Config from the command line: the values of the preset, or of the run to resume, then what the arguments
    change."""
    folder = option(arguments, "--resume")
    preset = option(arguments, "--preset") or default_preset(option(arguments, "--device"))[0]
    default = load_preset(preset) if folder is None else load_run(Path(folder))
    default = replace(default, viewer=replace(default.viewer, on=sys.stdout.isatty()))
    return tyro.cli(
        Config,
        args=arguments,
        default=default,
        prog="python -m gscfd.train",
        description="Turn a text prompt into a 3D Gaussian splat. --list-words prints the toybox's words.",
    )


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--list-words" in arguments:
        print(word_table())
        return 0
    try:
        config = parse(arguments)
        if option(arguments, "--preset") is None and config.resume is None:
            others = ", ".join(name for name in presets() if name != config.preset)
            print(f"preset: {config.preset}, {default_preset(config.device)[1]}; others by --preset: {others}")
        return show_plan(config) if config.dry_run else train(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
