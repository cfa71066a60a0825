"""Score distillation: which way to move what the teacher sees. No gradient flows through the teacher.

Every function is `(teacher, z, noise, t, cameras) -> grad`: z, noise and grad [V, C, h, w], t the teacher's integer
time, shared by the views. `distillation_loss` turns grad into a loss for the optimiser.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


def distillation_loss(z: Tensor, grad: Tensor) -> Tensor:
    """1/2 |z - sg(z - grad)|^2 / V: its gradient by z is grad / V (METHOD section 2)."""
    return 0.5 * (z - (z - grad).detach()).square().sum() / len(z)
