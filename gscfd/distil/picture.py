"""Distillation of a teacher into a picture, without Gaussians between."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.config import VsdConfig, check
from gscfd.devices import choose_device
from gscfd.distil import sampling
from gscfd.distil.lora import Lora
from gscfd.teachers.guided import GuidedTeacher

GAMMA_OF = {"cfd": 1e-4, "fsd": 0.0, "sds": 1.0}
"""Share of fresh noise per step of the methods that follow the clean flow."""
GROUP = 4
"""Views of a multi-view teacher's picture, from the front round the object."""


@dataclass(kw_only=True)
class Drawing:
    """How a picture is drawn."""

    method: Literal["cfd", "fsd", "sds", "vsd", "ddim", "edm"] = "cfd"
    """Descent along the clean flow: cfd with a little fresh noise, fsd with none, sds with fresh noise alone; vsd, sds
    against a LoRA that learns the picture. Samplers: ddim, and edm with Heun steps and as much fresh noise as --churn
    says."""
    steps: int = 50
    """Each asks the teacher once, with edm twice."""
    gamma: float | None = None
    """Share of fresh noise per step of cfd (CFD Eq. 10), in [0, 1). Unset: 1e-4."""
    churn: float | None = None
    """EDM's S_churn. Unset: 0, no fresh noise."""
    vsd: VsdConfig = field(default_factory=VsdConfig)
    """The LoRA of vsd."""
    seed: int = 0
    """One seed sets every random draw."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


def draw_picture(drawing: Drawing, teacher: GuidedTeacher) -> Tensor:
    """[V, C, h, w] what the method makes of the seed's noise. teacher: told the prompt. Raises UserError for more steps
    than it has times."""
    most = int((sampling.T_MAX - sampling.T_MIN) * teacher.timesteps)
    check(drawing.steps <= most, "steps", f"at most {most}, a time of the teacher for each", drawing.steps)
    times = sampling.falling_times(drawing.steps, teacher.timesteps)
    device, views = choose_device(drawing.device), GROUP if teacher.multiview else 1
    cameras = turntable(views, size=teacher.image_size).to(device)
    generator = torch.Generator().manual_seed(drawing.seed)
    draw = partial(torch.randn, views, *teacher.latent_shape, generator=generator)
    noise = draw().to(device)

    def fresh(step: int) -> Tensor:
        return draw().to(device)

    if drawing.method == "ddim":
        return sampling.ddim(teacher, teacher.alpha_sigma(times[0])[1] * noise, times, cameras)
    if drawing.method == "edm":
        return sampling.edm(teacher, noise, fresh, times, cameras, churn=drawing.churn or 0.0)
    if drawing.method == "vsd":
        learner = Lora(teacher, drawing.vsd, seed=int(torch.randint(2**62, (), generator=generator)))
        return sampling.variational(teacher, learner, noise, fresh, times, cameras, generator)
    gamma = GAMMA_OF[drawing.method] if drawing.gamma is None else drawing.gamma
    return sampling.clean_flow(teacher, noise, fresh, times, cameras, gamma=gamma)
