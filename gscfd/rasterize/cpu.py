"""The CPU rasteriser: autograd around the native code in csrc/. Callers have checked shapes, types and devices."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx

from gscfd import native

_Pointer = ctypes.c_void_p


class _Projection(ctypes.Structure):
    """csrc/project.h: Projection."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("views", "count")],
        *[(name, _Pointer) for name in ("means", "quats", "scales", "opacities", "viewmats", "intrinsics")],
        *[(name, ctypes.c_int) for name in ("width", "height")],
        *[(name, ctypes.c_float) for name in ("eps2d", "near_plane", "far_plane", "radius_clip")],
        *[(name, _Pointer) for name in ("radii", "means2d", "factors", "depths", "conics")],
    ]


class _Grid(ctypes.Structure):
    """csrc/splat.h: Grid."""

    _fields_ = [(name, ctypes.c_int) for name in ("width", "height", "tile", "tiles_x", "tiles_y")]


class _Composite(ctypes.Structure):
    """csrc/composite.h: Composite."""

    _fields_ = [
        ("grid", _Grid),
        ("views", ctypes.c_int64),
        ("channels", ctypes.c_int),
        ("expected", ctypes.c_bool),
        *[(name, _Pointer) for name in ("records", "offsets", "ids")],
        *[(name, _Pointer) for name in ("colours", "alphas", "medians", "transmittance", "last")],
    ]


@functools.cache
def _library() -> dict[str, Any]:
    """The native functions with their signatures declared."""
    number, pointer = ctypes.c_int, _Pointer
    size = ctypes.c_int64
    return {
        "project": native.function("gscfd_project", number, pointer),
        "tiles_begin": native.function(
            "gscfd_tiles_begin", number, size, size, number, number, number, *[pointer] * 7, restype=pointer
        ),
        "tiles_finish": native.function("gscfd_tiles_finish", number, *[pointer] * 4),
        "record_stride": native.function("gscfd_record_stride", number, restype=number),
        "records": native.function("gscfd_records", number, size, size, number, number, number, *[pointer] * 7),
        "composite": native.function("gscfd_composite", number, pointer),
    }


def _call(name: str, *arguments: Any) -> Any:
    """Call a native function; tensors become pointers, structures go by address."""
    converted = [
        a.data_ptr() if isinstance(a, Tensor) else ctypes.addressof(a) if isinstance(a, ctypes.Structure) else a
        for a in arguments
    ]
    return _library()[name](native.threads(), *converted)


class _Project(Function):
    """Gaussians to splats: (means2d [V, N, 2], factors [V, N, 3], depths [V, N], conics [V, N, 3], radii [V, N, 2])."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        image: tuple[int, int],
        limits: tuple[float, float, float, float],
    ) -> tuple[Tensor, ...]:
        views, count = viewmats.shape[0], means.shape[0]
        inputs = [t.contiguous() for t in (means, quats, scales, opacities, viewmats, Ks)]
        radii = torch.empty(views, count, 2, dtype=torch.int32)
        means2d, factors = torch.empty(views, count, 2), torch.empty(views, count, 3)
        depths, conics = torch.empty(views, count), torch.empty(views, count, 3)
        outputs = [t.data_ptr() for t in (radii, means2d, factors, depths, conics)]
        _call("project", _Projection(views, count, *[t.data_ptr() for t in inputs], *image, *limits, *outputs))
        ctx.mark_non_differentiable(conics, radii)
        return means2d, factors, depths, conics, radii


class Tiles:
    """Lists of splats per tile, nearest first.

    offsets: [V * tiles + 1] int32, where the list of each tile starts. flatten_ids: [P] int32, view * N + Gaussian.
    slots: [P] int32, the place of each entry when entries are ordered by splat. tiles_per_gauss: [V, N] int32.
    """

    def __init__(
        self, means2d: Tensor, factors: Tensor, depths: Tensor, radii: Tensor, opacities: Tensor, width: int,
        height: int, tile_size: int,
    ):  # fmt: skip
        views, count = depths.shape
        self.width, self.height, self.tile_size = width, height, tile_size
        self.tiles_x, self.tiles_y = -(-width // tile_size), -(-height // tile_size)
        self.tiles_per_gauss = torch.empty(views, count, dtype=torch.int32)
        self.offsets = torch.empty(views * self.tiles_x * self.tiles_y + 1, dtype=torch.int32)
        pairs = ctypes.c_int64()
        handle = _call(
            "tiles_begin", views, count, width, height, tile_size, opacities, radii, means2d, factors, depths,
            self.tiles_per_gauss, ctypes.addressof(pairs),
        )  # fmt: skip
        self.flatten_ids = torch.empty(pairs.value, dtype=torch.int32)
        self.slots = torch.empty(pairs.value, dtype=torch.int32)
        _call("tiles_finish", handle, self.offsets, self.flatten_ids, self.slots)


class _CompositeSplats(Function):
    """Splats to images: (colours [V, H, W, C], alphas [V, H, W, 1], medians [V, H, W, 1])."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        means2d: Tensor,
        factors: Tensor,
        depths: Tensor,
        opacities: Tensor,
        colors: Tensor,
        radii: Tensor,
        tiles: Tiles,
        depth_channel: bool,
        expected: bool,
        absgrad: bool,
    ) -> tuple[Tensor, ...]:
        views, count = depths.shape
        channels = colors.shape[-1] + depth_channel
        records = torch.empty(views * count, _library()["record_stride"](channels))
        _call(
            "records", views, count, colors.shape[-1], colors.ndim == 3, depth_channel, radii, means2d, factors, depths,
            opacities.contiguous(), colors.contiguous(), records,
        )  # fmt: skip
        colours = torch.empty(views, tiles.height, tiles.width, channels)
        alphas = torch.empty(views, tiles.height, tiles.width, 1)
        medians = torch.empty_like(alphas)
        transmittance = torch.empty(views * tiles.tiles_x * tiles.tiles_y, tiles.tile_size**2)
        last = torch.empty_like(transmittance)
        arrays = (records, tiles.offsets, tiles.flatten_ids, colours, alphas, medians, transmittance, last)
        grid = _Grid(tiles.width, tiles.height, tiles.tile_size, tiles.tiles_x, tiles.tiles_y)
        _call("composite", _Composite(grid, views, channels, expected, *[t.data_ptr() for t in arrays]))
        ctx.mark_non_differentiable(medians)
        return colours, alphas, medians


def rasterize_splats(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    tile_size: int,
    depth_channel: bool,
    expected: bool,
    absgrad: bool,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The native pipeline on checked float32 CPU tensors; `rasterization` in __init__.py says what it means.

    colors: [N, D] or [V, N, D], D may be 0 if depth_channel is set.
    """
    views, count = viewmats.shape[0], means.shape[0]
    limits = (eps2d, near_plane, far_plane, radius_clip)
    means2d, factors, depths, conics, radii = _Project.apply(
        means, quats, scales, opacities, viewmats, Ks, (width, height), limits
    )  # pyright: ignore
    tiles = Tiles(means2d, factors, depths, radii, opacities.contiguous(), width, height, tile_size)
    colours, alphas, medians = _CompositeSplats.apply(
        means2d, factors, depths, opacities, colors, radii, tiles, depth_channel, expected, absgrad
    )  # pyright: ignore
    info = {
        "batch_ids": None,
        "camera_ids": None,
        "gaussian_ids": None,
        "radii": radii,
        "means2d": means2d,
        "depths": depths,
        "conics": conics,
        "opacities": opacities.expand(views, count),
        "tile_width": tiles.tiles_x,
        "tile_height": tiles.tiles_y,
        "tiles_per_gauss": tiles.tiles_per_gauss,
        "flatten_ids": tiles.flatten_ids,
        "isect_offsets": tiles.offsets[:-1].view(views, tiles.tiles_y, tiles.tiles_x),
        "width": width,
        "height": height,
        "tile_size": tile_size,
        "n_batches": 1,
        "n_cameras": views,
        "median_depth": medians,
    }
    return colours, alphas, info
