"""Values and callables that pass between the parts of gscfd, and nothing else.

Shapes: V views, H x W pixels, h x w latent cells, C channels, N Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from gscfd.late import moved

if TYPE_CHECKING:
    from gscfd.gaussians import Gaussians
    from gscfd.teachers import Teacher


@dataclass
class Cameras:
    """A batch of V pinhole cameras in the OpenCV convention (x right, y down, z forward), in a world with z up.

    `len(cameras)` is V; `cameras[i:j]` are some of them. Raises ValueError for shapes and sizes that do not fit.
    """

    viewmats: Tensor
    """[V, 4, 4] world-to-camera, as in gsplat."""
    Ks: Tensor
    """[V, 3, 3] intrinsics in pixels."""
    width: int
    """Image width in pixels."""
    height: int
    """Image height in pixels."""

    def __post_init__(self) -> None:
        views = self.viewmats.shape[0] if self.viewmats.ndim == 3 else -1
        if tuple(self.viewmats.shape) != (views, 4, 4):
            raise ValueError(f"viewmats: expected [V, 4, 4], got {list(self.viewmats.shape)}")
        if tuple(self.Ks.shape) != (views, 3, 3):
            raise ValueError(f"Ks: expected [{views}, 3, 3] to match viewmats, got {list(self.Ks.shape)}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"width, height: expected at least 1 pixel, got {self.width}, {self.height}")

    def __len__(self) -> int:
        return self.viewmats.shape[0]

    def __getitem__(self, index: slice) -> Cameras:
        return Cameras(self.viewmats[index], self.Ks[index], self.width, self.height)

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras with their matrices on another device."""
        return Cameras(moved(self.viewmats, device), moved(self.Ks, device), self.width, self.height)

    def resized(self, width: int, height: int) -> Cameras:
        """The same cameras with another grid of width x height pixels over the same field of view."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0], device=self.Ks.device)
        return Cameras(self.viewmats, self.Ks * scale[:, None].to(self.Ks.dtype), width, height)


@dataclass
class Render:
    """What the rasteriser returns for V views of H x W pixels: alpha compositing of 3DGS (Kerbl et al. 2023)."""

    rgb: Tensor
    """[V, H, W, 3] colour in [0, 1], premultiplied by opacity (black background)."""
    depth: Tensor
    """[V, H, W, 1] expected depth along the camera's z axis, world units, over opacity; 0 where opacity is 0."""
    opacity: Tensor
    """[V, H, W, 1] in [0, 1]."""
    median_depth: Tensor | None = None
    """[V, H, W, 1] depth at which transmittance falls below one half; 0 where it never does. No gradient."""
    info: dict[str, Any] = field(default_factory=dict)
    """gsplat's dictionary: means2d, radii, conics, width, height, n_cameras, ..."""

    def to(self, device: torch.device | str) -> Render:
        """A copy of the images on another device; `info` stays behind."""
        median = None if self.median_depth is None else self.median_depth.to(device)
        return Render(self.rgb.to(device), self.depth.to(device), self.opacity.to(device), median)

    def over(self, background: Tensor) -> Tensor:
        """[V, H, W, 3] the render composited over background, colours in [0, 1] that broadcast to [V, H, W, 3]."""
        return self.rgb + (1.0 - self.opacity) * background


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


class Learner(Protocol):
    """What a method trains beside the Gaussians. Its tensors are part of the stage's state."""

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras) -> Tensor:
        """[V, C, h, w] the noise in x_t, as far as it is learnt; without gradient."""
        ...

    def learn(self, z: Tensor, cameras: Cameras, generator: torch.Generator) -> None:
        """One step of training, on what the teacher sees of the renders [V, C, h, w]. generator: the stage's own."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on, detached, not copied."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Become a copy of what had these tensors."""
        ...
