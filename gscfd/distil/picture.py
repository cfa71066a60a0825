"""Distillation of a teacher directly into an image, without Gaussians."""

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
"""Default share of fresh noise per step for the methods that follow the clean flow."""
GROUP = 4
"""Number of views drawn with a multi-view teacher: a full turn, starting at the front."""


def draw_picture(drawing: Drawing, teacher: GuidedTeacher) -> Tensor:
    """Returns the image [V, C, h, w] that the method makes from the seed's noise, in the teacher's own space.

    teacher: with its prompt set. Raises UserError if there are more steps than the teacher has times.
    """
    most = int((sampling.T_MAX - sampling.T_MIN) * teacher.timesteps)
    check(drawing.steps <= most, "steps", f"at most {most}, one per time of the teacher", drawing.steps)
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
