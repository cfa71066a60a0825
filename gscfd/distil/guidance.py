"""Score distillation: which way to move what the teacher sees. No gradient flows through the teacher.

Every function is `(teacher, z, noise, t, cameras) -> grad`: z, noise and grad [V, C, h, w], t the teacher's integer
time, shared by the views; what a method needs besides is named after them, to be bound. `distillation_loss` turns grad
into a loss for the optimizer. docs/methods.md has them side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gscfd.distil.protocols import Learner
from gscfd.teachers import Teacher
from gscfd.types import Cameras


@torch.no_grad()
def cfd(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
    """(sigma / alpha)(eps_phi(alpha z + sigma eps) - eps) = z - z0_hat: the clean flow's direction (CFD Eq. 9).

    What makes it CFD is the noise, eps(theta, c), which agrees on the object's surface between views, and the
    annealed time. With fresh noise it is SDS (CFD Table 1).
    """
    alpha, sigma = teacher.alpha_sigma(t)
    x_t = alpha * z + sigma * noise
    return (sigma / alpha) * (teacher.predict_eps(x_t, t, cameras) - noise)


def sds(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
    """`cfd` with noise that is fresh in every step (Poole et al. 2022, Eq. 3; CFD Table 1)."""
    return cfd(teacher, z, noise, t, cameras)


def fsd(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
    """`cfd` with noise that is a function of the camera alone, eps(c), drawn at the start (FSD Eq. 15)."""
    return cfd(teacher, z, noise, t, cameras)


@torch.no_grad()
def vsd(teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras, *, learner: Learner) -> Tensor:
    """(sigma / alpha)(eps_phi(x_t, y) - eps_lora(x_t, camera, y)), eps_lora the learner's, without classifier-free
    guidance: the score of what the renders look like (Wang et al. 2023, section 3.2; CFD Table 1)."""
    alpha, sigma = teacher.alpha_sigma(t)
    x_t = alpha * z + sigma * noise
    return (sigma / alpha) * (teacher.predict_eps(x_t, t, cameras) - learner.predict_eps(x_t, t, cameras))


@torch.no_grad()
def cds(
    teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras, *, target: int, cfg: float | None = None
) -> Tensor:
    """(sigma / alpha)(eps_phi(x_t, t) - eps_phi(x_target, target)), x_target one Euler step of the ODE from x_t: the
    difference of the two denoised pictures, up to the weight lambda (C3D Eq. 10-11).

    The sign is that of the authors' program. Eq. 10 with the Jacobian of its first term left out would have the other
    one, which leads away from the data (docs/methods.md). target: t2 < t, integer. cfg: in place of the prompt's.
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
    """(sigma / alpha)(eps_phi(x_t, y) - eps_phi(x_s, empty)), s = t - delta_t, x_s and x_t by unconditional DDIM
    inversion of z (Liang et al. 2023; CFD Table 1).

    xs_delta_t, xs_inv_steps: see `inverted`. noise: is what the inversion starts with.
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
    """`ism` with the text in the inversion: (sigma / alpha)(eps_phi(x_t, y) - eps(x_s, y)), the second one without
    classifier-free guidance (Lukoianov et al. 2024; CFD appendix H.1)."""
    s = max(t - delta_t, 0)
    x_s = inverted(teacher, z, noise, s, cameras, cfg=1.0, stride=xs_delta_t, steps=xs_inv_steps)
    return interval_score(teacher, x_s, s, t, cameras, cfg=1.0)


def interval_score(teacher: Teacher, x_s: Tensor, s: int, t: int, cameras: Cameras, *, cfg: float) -> Tensor:
    """(sigma_t / alpha_t)(eps_phi(x_t) - eps(x_s)), x_t one step of the inversion from x_s. cfg: of eps(x_s)."""
    alpha, sigma = teacher.alpha_sigma(t)
    eps_s = teacher.predict_eps(x_s, s, cameras, cfg)
    x_t = ddim_step(teacher, x_s, eps_s, s, t)
    return (sigma / alpha) * (teacher.predict_eps(x_t, t, cameras) - eps_s)


def inverted(
    teacher: Teacher, z: Tensor, noise: Tensor, s: int, cameras: Cameras, *, cfg: float, stride: int, steps: int
) -> Tensor:
    """[V, C, h, w] x_s by DDIM inversion of z: at most `steps` steps of at most `stride` times each, the last shorter.

    They start at max(s - steps stride, 0), from z with that time's share of the noise.
    """
    now = max(s - steps * stride, 0)
    alpha, sigma = teacher.alpha_sigma(now)
    x = alpha * z + sigma * noise
    while now < s:
        later = min(now + stride, s)
        x = ddim_step(teacher, x, teacher.predict_eps(x, now, cameras, cfg), now, later)
        now = later
    return x


def ddim_step(teacher: Teacher, x: Tensor, eps: Tensor, t: int, other: int) -> Tensor:
    """alpha' z0_hat + sigma' eps: an Euler step of the probability-flow ODE from t to another time, either way (Song et
    al. 2021, Eq. 12 with eta = 0)."""
    (alpha, sigma), (other_alpha, other_sigma) = teacher.alpha_sigma(t), teacher.alpha_sigma(other)
    return other_alpha * (x - sigma * eps) / alpha + other_sigma * eps


def distillation_loss(z: Tensor, grad: Tensor) -> Tensor:
    """1/2 |z - sg(z - grad)|^2 / V: its gradient by z is grad / V, the mean over views of CFD Eq. 9."""
    return 0.5 * (z - (z - grad).detach()).square().sum() / len(z)
