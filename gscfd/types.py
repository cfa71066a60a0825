"""Values that pass between the parts of gscfd.

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

    `len(cameras)` is V; `cameras[i:j]` is a batch of the selected cameras. Raises ValueError for inconsistent shapes
    and for image sizes below 1 pixel.
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
        """Returns the same cameras with their matrices on another device."""
        return Cameras(moved(self.viewmats, device), moved(self.Ks, device), self.width, self.height)

    def resized(self, width: int, height: int) -> Cameras:
        """Returns the same cameras with width x height pixels over the same field of view."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0], device=self.Ks.device)
        return Cameras(self.viewmats, self.Ks * scale[:, None].to(self.Ks.dtype), width, height)


@dataclass
class Render:
    """Result of rasterizing V views of H x W pixels, by the alpha compositing of 3DGS (Kerbl et al. 2023)."""

    rgb: Tensor
    """[V, H, W, 3] color in [0, 1], premultiplied by opacity (black background)."""
    depth: Tensor
    """[V, H, W, 1] expected depth along the camera's z axis, in world units, divided by opacity; 0 where opacity is
    0."""
    opacity: Tensor
    """[V, H, W, 1] opacity in [0, 1]."""
    median_depth: Tensor | None = None
    """[V, H, W, 1] depth at which transmittance falls below one half, without gradient; 0 where it never does."""
    depth_variance: Tensor | None = None
    """[V, H, W, 1] variance of the depths of the Gaussians that a pixel shows, in square world units, with the
    compositing weights divided by opacity; 0 where opacity is 0. None unless asked for."""
    info: dict[str, Any] = field(default_factory=dict)
    """gsplat's dictionary of intermediate results: means2d, radii, conics, width, height, n_cameras, ..."""

    def to(self, device: torch.device | str) -> Render:
        """Returns the images on another device, without `info`."""
        median = None if self.median_depth is None else self.median_depth.to(device)
        variance = None if self.depth_variance is None else self.depth_variance.to(device)
        return Render(self.rgb.to(device), self.depth.to(device), self.opacity.to(device), median, variance)

    def over(self, background: Tensor) -> Tensor:
        """Returns the render [V, H, W, 3] composited over a background of colors in [0, 1] that broadcasts to its
        shape."""
        return self.rgb + (1.0 - self.opacity) * background
