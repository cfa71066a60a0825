"""Callables that the optimization loop receives, by what it expects of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from gscfd.types import Cameras, Render

if TYPE_CHECKING:
    from gscfd.gaussians import Gaussians
    from gscfd.teachers import Teacher


class Rasterize(Protocol):
    def __call__(self, gaussians: Gaussians, cameras: Cameras) -> Render: ...


class Noise(Protocol):
    """The noise of these views, [V, C, h, w], N(0, 1) in every view."""

    def __call__(self, cameras: Cameras, render: Render, step: int) -> Tensor: ...


class Guidance(Protocol):
    """z, noise and the returned gradient: [V, C, h, w]; t: the teacher's integer time."""

    def __call__(self, teacher: Teacher, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor: ...


class Method(Protocol):
    """The time of a step, as a fraction of T in [0, 1), and which way to go there.

    done: share of the stage's steps that are done, in [0, 1). generator: the stage's own; a method has no other state,
    but for what its `Learner` has.
    """

    def __call__(self, done: float, generator: torch.Generator) -> tuple[float, Guidance]: ...


class Kept(Protocol):
    """What a stage keeps beside the Gaussians. Its tensors are part of the stage's state."""

    name: str
    """First part of the names of its tensors."""
    remedy: str
    """Setting of a stage to lower if one of them is not finite."""

    def tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on, detached, not copied."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Become a copy of what had these tensors."""
        ...


class Learner(Kept, Protocol):
    """What a method trains beside the Gaussians."""

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras) -> Tensor:
        """[V, C, h, w] the noise in x_t, as far as it is learned; without gradient."""
        ...

    def learn(self, z: Tensor, cameras: Cameras, generator: torch.Generator) -> None:
        """One step of training, on what the teacher sees of the renders [V, C, h, w]. generator: the stage's own."""
        ...
