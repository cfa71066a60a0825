"""Types shared by the noise kernels of all devices, and their C layout."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Nodes = Sequence[tuple[int, float]]
"""A cell's value as a weighted sum of its draws: (index of the draw, weight)."""


class _Geometry(ctypes.Structure):
    _fields_ = [
        ("render_width", ctypes.c_int32),
        ("render_height", ctypes.c_int32),
        ("latent_width", ctypes.c_int32),
        ("latent_height", ctypes.c_int32),
        ("pitch", ctypes.c_float),
        ("layer_depth", ctypes.c_float),
        ("opacity_threshold", ctypes.c_float),
        ("near", ctypes.c_float),
        ("normal_radius", ctypes.c_int32),
        ("smoothing", ctypes.c_int32),
    ]


@dataclass(kw_only=True)
class Grid:
    """Division of the surface into cells and of the image into latent pixels."""

    height: int
    """Latent rows."""
    width: int
    """Latent columns."""
    pitch: float
    """Spacing of the columns of cells, world units."""
    layer_depth: float
    """Extent of a cell along its column, world units; surfaces farther apart share no cell."""
    opacity_threshold: float = 0.5
    """Samples with opacity at or below this value show no surface."""
    near: float = 0.01
    """Samples at or before this depth are rejected, world units."""
    normal_radius: int = 1
    """Number of samples on each side of the center that contribute to its normal."""
    smoothing: int = 0
    """Rounds of depth smoothing."""
    radial: int = 0
    """0: cells form columns along the axes (`surface`). Otherwise cells are squares of the radial map, this many along
    each side of its two squares (`radial`)."""
    cells_per_pixel: int = 24
    """Capacity of the first table on CUDA, in cells per latent pixel; an object that fills the latents needs about
    20."""


@dataclass
class Surface:
    """Result of the kernel for a batch of views."""

    noise: Tensor
    """[V, C, h, w] n^-1/2 times the sum of the pixel's own cells; 0 for a pixel without cells."""
    counts: Tensor
    """[V, h, w] int32, n: number of cells that the pixel owns."""
    coverage: Tensor
    """[V, h, w] share of the pixel's render samples that show the surface, in [0, 1]."""


class Kernels(Protocol):
    """The module of one device's kernels, such as noise_kernels.cpu."""

    def surface(
        self,
        grid: Grid,
        depth: Tensor,
        opacity: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        *,
        channels: int,
        seed: int,
        stream: int,
        nodes: Nodes,
    ) -> Surface: ...

    def compose(self, surface: Surface, background: Tensor) -> Tensor: ...

    def white(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        seed: int,
        stream: int,
        key: int,
        nodes: Nodes,
        device: torch.device,
    ) -> Tensor: ...

    def fresh(
        self,
        channels: int,
        height: int,
        width: int,
        viewmats: Tensor,
        Ks: Tensor,
        *,
        seed: int,
        stream: int,
        nodes: Nodes,
    ) -> Tensor: ...


WHITE_ARGUMENTS = (
    ctypes.c_uint64,
    *[ctypes.c_uint32] * 2,
    *[ctypes.c_void_p] * 4,
    *[ctypes.c_int] * 3,
    ctypes.c_int64,
    ctypes.c_void_p,
)
SURFACE_ARGUMENTS = (
    *[ctypes.c_void_p] * 5,
    *[ctypes.c_int] * 2,
    ctypes.c_uint64,
    ctypes.c_uint32,
    *[ctypes.c_void_p] * 2,
    ctypes.c_int,
    *[ctypes.c_void_p] * 3,
)


def geometry_of(grid: Grid, depth: Tensor) -> _Geometry:
    """Returns the C struct for a grid and images [V, H, W]."""
    return _Geometry(
        depth.shape[2],
        depth.shape[1],
        grid.width,
        grid.height,
        grid.pitch,
        grid.layer_depth,
        grid.opacity_threshold,
        grid.near,
        grid.normal_radius,
        grid.smoothing,
    )


def node_arrays(nodes: Nodes) -> tuple[ctypes.Array[ctypes.c_uint32], ctypes.Array[ctypes.c_float]]:
    """Returns draws and weights as C arrays."""
    indices, weights = zip(*nodes, strict=True)
    return (ctypes.c_uint32 * len(nodes))(*indices), (ctypes.c_float * len(nodes))(*weights)
