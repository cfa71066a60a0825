"""What a run would use, cost and write, without making anything: `python -m gscfd.train ... --dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gscfd.cameras import turntable
from gscfd.config import Config, PolishConfig, StageConfig, StageName, TeacherStage
from gscfd.distil.lora import Lora
from gscfd.distil.methods import check_learner, make_learner
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.runs.cost import Cost, cost_of, product_rate
from gscfd.teachers import Prompt, load_teacher
from gscfd.teachers.find import MVDREAM_MIRROR, SD21_MIRROR, find_teacher, is_repo
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import weight_bytes
from gscfd.teachers.texts import TextFeatures
from gscfd.teachers.tuning import checkpoint_encoder

TEXT_TOKENS = 256
"""Of the estimate: CLIP has 77, T5 up to 512."""
EFFICIENCY = 0.5
"""Share of a large matrix product's speed that a teacher reaches, for the estimate of the time."""
COPIES = 10
"""Of what is trained, the Gaussians and the LoRA of vsd: themselves, gradients, Adam's two moments; and, without the
gradients, twice the last good state: the watchdog's, and the one that is saved when a step does not fit."""
SAVED = 3
"""Of these, in one half of a checkpoint."""


@dataclass(frozen=True)
class TeacherPlan:
    """What is known of a teacher without running it."""

    text: str
    """What it is."""
    files: dict[str, int]
    """Bytes of each part on disk."""
    weights: dict[str, int]
    """Bytes of the networks that stay in memory."""
    denoise: Cost
    """Of one question: all views, all branches of guidance."""
    encode: Cost
    """Of the way to what the teacher sees, and back to the pixels; in the polish, of encoding and decoding."""
    asks: int = 1
    """Questions per step."""
    learn: Cost = Cost(0, 0, 0)
    """Of asking and training the LoRA, with vsd."""
    trained: int = 0
    """Bytes of its values."""

    @property
    def flops(self) -> int:
        """Per step."""
        return self.asks * self.denoise.flops + self.encode.flops + self.learn.flops

    @property
    def passing(self) -> int:
        """Most bytes beside the weights: of a step, or of the text encoder, which goes before the first one."""
        text = max((size for part, size in self.files.items() if part.startswith("text_encoder")), default=0)
        return max(self.denoise.peak, self.encode.peak, self.learn.peak, text)


def plan(
    config: Config, folder: Path, device: torch.device, dtype: torch.dtype, start: Gaussians | None = None
) -> list[str]:
    """The lines of the plan. folder: of the run. start: what --init gives. Raises UserError for settings that the
    teachers do not take."""
    lines = [f"plan of {config.prompt!r}, preset {config.preset}; nothing is made or fetched", ""]
    lines.append(f"device   {device_text(device)}, teachers in {str(dtype).removeprefix('torch.')}")
    lines.append(f"start    {start_text(config, start)}")
    rate = product_rate(device, dtype)
    stages = config.stages()
    teachers: dict[StageName, TeacherPlan] = {}
    for name, stage in stages.items():
        lines.append(f"{name:8} {stage_text(stage)}")
        try:
            teacher = meta_teacher(stage.teacher, dtype)
        except UserError as error:
            lines += missing_lines(stage.teacher, str(error))
            continue
        if config.vae_checkpointing:
            checkpoint_encoder(teacher[1])
        teachers[name] = teacher_plan(teacher, stage, config.prompt)
        if isinstance(stage, StageConfig):
            check_learner(config.guidance, teacher[1], f"{name}.teacher")
            if learner := make_learner(config.guidance, teacher[1], stage, seed=0):
                learn, trained = learner_costs(learner, teacher[1], stage)
                teachers[name] = replace(teachers[name], learn=learn, trained=trained)
        lines += teacher_lines(stage, teachers[name], rate)
    splat = splat_bytes(config, stages, config.init.count if start is None else len(start))
    trained = splat + max((teacher.trained for teacher in teachers.values()), default=0)
    return [*lines, *total_lines(trained, stages, teachers, rate), *output_lines(config, folder, splat, trained)]


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
        return f"what {config.resume} holds"
    if start is None:
        return f"{config.init.count} Gaussians in a ball"
    return f"{config.init.ply}, {len(start)} Gaussians"


def meta_teacher(name: str, dtype: torch.dtype) -> tuple[Path, GuidedTeacher]:
    """Where the teacher is, and the teacher without its weights' values: every file but the text encoders' is checked.

    Raises UserError when it is not on this machine, or not whole.
    """
    if is_repo(name) and not Path(name).exists():
        try:
            source = find_teacher(name, local_files_only=True)
        except UserError:
            raise UserError("not on this machine; a run fetches it from the hub") from None
    else:
        source = find_teacher(name)
    found = weight_bytes(source)
    lacking = [part for part, count in found.items() if part.startswith("text_encoder") and count == 0]
    if lacking:
        raise UserError(f"no weights in {', '.join(lacking)} of {source}; download the whole folder")
    return source, load_teacher(str(source), device="meta", dtype=dtype)


def teacher_plan(found: tuple[Path, GuidedTeacher], stage: TeacherStage, prompt: str) -> TeacherPlan:
    """found: of `meta_teacher`."""
    source, teacher = found
    denoise, encode = step_costs(teacher, stage, prompt)
    return TeacherPlan(
        text=f"{source} ({'multi-view' if teacher.multiview else 'single-view'}, {teacher.image_size} pixels)",
        files=weight_bytes(source),
        weights={"denoiser": network_bytes(teacher.denoiser), "VAE": network_bytes(teacher.space)},
        denoise=denoise,
        encode=encode,
        asks=stage.asks if isinstance(stage, PolishConfig) else 1,
    )


def step_costs(teacher: GuidedTeacher, stage: TeacherStage, prompt: str) -> tuple[Cost, Cost]:
    """Of one question, and of the way to what the teacher sees and back to the pixels, in the polish by decoding; a
    teacher on the meta device."""
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
    teacher.set_prompt(Prompt(text=prompt, cfg=stage.cfg, cfg_rescale=stage.cfg_rescale, perp_neg=stage.perp_neg))
    return cost_of(ask), cost_of(there_and_back if isinstance(stage, PolishConfig) else look)


def learner_costs(learner: Lora, teacher: GuidedTeacher, stage: StageConfig) -> tuple[Cost, int]:
    """Returns the cost of asking and training the learner once, and the bytes of its values. teacher: on the meta
    device, told a prompt."""
    cameras = turntable(stage.views, size=teacher.image_size)

    def step() -> None:
        z = torch.empty(stage.views, *teacher.latent_shape, device="meta")
        learner.predict_eps(z, teacher.timesteps // 2, cameras)
        learner.learn(z, cameras, torch.Generator())

    return cost_of(step), sum(value.nbytes for value in learner.params.values())


def networks_of(owner: object) -> list[nn.Module]:
    """Those that are its attributes."""
    return [value for value in vars(owner).values() if isinstance(value, nn.Module)]


def network_bytes(owner: object) -> int:
    """Of the weights of the owner's networks."""
    return sum(parameter.nbytes for network in networks_of(owner) for parameter in network.parameters())


def missing_lines(name: str, reason: str) -> list[str]:
    return [
        f"  teacher  {name}",
        f"  MISSING  {reason}",
        f"  mirrors  {SD21_MIRROR} (Stable Diffusion 2.1), {MVDREAM_MIRROR} (MVDream); docs/teachers.md",
    ]


def teacher_lines(stage: TeacherStage, teacher: TeacherPlan, rate: float) -> list[str]:
    files = ", ".join(f"{part} {size(count)}" if count else part for part, count in teacher.files.items())
    memory = {f"{name} {size(count)}": count for name, count in teacher.weights.items()}
    memory[f"one question {size(teacher.denoise.peak)}"] = teacher.denoise.peak
    memory[f"encoding and back {size(teacher.encode.peak)}"] = teacher.encode.peak
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
    trained: int, stages: Mapping[StageName, TeacherStage], teachers: dict[StageName, TeacherPlan], rate: float
) -> list[str]:
    """The sum over the stages, when all teachers are there. trained: bytes of the values that are trained."""
    if len(teachers) < len(stages):
        return ["total    unknown until every teacher is there"]
    # Stages with the same teacher share its networks.
    weights = sum({teacher.text: sum(teacher.weights.values()) for teacher in teachers.values()}.values())
    passing = max((teacher.passing for teacher in teachers.values()), default=0)
    copies = COPIES * trained
    whole = sum(seconds(stages[name], teacher, rate) for name, teacher in teachers.items())
    return [
        f"total    memory {size(weights + passing + copies)}: weights {size(weights)}, what is trained {size(copies)}, "
        f"what a step holds {size(passing)}",
        f"         time {duration(whole)}, of the teachers alone, at {EFFICIENCY:.0%} of the {rate / 1e12:.3g} TFLOP/s "
        "that a matrix product was just seen to reach here",
        "         Both are estimates: rendering, noise and the libraries' own memory come on top.",
    ]


def splat_bytes(config: Config, stages: Mapping[StageName, TeacherStage], first: int) -> int:
    """Of as many Gaussians as there may be: position, rotation, sizes, opacity and color, 4 bytes each. first: how
    many there are at the start."""
    count = max([first, *(stage.max_count for stage in stages.values())])
    return 4 * count * (11 + 3 * (config.init.sh_degree + 1) ** 2)


def output_lines(config: Config, folder: Path, splat: int, trained: int) -> list[str]:
    """splat: of `splat_bytes`. trained: bytes of the values that are trained."""
    return [
        f"writes   {folder}/ with config.yaml, stats.jsonl, log.txt, turntable.mp4, turntable.png and splat.ply (up to "
        f"{size(splat)})",
        f"         while it runs, checkpoints/ (up to {config.checkpoint.keep + 1} of {size(2 * SAVED * trained)})",
    ]


def size(count: float) -> str:
    """Bytes as text."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
