"""Values and callables that pass between the parts of gscfd, and nothing else.

Shapes: V views, H x W pixels, h x w latent cells, C channels, N Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gscfd.deferred import moved


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
    """What the rasterizer returns for V views of H x W pixels: alpha compositing of 3DGS (Kerbl et al. 2023)."""

    rgb: Tensor
    """[V, H, W, 3] color in [0, 1], premultiplied by opacity (black background)."""
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
        """[V, H, W, 3] the render composited over background, colors in [0, 1] that broadcast to [V, H, W, 3]."""
        return self.rgb + (1.0 - self.opacity) * background
