"""Methods in two dimensions, without a splat: each makes an image from a seed's noise, for the mode coverage.

They have the form `(teacher, noise, fresh, times, cameras) -> image`, with arguments as in `gscfd.distil.sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from gscfd.distil.guidance import cfd, ddim_step
from gscfd.distil.sampling import T_MAX, T_MIN, clean_flow, noise_level, noise_levels
from gscfd.distil.schedule import sqrt_anneal, time_index
from gscfd.teachers.base import Teacher
from gscfd.types import Cameras

Flat: TypeAlias = Callable[[Teacher, Tensor, Callable[[int], Tensor], Sequence[int], Cameras], Tensor]


def dsd(
    teacher: Teacher, noise: Tensor, fresh: Callable[[int], Tensor], times: Sequence[int], cameras: Cameras
) -> Tensor:
    """Diverse Score Distillation (Xu et al. 2024, arXiv 2412.06780): the image follows the denoised image of the seed's
    own ODE trajectory, d z = -(sigma / alpha) d eps_phi (CFD Eq. 43), where both predictions are of the image with the
    noise that the trajectory predicts (the paper's approximation by interpolation). Three calls per step."""
    x = teacher.alpha_sigma(times[0])[1] * noise
    eps = teacher.predict_eps(x, times[0], cameras)
    z = ddim_step(teacher, x, eps, times[0], 0)
    for before, t in zip(times, times[1:], strict=False):
        seen = [alpha * z + sigma * eps for alpha, sigma in map(teacher.alpha_sigma, (before, t))]
        apart = teacher.predict_eps(seen[1], t, cameras) - teacher.predict_eps(seen[0], before, cameras)
        z = z - noise_level(teacher, t) * apart
        x = ddim_step(teacher, x, eps, before, t)
        eps = teacher.predict_eps(x, t, cameras)
    return z


def rfds_rev(
    teacher: Teacher, noise: Tensor, fresh: Callable[[int], Tensor], times: Sequence[int], cameras: Cameras
) -> Tensor:
    """RFDS-Rev (Yang et al. 2025, arXiv 2406.03293): SDS with the noise that the text's prediction finds in x_t. Two
    calls per step.

    The paper moves fresh noise by (1 - sigma)(v + z - noise) along the flow's velocity v = eps - z0. Since (1 - sigma)
    z0 + sigma eps = x_t, this is the predicted eps itself.
    """
    z, levels = torch.zeros_like(noise), noise_levels(teacher, times)
    for step, (t, target) in enumerate(zip(times, levels[1:], strict=True)):
        alpha, sigma = teacher.alpha_sigma(t)
        eps = fresh(step) if step else noise
        found = teacher.predict_eps(alpha * z + sigma * eps, t, cameras, 1.0)
        z = z + (target / levels[step] - 1) * cfd(teacher, z, found, t, cameras)
    return z


def noisy(teacher: Teacher, start: Tensor, times: Sequence[int], cameras: Cameras) -> Tensor:
    """The noisy variable (CFD Eq. 6, Fig. 5a): descent along eps_phi(alpha z), as if z were x_t / alpha. From
    (sigma / alpha) noise this is DDIM; a render, which holds no noise, is no input that the teacher knows.

    start: [V, C, h, w] image at times[0].
    """
    z, levels = start, noise_levels(teacher, times)
    for level, target, t in zip(levels, levels[1:], times, strict=False):
        z = z + (target - level) * teacher.predict_eps(teacher.alpha_sigma(t)[0] * z, t, cameras)
    return z


def noisy_from_gray(
    teacher: Teacher, noise: Tensor, fresh: Callable[[int], Tensor], times: Sequence[int], cameras: Cameras
) -> Tensor:
    """`noisy` from an empty image, as a splat begins."""
    return noisy(teacher, torch.zeros_like(noise), times, cameras)


def hifa(
    teacher: Teacher, noise: Tensor, fresh: Callable[[int], Tensor], times: Sequence[int], cameras: Cameras
) -> Tensor:
    """HiFA (Zhu et al. 2023): SDS toward the denoised image, at times that fall as t_max - (t_max - t_min) sqrt(done).

    Its other loss, on the decoded image, has the same minimum.
    """
    steps = len(times)
    falling = [time_index(sqrt_anneal(i / steps, T_MIN, T_MAX), teacher.timesteps) for i in range(steps)]
    return clean_flow(teacher, noise, fresh, falling, cameras, gamma=1.0)


FLOW = "the flow in 2D"
"""The clean flow of the views themselves: the control that must be proportional (CFD Eq. 8)."""
FLAT: dict[str, Flat] = {
    FLOW: partial(clean_flow, gamma=0.0),
    "sds in 2D": partial(clean_flow, gamma=1.0),
    "hifa in 2D": hifa,
    "dsd in 2D": dsd,
    "rfds-rev in 2D": rfds_rev,
    "the noisy variable in 2D, from gray": noisy_from_gray,
}
"""Methods by name."""
