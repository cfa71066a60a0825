"""Score distillation: the gradient for the teacher's input z. No gradient flows through the teacher.

Every function has the form `(teacher, z, noise, t, cameras) -> grad`: z, noise and grad are [V, C, h, w], and t is the
teacher's integer time, shared by the views. Additional keyword arguments must be bound first. `distillation_loss` turns
grad into a loss. docs/methods.md compares the methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gscfd.config import Weight
from gscfd.distil.protocols import Guidance, Learner
from gscfd.teachers.base import Teacher
from gscfd.types import Cameras

DSD_STEPS = 10
"""Steps of DSD's whole trajectory (its code)."""


@torch.no_grad()
def cfd(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
    """Returns (sigma / alpha)(eps_phi(alpha z + sigma eps) - eps) = z - z0_hat, the clean flow's direction (CFD Eq. 9).

    CFD uses noise eps(theta, c) that is consistent between views on the object's surface, and annealed times. With
    fresh noise, this is SDS (CFD Table 1).
    """
    alpha, sigma = teacher.alpha_sigma(t)
    x_t = alpha * z + sigma * noise
    return (sigma / alpha) * (teacher.predict_eps(x_t, t, cameras) - noise)


def sds(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
    """Returns `cfd`'s gradient, for noise that is fresh at every step (Poole et al. 2022, Eq. 3; CFD Table 1)."""
    return cfd(teacher, z, noise, t, cameras)


def fsd(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
    """Returns `cfd`'s gradient, for noise eps(c) that depends only on the camera and is drawn once (FSD Eq. 15)."""
    return cfd(teacher, z, noise, t, cameras)


@torch.no_grad()
def vsd(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras, *, learner: Learner) -> Tensor:
    """Returns (sigma / alpha)(eps_phi(x_t, y) - eps_lora(x_t, camera, y)), where eps_lora is the learner's prediction
    without classifier-free guidance, the score of the renders (Wang et al. 2023, section 3.2; CFD Table 1)."""
    alpha, sigma = teacher.alpha_sigma(t)
    x_t = alpha * z + sigma * noise
    return (sigma / alpha) * (teacher.predict_eps(x_t, t, cameras) - learner.predict_eps(x_t, t, cameras))


@torch.no_grad()
def cds(
    teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras, *, target: int, cfg: float | None = None
) -> Tensor:
    """Returns (sigma / alpha)(eps_phi(x_t, t) - eps_phi(x_target, target)), where x_target is one Euler step of the ODE
    from x_t: the difference of the two denoised images, up to the weight lambda (C3D Eq. 10-11).

    The sign is that of the authors' code. Eq. 10 without the Jacobian of its first term has the opposite sign, which
    leads away from the data (docs/methods.md). target: integer time t2 < t. cfg: guidance scale that replaces the
    prompt's.
    """
    alpha, sigma = teacher.alpha_sigma(t)
    x_t = alpha * z + sigma * noise
    eps = teacher.predict_eps(x_t, t, cameras, cfg)
    x_target = ddim_step(teacher, x_t, eps, t, target)
    return (sigma / alpha) * (eps - teacher.predict_eps(x_target, target, cameras, cfg))


@torch.no_grad()
def ism(
    teacher: Teacher,
    z: Tensor,
    noise: Tensor,
    t: int,
    cameras: Cameras,
    *,
    delta_t: int,
    xs_delta_t: int,
    xs_inv_steps: int,
) -> Tensor:
    """Returns (sigma / alpha)(eps_phi(x_t, y) - eps_phi(x_s, empty)), where s = t - delta_t, and x_s and x_t come from
    unconditional DDIM inversion of z (Liang et al. 2023; CFD Table 1).

    noise: initial noise of the inversion. delta_t: t - s, integer. xs_delta_t, xs_inv_steps: `stride` and `steps` of
    `inverted`.
    """
    s = max(t - delta_t, 0)
    x_s = inverted(teacher, z, noise, s, cameras, cfg=0.0, stride=xs_delta_t, steps=xs_inv_steps)
    return interval_score(teacher, x_s, s, t, cameras, cfg=0.0)


@torch.no_grad()
def sdi(
    teacher: Teacher,
    z: Tensor,
    noise: Tensor,
    t: int,
    cameras: Cameras,
    *,
    delta_t: int,
    xs_delta_t: int,
    xs_inv_steps: int,
) -> Tensor:
    """Returns `ism`'s gradient with the text in the inversion: (sigma / alpha)(eps_phi(x_t, y) - eps(x_s, y)), the
    second prediction without classifier-free guidance (Lukoianov et al. 2024; CFD appendix H.1)."""
    s = max(t - delta_t, 0)
    x_s = inverted(teacher, z, noise, s, cameras, cfg=1.0, stride=xs_delta_t, steps=xs_inv_steps)
    return interval_score(teacher, x_s, s, t, cameras, cfg=1.0)


@torch.no_grad()
def dsd(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras, *, before: int) -> Tensor:
    """Returns (sigma / alpha)(eps_phi(alpha z + sigma e, t) - eps_text(alpha' z + sigma' e, before)), where e is the
    teacher's prediction at the time `before` on the ODE trajectory that starts at the noise, and eps_text has no
    classifier-free guidance (Xu et al. 2024, DSD, and its code).

    It replaces the denoised image of that trajectory, which moves by d z0_hat = -(sigma / alpha) d eps_phi (CFD Eq.
    43), with z. noise: of the seed, equal in every step. before: integer time of at least t.
    """
    eps = teacher.predict_eps(trajectory(teacher, noise, before, cameras, DSD_STEPS), before, cameras)
    (alpha, sigma), (before_alpha, before_sigma) = teacher.alpha_sigma(t), teacher.alpha_sigma(before)
    last = teacher.predict_eps(before_alpha * z + before_sigma * eps, before, cameras, 1.0)
    return (sigma / alpha) * (teacher.predict_eps(alpha * z + sigma * eps, t, cameras) - last)


def trajectory(teacher: Teacher, x: Tensor, t: int, cameras: Cameras, steps: int) -> Tensor:
    """Returns x at the time t of DDIM, whose `steps` equal steps would lead from x at the last time to time 0."""
    last = teacher.timesteps - 1
    times = [now for i in range(steps) if (now := last - i * last // steps) > t]
    return ddim_steps(teacher, x, [*times, t], cameras)


def interval_score(teacher: Teacher, x_s: Tensor, s: int, t: int, cameras: Cameras, *, cfg: float) -> Tensor:
    """Returns (sigma_t / alpha_t)(eps_phi(x_t) - eps(x_s)), where x_t is one inversion step from x_s.

    cfg: guidance scale of eps(x_s).
    """
    alpha, sigma = teacher.alpha_sigma(t)
    eps_s = teacher.predict_eps(x_s, s, cameras, cfg)
    x_t = ddim_step(teacher, x_s, eps_s, s, t)
    return (sigma / alpha) * (teacher.predict_eps(x_t, t, cameras) - eps_s)


def inverted(
    teacher: Teacher, z: Tensor, noise: Tensor, s: int, cameras: Cameras, *, cfg: float, stride: int, steps: int
) -> Tensor:
    """Returns x_s [V, C, h, w] by DDIM inversion of z, in at most `steps` steps over at most `stride` times each.

    The inversion starts at max(s - steps stride, 0), from z with that time's share of the noise; its last step may be
    shorter. cfg: guidance scale of the predictions.
    """
    now = max(s - steps * stride, 0)
    alpha, sigma = teacher.alpha_sigma(now)
    return ddim_steps(teacher, alpha * z + sigma * noise, [*range(now, s, stride), s], cameras, cfg)


def ddim_steps(teacher: Teacher, x: Tensor, times: Sequence[int], cameras: Cameras, cfg: float | None = None) -> Tensor:
    """Returns x [V, C, h, w] at the last of the times, by DDIM steps from the first. cfg: guidance scale, if not the
    teacher's own."""
    for now, later in pairwise(times):
        x = ddim_step(teacher, x, teacher.predict_eps(x, now, cameras, cfg), now, later)
    return x


def ddim_step(teacher: Teacher, x: Tensor, eps: Tensor, t: int, other: int) -> Tensor:
    """Returns alpha' z0_hat + sigma' eps, an Euler step of the probability-flow ODE from t to an earlier or later time
    (Song et al. 2021, Eq. 12 with eta = 0)."""
    (alpha, sigma), (other_alpha, other_sigma) = teacher.alpha_sigma(t), teacher.alpha_sigma(other)
    return other_alpha * (x - sigma * eps) / alpha + other_sigma * eps


def weighted(way: Guidance, weight: Weight) -> Guidance:
    """Returns the guidance with another weight of the difference of noises than sigma / alpha."""
    if weight == "ratio":
        return way

    def guide(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
        alpha, sigma = teacher.alpha_sigma(t)
        # At time 0 of a flow there is no noise, and no gradient.
        factor = {"uniform": alpha / sigma if sigma > 0 else 0.0, "variance": alpha * sigma}[weight]
        return factor * way(teacher, z, noise, t, cameras)

    return guide


def clipped(way: Guidance, limit: float) -> Guidance:
    """Returns the guidance with every entry of the gradient clipped to [-limit, limit] (Consistent3D's code)."""

    def guide(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
        return way(teacher, z, noise, t, cameras).clamp(-limit, limit)

    return guide


def distillation_loss(z: Tensor, grad: Tensor) -> Tensor:
    """Returns 1/2 |z - sg(z - grad)|^2 / V, whose gradient with respect to z is grad / V: CFD Eq. 9, averaged over the
    views."""
    return 0.5 * (z - (z - grad).detach()).square().sum() / len(z)
