"""Distillation of a teacher into a picture, without Gaussians between."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.config import Drawing, check
from gscfd.devices import choose_device
from gscfd.distil import sampling
from gscfd.distil.lora import Lora
from gscfd.teachers.guided import GuidedTeacher

GAMMA_OF = {"cfd": 1e-4, "fsd": 0.0, "sds": 1.0}
"""Share of fresh noise per step of the methods that follow the clean flow."""
GROUP = 4
"""Views of a multi-view teacher's picture, from the front round the object."""


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
