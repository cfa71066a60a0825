"""The clean flow of an image: distillation in two dimensions, which is sampling (CFD section 3 and appendix G).

The image z starts at 0 and contains no noise; the teacher sees x_t = alpha z + sigma eps. Throughout, `times` are the
teacher's integer times, decreasing and excluding 0; the last step goes from the last time to the clean image. `noise`
[V, C, h, w] is the initial noise, x_T = sigma_T noise, and `fresh(step)` draws new noise of the same shape.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from gscfd.config import TeacherStage
from gscfd.distil.guidance import cfd, ddim_steps, vsd
from gscfd.distil.protocols import Learner
from gscfd.distil.schedule import anneal, time_index
from gscfd.errors import UserError
from gscfd.teachers.base import Teacher
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.schedules import Flow
from gscfd.types import Cameras

T_MAX, T_MIN = 0.98, 0.02


def falling_times(steps: int, timesteps: int) -> list[int]:
    """Returns equally spaced times from 0.98 T toward 0.02 T, the annealing of CFD's public 2D configuration."""
    return [time_index(anneal(i / steps, ((0.0, 0.0), (1.0, 1.0)), T_MIN, T_MAX), timesteps) for i in range(steps)]


def noise_level(teacher: Teacher, t: int) -> float:
    """Returns sigma / alpha, which is the clean flow's time and EDM's sigma."""
    alpha, sigma = teacher.alpha_sigma(t)
    return sigma / alpha


def noise_levels(teacher: Teacher, times: Sequence[int]) -> list[float]:
    """Returns the noise levels of the times, followed by 0."""
    return [*(noise_level(teacher, t) for t in times), 0.0]


def refreshed(noise: Tensor, fresh: Tensor, gamma: float) -> Tensor:
    """Returns sqrt(1 - gamma) noise + sqrt(gamma) fresh, which has the same variance (CFD Eq. 10)."""
    return math.sqrt(1 - gamma) * noise + math.sqrt(gamma) * fresh


def clean_flow(
    teacher: Teacher,
    noise: Tensor,
    fresh: Callable[[int], Tensor],
    times: Sequence[int],
    cameras: Cameras,
    *,
    gamma: float,
) -> Tensor:
    """Returns the image [V, C, h, w] at the end of the clean flow, by descent along `cfd` with Euler steps in
    sigma / alpha.

    gamma: share of fresh noise per step. 0 is the ODE, which is DDIM (CFD Eq. 8). Values in between are the SDE (CFD
    Eq. 18): each step starts at the raised level lambda / sqrt(1 - gamma) (CFD Alg. 3), without which the image would
    shrink; where the teacher's levels end, the share is what its last level leaves. 1 is SDS with decreasing times,
    which raises nothing.
    """
    z, levels = torch.zeros_like(noise), noise_levels(teacher, times)
    last = noise_level(teacher, teacher.timesteps - 1)
    for step, (t, target) in enumerate(zip(times, levels[1:], strict=True)):
        level = levels[step]
        if gamma == 1 and step > 0:
            noise = fresh(step)
        elif gamma > 0 and step > 0:
            level = min(level / math.sqrt(1 - gamma), last)
            noise, t = refreshed(noise, fresh(step), 1 - (levels[step] / level) ** 2), nearest_time(teacher, level)
        slope = cfd(teacher, z, noise, t, cameras) / noise_level(teacher, t)
        z = z + (target - level) * slope
    return z


def variational(
    teacher: Teacher,
    learner: Learner,
    noise: Tensor,
    fresh: Callable[[int], Tensor],
    times: Sequence[int],
    cameras: Cameras,
    generator: torch.Generator,
) -> Tensor:
    """Returns the image [V, C, h, w] of descent along `vsd`: the steps of `clean_flow` with fresh noise, each followed
    by a training step of the learner on the image. generator: for the learner's draws."""
    z, levels = torch.zeros_like(noise), noise_levels(teacher, times)
    for step, t in enumerate(times):
        eps = fresh(step) if step > 0 else noise
        z = z + (levels[step + 1] - levels[step]) / levels[step] * vsd(teacher, z, eps, t, cameras, learner=learner)
        learner.learn(z, cameras, generator)
    return z


def ddim(teacher: Teacher, x: Tensor, times: Sequence[int], cameras: Cameras) -> Tensor:
    """Returns the image [V, C, h, w] sampled by DDIM with eta = 0, in the noisy variable (Song et al. 2021, Eq. 12).
    For a flow, its steps are Euler steps along v = eps - x0.

    x: [V, C, h, w] noisy image at times[0].
    """
    x = ddim_steps(teacher, x, times, cameras)
    alpha, sigma = teacher.alpha_sigma(times[-1])
    return (x - sigma * teacher.predict_eps(x, times[-1], cameras)) / alpha


def edm(
    teacher: Teacher,
    noise: Tensor,
    fresh: Callable[[int], Tensor],
    times: Sequence[int],
    cameras: Cameras,
    *,
    churn: float,
) -> Tensor:
    """Returns the image [V, C, h, w] of EDM's stochastic sampler, in the clean variable (CFD Alg. 3, EDM Alg. 2).

    Each step first raises the noise level by the factor 1 + min(churn / steps, sqrt(2) - 1), rounded to one of the
    teacher's times, and then makes a Heun step to the next time. churn: 0 adds no fresh noise.
    """
    z, levels = torch.zeros_like(noise), noise_levels(teacher, times)
    factor = 1 + min(churn / len(times), math.sqrt(2) - 1)
    for step, (t, target) in enumerate(zip(times, levels[1:], strict=True)):
        back = nearest_time(teacher, factor * levels[step]) if churn > 0 else t
        level = noise_level(teacher, back)
        if level > levels[step]:
            noise = refreshed(noise, fresh(step), 1 - (levels[step] / level) ** 2)
        slope = cfd(teacher, z, noise, back, cameras) / level
        moved = z + (target - level) * slope
        if target > 0:
            end_slope = cfd(teacher, moved, noise, times[step + 1], cameras) / target
            moved = z + (target - level) * (slope + end_slope) / 2
        z = moved
    return z


def nearest_time(teacher: Teacher, level: float) -> int:
    """Returns the time with the nearest noise level; levels rise with time."""
    above = bisect_left(range(teacher.timesteps), level, key=lambda t: noise_level(teacher, t))
    near = range(max(above - 1, 0), min(above + 1, teacher.timesteps))
    return min(near, key=lambda t: abs(noise_level(teacher, t) - level))


FLOW_SHIFT = 3.0
"""Shift of a flow sampler's times toward noise (Esser et al. 2024, section 5.3.2)."""


def sample(teacher: GuidedTeacher, cameras: Cameras, *, steps: int, generator: torch.Generator) -> Tensor:
    """Returns the teacher's samples of the views [V, 3, H, W] in [0, 1], by DDIM, or Euler steps for a flow."""
    x = torch.randn(len(cameras), *teacher.latent_shape, generator=generator).to(cameras.viewmats.device)
    times = shifted_times if isinstance(teacher.schedule, Flow) else trailing_times
    return decoded(teacher, ddim(teacher, x, times(steps, teacher.timesteps), cameras))


def for_sampling(stage: TeacherStage, teacher: GuidedTeacher) -> TeacherStage:
    """Returns the stage with a guidance scale for samples, which distillation's would saturate."""
    return replace(stage, cfg=min(stage.scale, teacher.sampling_cfg))


def decoded(teacher: Teacher, z: Tensor) -> Tensor:
    """Returns the pictures [V, 3, H, W] in [0, 1] of the teacher's latents. Raises UserError if a value of either is
    not finite."""
    pictures = teacher.decode(z)
    for what, values in (("latents", z), ("pictures", pictures)):
        bad = int((~values.isfinite()).sum())
        if bad:
            raise UserError(
                f"teacher: expected {what} of finite numbers, got {bad} of {values.numel()} that are not; try --dtype "
                "float32, or download the teacher again"
            )
    return pictures


def trailing_times(steps: int, timesteps: int) -> list[int]:
    """Returns at most `steps` equally spaced times of a diffusion model, from the last one down (Lin et al. 2023,
    section 3.3)."""
    steps = min(steps, timesteps)
    return [round(timesteps * (1 - i / steps)) - 1 for i in range(steps)]


def shifted_times(steps: int, timesteps: int) -> list[int]:
    """Returns at most `steps` times of a flow model: equally spaced times shifted toward noise by FLOW_SHIFT, excluding
    pure noise, where eps does not determine x0."""
    even = np.linspace(1, 1 / steps, steps)
    shifted = FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)
    times: list[int] = np.unique(np.clip(np.round(shifted * timesteps), 1, timesteps - 1).astype(int))[::-1].tolist()
    return times
