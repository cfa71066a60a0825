"""Interfaces of the parts that the optimization loop receives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from gscfd.rasterize import EPS2D
from gscfd.types import Cameras, Render

if TYPE_CHECKING:
    from gscfd.gaussians import Gaussians
    from gscfd.teachers.base import Teacher


class Rasterize(Protocol):
    """Renders the Gaussians from V cameras, differentiably. eps2d, depth_variance: as in
    `gscfd.gaussians.rasterize`."""

    def __call__(
        self, gaussians: Gaussians, cameras: Cameras, *, eps2d: float = EPS2D, depth_variance: bool = False
    ) -> Render: ...


class Noise(Protocol):
    """Returns the noise [V, C, h, w] for the views, N(0, 1) in each view."""

    def __call__(self, cameras: Cameras, render: Render, step: int) -> Tensor: ...


class Guidance(Protocol):
    """Returns the gradient for z at the teacher's integer time t. z, noise and the gradient are [V, C, h, w]."""

    def __call__(self, teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor: ...


class Method(Protocol):
    """Returns the diffusion time of a step, as a fraction of T in [0, 1), and the guidance to apply.

    done: share of the stage's steps done, in [0, 1). generator: the stage's generator, the only state of a method
    besides its `Learner`.
    """

    def __call__(self, done: float, generator: torch.Generator) -> tuple[float, Guidance]: ...


class Kept(Protocol):
    """State of a stage beside the Gaussians. Its tensors are part of the stage's state."""

    name: str
    """Prefix of its tensors' names."""
    remedy: str
    """Setting of the stage to lower if one of its tensors is not finite."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors on which the next step depends, detached but not copied."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores the state from the result of `tensors`, copying it."""
        ...


class Learner(Kept, Protocol):
    """A network that a method trains beside the Gaussians."""

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras) -> Tensor:
        """Returns the predicted noise [V, C, h, w] in x_t, without gradient."""
        ...

    def learn(self, z: Tensor, cameras: Cameras, generator: torch.Generator) -> None:
        """Makes one training step on z [V, C, h, w], the renders as the teacher sees them. generator: the stage's."""
        ...
