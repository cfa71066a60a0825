"""What a teacher makes of a prompt by itself, before a run: `python -m gscfd.preview --prompt "a yellow duck"`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.config import Config, Dtype, StageConfig, check, load_preset
from gscfd.devices import choose_device, choose_dtype
from gscfd.edits import stage_prompt
from gscfd.errors import UserError
from gscfd.export.turntable import write_contact_sheet
from gscfd.runs import default_folder
from gscfd.sampling import ddim
from gscfd.teachers import load_teacher
from gscfd.teachers.find import TOYBOX
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.schedules import Flow
from gscfd.train import check_words, default_preset
from gscfd.types import Cameras

VIEWS = 4
"""Of a single-view teacher: front, side, back, side."""
MOST_CFG = 7.5
"""Distillation's guidance of 50 and more would saturate a sampler."""
FLOW_SHIFT = 3.0
"""How far a flow sampler's times lean towards noise (Esser et al. 2024, section 5.3.2)."""


@dataclass(kw_only=True)
class Settings:
    """Sample a stage's teacher and put the views side by side: what the teacher cannot draw, no run will make."""

    prompt: str
    """What to make, in the words of the teacher."""
    preset: str | None = None
    """Whose teacher, views and precision: a preset's name, or the path of a .yaml file. Unset: as gscfd.train."""
    stage: Literal["coarse", "refine"] | None = None
    """Unset: coarse, or refine where the preset has no coarse stage."""
    teacher: str | None = None
    """Another teacher than the stage's own: a folder, a checkpoint file or OWNER/REPO."""
    out: Path | None = None
    """The picture, a .png; unset: outputs/<prompt>-<seed>-<stage>.png."""
    overwrite: bool = False
    """Replace the picture if it is there."""
    steps: int = 50
    """Of the sampler."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Dtype = "auto"
    """Precision of the teacher. auto: bfloat16 on CUDA and on a CPU that has instructions for it, else float32."""


def check_settings(settings: Settings) -> None:
    """Raise UserError for a value out of range."""
    check(settings.prompt.strip() != "", "prompt", 'a description such as "a yellow duck"', settings.prompt)
    check(1 <= settings.steps <= 1000, "steps", "1 to 1000", settings.steps)
    check(0 <= settings.seed < 2**63, "seed", "a value in [0, 2^63)", settings.seed)
    check(settings.out is None or settings.out.suffix == ".png", "out", "the name of a .png file", str(settings.out))


def sample(teacher: GuidedTeacher, cameras: Cameras, *, steps: int, generator: torch.Generator) -> Tensor:
    """[V, 3, H, W] in [0, 1]: the teacher's sample of these views, by DDIM, which for a flow are its Euler steps."""
    x = torch.randn(len(cameras), *teacher.latent_shape, generator=generator).to(cameras.viewmats.device)
    times = shifted_times if isinstance(teacher.schedule, Flow) else trailing_times
    return teacher.decode(ddim(teacher, x, times(steps, teacher.timesteps), cameras))


def trailing_times(steps: int, timesteps: int) -> list[int]:
    """Of a diffusion: at equal distances, from the last one down (Lin et al. 2023, section 3.3). At most `steps`."""
    steps = min(steps, timesteps)
    return [round(timesteps * (1 - i / steps)) - 1 for i in range(steps)]


def shifted_times(steps: int, timesteps: int) -> list[int]:
    """Of a flow: FLOW_SHIFT closer to noise than at equal distances, and below pure noise, where eps says nothing of
    x0. At most `steps`."""
    even = np.linspace(1, 1 / steps, steps)
    shifted = FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)
    return np.unique(np.clip(np.round(shifted * timesteps), 1, timesteps - 1).astype(int))[::-1].tolist()


def chosen_stage(settings: Settings, config: Config) -> tuple[str, StageConfig]:
    """Its name and settings, with the guidance of a sampler. Raises UserError for words a toybox teacher never saw."""
    name = settings.stage or ("coarse" if config.coarse.steps else "refine")
    stage: StageConfig = getattr(config, name)
    stage = replace(stage, teacher=settings.teacher or stage.teacher, cfg=min(stage.cfg, MOST_CFG))
    if stage.teacher.startswith(TOYBOX):
        check_words("prompt", settings.prompt)
    return name, stage


def place(settings: Settings, stage: str) -> Path:
    """The file to write. Raises UserError when it is in the way, or its folder is not there."""
    unset = default_folder(settings.prompt, settings.seed)
    out = settings.out or unset.with_name(f"{unset.name}-{stage}.png")
    if settings.out is not None and not out.parent.is_dir():
        raise UserError(f"out: expected a file in an existing folder, got {out}; make {out.parent} first")
    if out.exists() and not settings.overwrite:
        raise UserError(f"out: {out} exists; choose another --out, or add --overwrite")
    return out


def preview(settings: Settings) -> None:
    """Write the picture and say so. Raises UserError for what the user can mend."""
    check_settings(settings)
    config = load_preset(settings.preset or default_preset(settings.device)[0])
    name, stage = chosen_stage(settings, config)
    out = place(settings, name)
    device = choose_device(settings.device)
    teacher = load_teacher(stage.teacher, device=device, dtype=choose_dtype(settings.dtype, device))
    teacher.set_prompt(stage_prompt(settings.prompt, stage))
    views = stage.views if teacher.multiview else VIEWS
    cameras = turntable(views, size=teacher.image_size).to(device)
    generator = torch.Generator().manual_seed(settings.seed)
    images = sample(teacher, cameras, steps=settings.steps, generator=generator)
    frames = (images.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    try:
        out.parent.mkdir(exist_ok=True)
        write_contact_sheet(frames, out, columns=views)
    except OSError as error:
        raise UserError(f"out: cannot write {out} ({error.strerror}); choose another --out") from None
    print(f"{out}  {views} views by {stage.teacher}")


def main(arguments: list[str] | None = None) -> int:
    try:
        preview(tyro.cli(Settings, args=arguments, prog="python -m gscfd.preview"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print("error: out of GPU memory; end other programs on the GPU, or use --device cpu", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
