"""Cost and duration of steps with teachers of the published sizes and random weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from gscfd import prompts
from gscfd.config import Config, StageConfig, StageName, load_preset, merged
from gscfd.distil.pipeline import distil
from gscfd.distil.stage import PARTS, StepReport
from gscfd.runs.cost import Cost
from gscfd.runs.plan import EFFICIENCY, network_bytes, step_costs
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.denoisers import Denoiser, MultiviewDenoiser, UNetDenoiser
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.ldm import SCHEDULER
from gscfd.teachers.load import placed, placed_vae
from gscfd.teachers.schedules import diffusion
from gscfd.teachers.spaces import Latents
from gscfd.teachers.texts import TextFeatures

TEXT_TOKENS = 77
"""Number of CLIP's text tokens."""
WARM_UP = 5
"""Number of warm-up steps that are not timed."""
GPUS = {"H200": (989e12, 4.8e12), "A100 80 GB": (312e12, 2.04e12), "RTX 4090": (165e12, 1.01e12)}
"""FLOP/s of dense bfloat16 products and bytes/s of memory, from NVIDIA's data sheets."""


@dataclass(frozen=True, eq=False)
class Size:
    """Networks of a published teacher, compared by identity."""

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    multiview: bool = False
    told_size: bool = False
    """Whether the UNet reads the image's size and the pooled text (SDXL)."""


VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SD21 = Size("Stable Diffusion 2.1", UNET, VAE)
MVDREAM = Size(
    "MVDream",
    {
        **UNET,
        "sample_size": 32,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 16,
    },
    VAE,
    multiview=True,
)
SDXL = Size(
    "SDXL",
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    {**VAE, "scaling_factor": 0.13025},
    told_size=True,
)


def shrunk(size: Size) -> Size:
    """Returns the same kind of network with a few channels, for tests and rehearsals."""
    levels = len(size.unet["block_out_channels"])
    few = {"block_out_channels": (8,) * levels, "attention_head_dim": [1] * levels, "cross_attention_dim": 16}
    few |= {"sample_size": 8, "norm_num_groups": 4, "layers_per_block": 1}
    if size.told_size:
        few |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16 + 6 * 8}
        few |= {"transformer_layers_per_block": 1}
    vae = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "layers_per_block": 1}
    vae |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4}
    return replace(size, unet={**size.unet, **few}, vae={**size.vae, **vae})


@dataclass(frozen=True)
class Case:
    """A stage of a preset with a number of views."""

    size: Size
    preset: str
    stage: StageName
    views: int

    def config(self, **changes: Any) -> Config:
        """Returns the preset with this stage only, at the teacher's own size, with frozen Gaussians."""
        other = "refine" if self.stage == "coarse" else "coarse"
        still = dict.fromkeys(("means", "quats", "scales", "opacities", "sh0", "shN"), 1e-9)
        stage = {"views": self.views, "render_sizes": [], "densify": {"start": 1.0, "stop": 1.0}, "lr": still}
        settings = {"prompt": "a corgi", "checkpoint": {"every": 1000}, other: {"steps": 0}, self.stage: stage}
        config: Config = merged(merged(load_preset(self.preset), settings), changes)
        return config

    def settings(self) -> StageConfig:
        return self.config().distillations()[self.stage]


CASES = (
    Case(MVDREAM, "mvdream-sd21", "coarse", 4),
    Case(MVDREAM, "mvdream-sd21", "coarse", 8),
    Case(SD21, "mvdream-sd21", "refine", 1),
    Case(SD21, "mvdream-sd21", "refine", 2),
    Case(SD21, "mvdream-sd21", "refine", 4),
    Case(SDXL, "sdxl", "refine", 1),
)
PRESETS = ("fast", "mvdream-sd21", "paper")
"""Presets with a total time: all use MVDream with 4 views, then Stable Diffusion 2.1."""


def build_teacher(size: Size, *, device: torch.device | str, dtype: torch.dtype) -> GuidedTeacher:
    """Builds a teacher with random weights and text features, which have the same time and memory as real ones."""
    with torch.device(device):
        unet, vae = UNet2DConditionModel(**size.unet), AutoencoderKL(**size.vae)
    space = Latents(placed_vae(vae, device, dtype), size.unet["sample_size"])
    placed(unet, device, dtype)
    told = space.image_size if size.told_size else None
    denoiser: Denoiser = MultiviewDenoiser(unet) if size.multiview else UNetDenoiser(unet, image_size=told)
    random = partial(torch.randn, device=device, dtype=dtype)

    def encode_texts(texts: list[str]) -> list[TextFeatures]:
        pooled = random(denoiser.pooled_width) if denoiser.pooled_width else None
        return [TextFeatures(random(TEXT_TOKENS, denoiser.text_width), pooled) for _ in texts]

    return GuidedTeacher(
        space=space,
        denoiser=denoiser,
        schedule=diffusion(SCHEDULER),
        encode_texts=encode_texts,
        wording=prompts.MVDREAM if size.multiview else prompts.SINGLE_VIEW,
        multiview=size.multiview,
    )


# ------------------------------------------------------------------------------------------------------ cost of a step


@dataclass(frozen=True)
class CostRow:
    case: Case
    pixels: int
    weights: int
    """Bytes of the network weights that a step reads."""
    denoise: Cost
    encode: Cost

    def seconds(self, gpu: str) -> float:
        """Returns an estimate: products at `EFFICIENCY` of the GPU's peak rate, then bytes at full memory bandwidth."""
        rate, bandwidth = GPUS[gpu]
        flops, traffic = self.denoise.flops + self.encode.flops, self.denoise.traffic + self.encode.traffic
        return flops / (EFFICIENCY * rate) + traffic / bandwidth


def cost_row(case: Case) -> CostRow:
    """Counts a case in bfloat16 on tensors without memory."""
    teacher = build_teacher(case.size, device="meta", dtype=torch.bfloat16)
    denoise, encode = step_costs(teacher, case.settings(), "a corgi")
    weights = network_bytes(teacher.denoiser) + network_bytes(teacher.space)
    return CostRow(case, teacher.image_size, weights, denoise, encode)


def cost_table(rows: list[CostRow]) -> str:
    """Returns Markdown: the steps, then the presets whose steps are among them."""
    head = ["teacher", "views", "pixels", "denoise, TFLOP", "encode and back, TFLOP", "GB read and written"]
    head += ["weights, GB", "most held, GB", *(f"{gpu}, ms" for gpu in GPUS)]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in rows:
        counts = [row.denoise.flops / 1e12, row.encode.flops / 1e12, (row.denoise.traffic + row.encode.traffic) / 1e9]
        counts += [row.weights / 1e9, max(row.denoise.peak, row.encode.peak) / 1e9]
        cells = [f"{count:.3g}" for count in counts] + [f"{1e3 * row.seconds(gpu):.0f}" for gpu in GPUS]
        lines.append(f"| {row.case.size.name} | {row.case.views} | {row.pixels} | {' | '.join(cells)} |")
    times = {gpu: {row.case: row.seconds(gpu) for row in rows} for gpu in GPUS}
    lines += ["", f"| preset | {', minutes | '.join(GPUS)}, minutes |", "|---" + "|---:" * len(GPUS) + "|"]
    for name in PRESETS:
        minutes = [preset_minutes(name, times[gpu]) for gpu in GPUS]
        if all(value is not None for value in minutes):
            lines.append(f"| `{name}` | {' | '.join(f'{value:.3g}' for value in minutes)} |")
    return "\n".join(lines)


def preset_minutes(name: str, seconds: Mapping[Case, float]) -> float | None:
    """Returns the minutes of all steps of the preset, from the seconds of one; None if a stage's case was not timed."""
    config, total = load_preset(name), 0.0
    sizes: dict[StageName, Size] = {"coarse": MVDREAM, "refine": SD21}
    for stage, settings in ((name, config.stage(name)) for name in sizes):
        case = Case(sizes[stage], "mvdream-sd21", stage, settings.views)
        if case not in seconds:
            return None
        total += settings.steps * seconds[case] / 60
    return total


# -------------------------------------------------------------------------------------------------------- step times


@dataclass(frozen=True)
class TimeRow:
    case: Case
    parts: dict[str, float]
    """Median milliseconds of each part; on CUDA, device time."""
    step: float
    """Wall-clock milliseconds per step."""
    memory: int | None
    """Peak bytes allocated on the GPU."""

    def ratio(self, *parts: str) -> float:
        """Returns the ratio of the step to these parts."""
        return self.step / sum(self.parts[part] for part in parts)


def measure(case: Case, teacher: GuidedTeacher, *, device: torch.device, steps: int, **changes: Any) -> TimeRow:
    """Times `steps` steps of the case's stage after warm-up, in the loop that runs use.

    changes: of the config, as nested mappings.
    """
    config = case.config(**changes)
    config = merged(config, {"device": device.type, case.stage: {"steps": WARM_UP + steps}})
    settings = config.stage(case.stage)
    teacher.set_prompt(stage_prompt(config.prompt, settings))
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    clocks, times = list[Mapping[str, float]](), list[float]()

    def on_step(report: StepReport) -> None:
        clocks.append(report.seconds)
        if report.step + 1 in (WARM_UP, report.steps):
            wait()
            times.append(time.perf_counter())

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    distil(config, {case.stage: teacher}, on_step)
    return TimeRow(
        case,
        {part: 1e3 * statistics.median(clock[part] for clock in clocks[WARM_UP:]) for part in PARTS},
        1e3 * (times[1] - times[0]) / steps,
        torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    )
