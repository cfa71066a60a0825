"""Plan of a run, its teachers, cost and output, without making it: `gscfd train ... --dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gscfd.cameras import turntable
from gscfd.config import Config, MethodName, PolishConfig, StageConfig, StageName, TeacherStage
from gscfd.distil.lora import Lora, check_learner, make_learner
from gscfd.distil.methods import LEARNING, method
from gscfd.distil.schedule import time_index
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.runs.cost import Cost, cost_of, product_rate
from gscfd.runs.published import size_line, time_line
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.find import MVDREAM_MIRROR, SD21_MIRROR, Source, find_source, halves, is_repo
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.kinds import weight_bytes
from gscfd.teachers.load import load_teacher
from gscfd.teachers.texts import TextFeatures
from gscfd.teachers.tuning import checkpoint_encoder

TEXT_TOKENS = 256
"""Number of text tokens assumed in the estimates; CLIP has 77, T5 up to 512."""
EFFICIENCY = 0.5
"""Assumed speed of a teacher, as a fraction of that of a large matrix product."""
COPIES = 10
"""Number of copies of the trained values (Gaussians and vsd's LoRA) in memory: the values, their gradients and Adam's
two moments, plus two copies of the last good state, without gradients: the watchdog's, and the one that is saved when a
step runs out of memory."""
SAVED = 3
"""Number of these copies in each half of a checkpoint, the current and the last good state."""
ALBUMS = 3
"""Number of copies of the polish's album and its subject in memory: its own, and those of the last good state."""


@dataclass(frozen=True)
class TeacherPlan:
    """Size and cost of a teacher, found without running it."""

    text: str
    """Description of the teacher."""
    files: dict[str, int]
    """Bytes of each part on disk."""
    weights: dict[str, int]
    """Bytes of each network that stays in memory."""
    denoise: Cost
    """Cost of one prediction: all views, all branches of guidance."""
    encode: Cost
    """Cost of encoding the images and of the backward pass to the pixels; in the polish, of encoding and decoding."""
    asked: int
    """FLOP of all predictions of a step, in the middle of the stage."""
    learn: Cost = Cost(0, 0, 0)
    """Cost of evaluating and training the LoRA, with vsd."""
    trained: int = 0
    """Bytes of the LoRA's values."""

    @property
    def flops(self) -> int:
        """FLOP per step."""
        return self.asked + self.encode.flops + self.learn.flops

    @property
    def passing(self) -> int:
        """Peak bytes besides the weights: those of a step, or of the text encoder, which is unloaded before the first
        step."""
        text = max((size for part, size in self.files.items() if part.startswith("text_encoder")), default=0)
        return max(self.denoise.peak, self.encode.peak, self.learn.peak, text)


def plan(
    config: Config, folder: Path, device: torch.device, dtype: torch.dtype, start: Gaussians | None = None
) -> list[str]:
    """Returns the lines of the plan.

    folder: folder of the run. start: initial splat given by --init. Raises UserError for settings that the teachers do
    not support.
    """
    lines = [f"plan of {config.prompt!r}, preset {config.preset}; nothing is written or downloaded", ""]
    lines.append(f"device   {device_text(device)}, teachers in {str(dtype).removeprefix('torch.')}")
    lines.append(f"start    {start_text(config, start)}")
    rate = product_rate(device, dtype)
    stages = config.stages()
    teachers: dict[StageName, TeacherPlan] = {}
    album = 0
    for name, stage in stages.items():
        lines.append(f"{name:8} {stage_text(stage)}")
        try:
            teacher = meta_teacher(stage.teacher, dtype)
        except UserError as error:
            lines += missing_lines(stage.teacher, str(error))
            continue
        if config.vae_checkpointing:
            checkpoint_encoder(teacher[1])
        teachers[name] = teacher_plan(teacher, stage, config.prompt, config.guidance)
        if isinstance(stage, PolishConfig):
            album = album_bytes(stage, teacher[1].image_size)
        if isinstance(stage, StageConfig):
            check_learner(config.guidance, teacher[1], f"{name}.teacher")
            if learner := make_learner(config.guidance, teacher[1], stage, seed=0):
                learn, trained = learner_costs(learner, teacher[1], stage)
                teachers[name] = replace(teachers[name], learn=learn, trained=trained)
        lines += teacher_lines(stage, teachers[name], rate)
    splat = splat_bytes(config, stages, config.init.count if start is None else len(start))
    trained = splat + max((teacher.trained for teacher in teachers.values()), default=0)
    album += splat if album else 0  # the subject
    lines += total_lines(COPIES * trained + ALBUMS * album, stages, teachers, rate)
    if len(teachers) < len(stages):
        lines += filter(None, [time_line(config.preset)])
    return [*lines, *output_lines(config, folder, splat, 2 * (SAVED * trained + album))]


def stage_text(stage: TeacherStage) -> str:
    """The size of a stage, in words."""
    if isinstance(stage, PolishConfig):
        return f"{stage.steps} steps of {stage.views} views, {stage.asks} questions and {stage.fits} fits in each"
    sizes = " then ".join(str(pixels) for _, pixels in stage.render_sizes) if isinstance(stage, StageConfig) else ""
    views = f"{stage.views} views{f' at {sizes} pixels' if sizes else ''}"
    return f"{stage.steps} steps of {views}, at most {stage.max_count} Gaussians"


def device_text(device: torch.device) -> str:
    if device.type == "cpu":
        return "cpu"
    total = torch.cuda.get_device_properties(device).total_memory
    return f"cuda, {torch.cuda.get_device_name(device)} with {size(total)}"


def start_text(config: Config, start: Gaussians | None) -> str:
    if config.resume is not None:
        return f"state saved in {config.resume}"
    if start is None:
        return f"{config.init.count} Gaussians in a ball"
    return f"{config.init.ply}, {len(start)} Gaussians"


def meta_teacher(name: str, dtype: torch.dtype) -> tuple[Source, GuidedTeacher]:
    """Returns the teacher's location and the teacher on the meta device, without the values of its weights. All files
    except those of the text encoders are checked.

    Raises UserError if the teacher is not on this machine or is incomplete.
    """
    model, _ = halves(name)
    try:
        source = find_source(name, local_files_only=True)
    except UserError:
        if not is_repo(model) or Path(model).exists():
            raise
        raise UserError("not on this machine; a run fetches it from the hub") from None
    found = weight_bytes(source)
    lacking = [part for part, count in found.items() if part.startswith("text_encoder") and count == 0]
    if lacking:
        raise UserError(f"no weights in {', '.join(lacking)} of {source}; download the whole folder")
    return source, load_teacher(str(source), device="meta", dtype=dtype)


def teacher_plan(
    found: tuple[Source, GuidedTeacher], stage: TeacherStage, prompt: str, guidance: MethodName
) -> TeacherPlan:
    """Returns the plan of a teacher. found: result of `meta_teacher`."""
    source, teacher = found
    denoise, encode = step_costs(teacher, stage, prompt)
    return TeacherPlan(
        text=f"{source} ({'multi-view' if teacher.multiview else 'single-view'}, {teacher.image_size} pixels)",
        files=weight_bytes(source),
        weights={"denoiser": network_bytes(teacher.denoiser), "VAE": network_bytes(teacher.space)},
        denoise=denoise,
        encode=encode,
        asked=asked(teacher, stage, guidance, denoise.flops),
    )


def step_costs(teacher: GuidedTeacher, stage: TeacherStage, prompt: str) -> tuple[Cost, Cost]:
    """Returns the cost of one prediction, and of encoding the images with the backward pass to the pixels (in the
    polish, with decoding instead).

    teacher: on the meta device; its prompt is set.
    """
    cameras = turntable(stage.views, size=teacher.image_size)
    like = next(networks_of(teacher.denoiser)[0].parameters())

    def blank(texts: list[str]) -> list[TextFeatures]:
        tokens = like.new_empty(TEXT_TOKENS, teacher.denoiser.text_width)
        pooled = like.new_empty(teacher.denoiser.pooled_width) if teacher.denoiser.pooled_width else None
        return [TextFeatures(tokens, pooled)] * len(texts)

    def ask() -> Tensor:
        x = torch.empty(stage.views, *teacher.latent_shape, device="meta")
        return teacher.predict_eps(x, teacher.timesteps // 2, cameras)

    def look() -> None:
        images = torch.empty(stage.views, 3, teacher.image_size, teacher.image_size, device="meta", requires_grad=True)
        teacher.encode(images).sum().backward()

    def there_and_back() -> None:
        images = torch.empty(stage.views, 3, teacher.image_size, teacher.image_size, device="meta")
        with torch.no_grad():
            teacher.decode(teacher.encode(images))

    teacher.encode_texts = blank
    teacher.set_prompt(replace(stage_prompt(prompt, stage), negative=None))
    return cost_of(ask), cost_of(there_and_back if isinstance(stage, PolishConfig) else look)


def asked(teacher: GuidedTeacher, stage: TeacherStage, guidance: MethodName, each: int) -> int:
    """Returns the FLOP of all predictions of a step in the middle of a stage, without those of a method's learner.

    teacher: on the meta device, with a prompt set. each: FLOP of one prediction.
    """
    if isinstance(stage, PolishConfig):
        return stage.asks * each
    assert isinstance(stage, StageConfig)
    cameras, generator = turntable(stage.views, size=teacher.image_size), torch.Generator().manual_seed(0)
    z = torch.empty(stage.views, *teacher.latent_shape, device="meta")
    own: MethodName = "sds" if guidance in LEARNING else guidance
    t, way = method(own, stage, teacher.timesteps)(0.5, generator)
    return cost_of(lambda: way(teacher, z, z, time_index(t, teacher.timesteps), cameras)).flops


def learner_costs(learner: Lora, teacher: GuidedTeacher, stage: StageConfig) -> tuple[Cost, int]:
    """Returns the cost of evaluating and training the learner once, and the bytes of its values.

    teacher: on the meta device, with a prompt set.
    """
    cameras = turntable(stage.views, size=teacher.image_size)

    def step() -> None:
        z = torch.empty(stage.views, *teacher.latent_shape, device="meta")
        learner.predict_eps(z, teacher.timesteps // 2, cameras)
        learner.learn(z, cameras, torch.Generator())

    return cost_of(step), sum(value.nbytes for value in learner.params.values())


def networks_of(owner: object) -> list[nn.Module]:
    """Returns the networks among the owner's attributes."""
    return [value for value in vars(owner).values() if isinstance(value, nn.Module)]


def network_bytes(owner: object) -> int:
    """Returns the bytes of the weights of the owner's networks."""
    return sum(parameter.nbytes for network in networks_of(owner) for parameter in network.parameters())


def missing_lines(name: str, reason: str) -> list[str]:
    return [
        f"  teacher  {name}",
        f"  MISSING  {reason}",
        *filter(None, [size_line(name)]),
        f"  mirrors  {SD21_MIRROR} (Stable Diffusion 2.1), {MVDREAM_MIRROR} (MVDream); docs/teachers.md",
    ]


def teacher_lines(stage: TeacherStage, teacher: TeacherPlan, rate: float) -> list[str]:
    files = ", ".join(f"{part} {size(count)}" if count else part for part, count in teacher.files.items())
    memory = {f"{name} {size(count)}": count for name, count in teacher.weights.items()}
    memory[f"one prediction {size(teacher.denoise.peak)}"] = teacher.denoise.peak
    memory[f"encoding and backward {size(teacher.encode.peak)}"] = teacher.encode.peak
    memory[f"training the LoRA {size(teacher.learn.peak)}"] = teacher.learn.peak
    return [
        f"  teacher  {teacher.text}",
        f"  found    {files}",
        f"  memory   {', '.join(text for text, count in memory.items() if count)} (estimate)",
        f"  time     {teacher.flops / 1e12:.3g} TFLOP per step, {duration(seconds(stage, teacher, rate))} (estimate)",
    ]


def seconds(stage: TeacherStage, teacher: TeacherPlan, rate: float) -> float:
    return stage.steps * teacher.flops / (EFFICIENCY * rate)


def total_lines(
    state: int, stages: Mapping[StageName, TeacherStage], teachers: dict[StageName, TeacherPlan], rate: float
) -> list[str]:
    """Returns the totals over the stages, if all teachers are available. state: bytes of all copies of the run's state:
    trained values, and pictures that they are fitted to."""
    if len(teachers) < len(stages):
        return ["total    unknown until all teachers are available"]
    # Stages with the same teacher share its networks.
    weights = sum({teacher.text: sum(teacher.weights.values()) for teacher in teachers.values()}.values())
    passing = max((teacher.passing for teacher in teachers.values()), default=0)
    whole = sum(seconds(stages[name], teacher, rate) for name, teacher in teachers.items())
    return [
        f"total    memory {size(weights + passing + state)}: weights {size(weights)}, trained values and pictures "
        f"{size(state)}, intermediate results {size(passing)}",
        f"         time {duration(whole)} for the teachers, at {EFFICIENCY:.0%} of the {rate / 1e12:.3g} TFLOP/s "
        "measured here for a matrix product",
        "         Both are estimates and exclude rendering, noise and the libraries' own memory.",
    ]


def splat_bytes(config: Config, stages: Mapping[StageName, TeacherStage], first: int) -> int:
    """Returns the bytes of the largest possible splat: position, rotation, sizes, opacity and color, 4 bytes per value.

    first: initial number of Gaussians.
    """
    count = max([first, *(stage.max_count for stage in stages.values())])
    return 4 * count * (11 + 3 * (config.init.sh_degree + 1) ** 2)


def album_bytes(stage: PolishConfig, side: int) -> int:
    """Returns the bytes of the polish's full album: a picture, its background and what is inside, and the cameras.

    side: width and height of the pictures in pixels.
    """
    return 4 * min(stage.album, stage.steps) * stage.views * (7 * side**2 + 16 + 9)


def output_lines(config: Config, folder: Path, splat: int, checkpoint: int) -> list[str]:
    """Returns the lines on the run's output. splat: from `splat_bytes`. checkpoint: bytes of the largest one."""
    return [
        f"writes   {folder}/ with config.yaml, stats.jsonl, log.txt, turntable.mp4, turntable.png, "
        f"thumbnail.png and splat.ply (up to {size(splat)})",
        f"         during the run, checkpoints/ (up to {config.checkpoint.keep + 1} of {size(checkpoint)})",
    ]


def size(count: float) -> str:
    """Returns a number of bytes as text."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
