"""The CPU rasterizer: autograd around the native code in csrc/. Callers check shapes, types and devices."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from gscfd import native
from gscfd.rasterize.kernels import max_alpha

# Types of the C structures of csrc/*.h, which are given as pairs of a type and the names of consecutive fields.
_POINTER, _LONG, _INT, _BOOL, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_bool, ctypes.c_float


def _structure(name: str, *groups: tuple[type, str]) -> type[ctypes.Structure]:
    fields = [(field, kind) for kind, names in groups for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_Projection = _structure(
    "Projection",
    (_LONG, "views count"),
    (_POINTER, "means quats scales opacities viewmats intrinsics"),
    (_INT, "width height"),
    (_FLOAT, "eps2d near_plane far_plane radius_clip"),
    (_BOOL, "ortho antialiased"),
    (_POINTER, "radii means2d factors depths conics compensations log_opacities"),
)
_ProjectionGradient = _structure(
    "ProjectionGradient", (_POINTER, "d_means2d d_factors d_depths d_compensations d_means d_quats d_scales")
)
_Harmonics = _structure(
    "Harmonics", (_LONG, "views count"), (_INT, "degree bases"), (_BOOL, "per_view"),
    (_POINTER, "means centers coefficients colors"),
)  # fmt: skip
_HarmonicsGradient = _structure("HarmonicsGradient", (_POINTER, "d_colors d_means d_coefficients"))
_Grid = _structure("Grid", (_INT, "width height tile tiles_x tiles_y"))
_Tiles = _structure(
    "Tiles", (_LONG, "views count"), (_Grid, "grid"), (_BOOL, "opacities_per_view"),
    (_POINTER, "log_opacities radii means2d factors depths tiles_per_splat first_slot"),
)  # fmt: skip
_Records = _structure(
    "Records", (_LONG, "views count"), (_INT, "channels color_channels"), (_BOOL, "colors_per_view opacities_per_view"),
    (_POINTER, "radii means2d factors depths log_opacities colors records"),
)  # fmt: skip
_Composite = _structure(
    "Composite", (_Grid, "grid"), (_LONG, "views"), (_INT, "channels"), (_BOOL, "expected"), (_FLOAT, "max_alpha"),
    (_POINTER, "records offsets entries colors alphas medians transmittance last"),
)  # fmt: skip
_CompositeGradient = _structure(
    "CompositeGradient", (_POINTER, "d_colors d_alphas"), (_BOOL, "absolute"), (_POINTER, "sums used")
)
_Reduction = _structure(
    "Reduction", (_LONG, "views count"), (_INT, "channels color_channels"),
    (_BOOL, "colors_per_view opacities_per_view absolute"),
    (_POINTER, "factors opacities tiles_per_splat first_slot sums used"),
    (_POINTER, "d_means2d d_factors d_depths d_opacities d_colors absolute_means2d"),
)  # fmt: skip


@functools.cache
def _native(name: str) -> Any:
    """Returns the native function gscfd_<name>. Its arguments are the number of threads and addresses of structures or
    arrays."""
    arguments: dict[str, list[type]] = {
        "tiles_finish": [_INT, *[_POINTER] * 4],
        "record_stride": [_INT],
        "sums_stride": [_INT],
        "project_backward": [_INT, _POINTER, _POINTER],
        "harmonics_backward": [_INT, _POINTER, _POINTER],
        "composite_backward": [_INT, _POINTER, _POINTER],
    }
    results = {"tiles_begin": _POINTER, "record_stride": _INT, "sums_stride": _INT}
    return native.function(f"gscfd_{name}", *arguments.get(name, [_INT, _POINTER]), restype=results.get(name))


def _run(name: str, *structures: ctypes.Structure) -> Any:
    return _native(name)(native.threads(), *map(ctypes.addressof, structures))


def _addresses(*tensors: Tensor | None) -> list[int | None]:
    """Returns addresses of contiguous tensors, which the caller must keep alive."""
    return [native.pointer(t) for t in tensors]


Context = Any
"""The context of an autograd function, to which its forward adds attributes."""


def _apply(function: type[Function], *arguments: object) -> Any:
    """Calls `function.apply`, which torch leaves without types."""
    apply: Callable[..., Any] = function.apply
    return apply(*arguments)


class _Project(Function):
    """Projects Gaussians to splats: means2d [V, N, 2], factors [V, N, 3], depths [V, N], compensations [V, N] (None
    unless antialiased); without gradient conics [V, N, 3], radii [V, N, 2] and log2 of the opacities, compensated if
    antialiased, [N] or [V, N]. Factors are the Cholesky factors of the conics (csrc/splat.h)."""

    @staticmethod
    def forward(
        ctx: Context,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        image: tuple[int, int],
        limits: tuple[float, float, float, float],
        modes: tuple[bool, bool],
    ) -> tuple[Tensor | None, ...]:
        views, count = viewmats.shape[0], means.shape[0]
        inputs = [t.contiguous() for t in (means, quats, scales, opacities, viewmats, Ks)]
        radii = means.new_empty(views, count, 2, dtype=torch.int32)
        means2d, factors = means.new_empty(views, count, 2), means.new_empty(views, count, 3)
        depths, conics = means.new_empty(views, count), means.new_empty(views, count, 3)
        antialiased = modes[1]
        compensations = means.new_empty(views, count) if antialiased else None
        log_opacities = means.new_empty((views, count) if antialiased else count)
        outputs = _addresses(radii, means2d, factors, depths, conics, compensations, log_opacities)
        _run("project", _Projection(views, count, *_addresses(*inputs), *image, *limits, *modes, *outputs))
        ctx.save_for_backward(*inputs, depths)
        ctx.settings = (*image, *limits, *modes)
        ctx.mark_non_differentiable(conics, radii, log_opacities)
        return means2d, factors, depths, compensations, conics, radii, log_opacities

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, depths = ctx.saved_tensors
        gradients = [torch.empty_like(t) for t in inputs[:3]]
        given = [None if t is None else t.contiguous() for t in grad_outputs[:4]]
        addresses = [*_addresses(*inputs), *ctx.settings, None, None, None, depths.data_ptr(), None, None, None]
        projection = _Projection(*depths.shape, *addresses)
        _run("project_backward", projection, _ProjectionGradient(*_addresses(*given, *gradients)))
        return *gradients, None, None, None, None, None, None


class _EvaluateHarmonics(Function):
    """Evaluates SH coefficients [N, K, 3] or [V, N, K, 3] to colors [V, N, 3]."""

    @staticmethod
    def forward(ctx: Context, means: Tensor, coefficients: Tensor, centers: Tensor, degree: int) -> Tensor:
        inputs = [t.contiguous() for t in (means, centers, coefficients)]
        colors = means.new_empty(centers.shape[0], *means.shape)
        ctx.sizes = (*colors.shape[:2], degree, coefficients.shape[-2], coefficients.ndim == 4)
        _run("harmonics", _Harmonics(*ctx.sizes, *_addresses(*inputs, colors)))
        ctx.save_for_backward(*inputs)
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, d_colors: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        means, centers, coefficients = ctx.saved_tensors
        d_colors, d_means, d_coefficients = (
            d_colors.contiguous(),
            torch.empty_like(means),
            torch.zeros_like(coefficients),
        )
        harmonics = _Harmonics(*ctx.sizes, *_addresses(means, centers, coefficients, None))
        _run("harmonics_backward", harmonics, _HarmonicsGradient(*_addresses(d_colors, d_means, d_coefficients)))
        return d_means, d_coefficients, None, None


@dataclass
class Tiles:
    """Lists of splats per tile, nearest first."""

    grid: ctypes.Structure
    """Sizes of the image and its tiles."""
    offsets: Tensor
    """[V * tiles + 1] int32: start of each tile's list."""
    entries: Tensor
    """[P, 2] int32: flat id (view * N + Gaussian), and index of the entry in splat order."""
    keys: Tensor
    """[P] int64: view, tile and bits of the depth of each entry (gsplat's isect_ids)."""
    tiles_per_gauss: Tensor
    """[V, N] int32."""
    first_slot: Tensor
    """[V * N + 1] int64: running sum of tiles_per_gauss."""


def _make_tiles(
    means2d: Tensor, factors: Tensor, depths: Tensor, radii: Tensor, log_opacities: Tensor, grid: ctypes.Structure
) -> Tiles:
    views, count = depths.shape
    tiles_per_gauss = depths.new_empty(views, count, dtype=torch.int32)
    first_slot = depths.new_empty(views * count + 1, dtype=torch.int64)
    arrays = _addresses(log_opacities, radii, means2d, factors, depths, tiles_per_gauss, first_slot)
    handle = _run("tiles_begin", _Tiles(views, count, grid, log_opacities.ndim == 2, *arrays))
    if first_slot[-1] > torch.iinfo(torch.int32).max:
        raise ValueError(
            f"scales: the splats touch {int(first_slot[-1])} tiles in all, more than 2^31; use fewer views"
        )
    offsets = depths.new_empty(views * grid.tiles_x * grid.tiles_y + 1, dtype=torch.int32)
    entries = depths.new_empty(int(first_slot[-1]), 2, dtype=torch.int32)
    keys = depths.new_empty(len(entries), dtype=torch.int64)
    _native("tiles_finish")(native.threads(), handle, *_addresses(offsets, entries, keys))
    return Tiles(grid, offsets, entries, keys, tiles_per_gauss, first_slot)


class _CompositeSplats(Function):
    """Composites splats to images: colors [V, H, W, C], alphas [V, H, W, 1], medians [V, H, W, 1]."""

    @staticmethod
    def forward(
        ctx: Context,
        means2d: Tensor,
        factors: Tensor,
        depths: Tensor,
        opacities: Tensor,
        colors: Tensor,
        radii: Tensor,
        log_opacities: Tensor,
        tiles: Tiles,
        depth_channel: bool,
        expected: bool,
        absgrad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        views, count = depths.shape
        channels, grid = colors.shape[-1] + depth_channel, tiles.grid
        colors = colors.contiguous()
        records = depths.new_empty(views * count, _native("record_stride")(channels))
        arrays = _addresses(radii, means2d, factors, depths, log_opacities, colors, records)
        per_view = (colors.ndim == 3, opacities.ndim == 2)
        _run("records", _Records(views, count, channels, colors.shape[-1], *per_view, *arrays))

        rendered = depths.new_empty(views, grid.height, grid.width, channels)
        alphas, medians = (depths.new_empty(views, grid.height, grid.width, 1) for _ in range(2))
        transmittance = depths.new_empty(tiles.offsets.numel() - 1, grid.tile**2)
        last = torch.empty_like(transmittance)
        arrays = _addresses(records, tiles.offsets, tiles.entries, rendered, alphas, medians, transmittance, last)
        _run("composite", _Composite(grid, views, channels, expected, max_alpha(), *arrays))
        ctx.save_for_backward(means2d, factors, opacities.contiguous(), records, rendered, alphas, transmittance, last)
        ctx.tiles, ctx.color_shape, ctx.expected, ctx.absgrad = tiles, colors.shape, expected, absgrad
        ctx.mark_non_differentiable(medians)
        return rendered, alphas, medians

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, d_rendered: Tensor, d_alphas: Tensor, _medians: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        means2d, factors, opacities, records, rendered, alphas, transmittance, last = ctx.saved_tensors
        tiles, (views, count), channels = ctx.tiles, means2d.shape[:2], rendered.shape[-1]
        d_rendered, d_alphas = d_rendered.contiguous(), d_alphas.contiguous()
        sums = means2d.new_empty(len(tiles.entries), _native("sums_stride")(channels))
        used = means2d.new_zeros(len(tiles.entries), dtype=torch.uint8)
        arrays = _addresses(records, tiles.offsets, tiles.entries, rendered, alphas, None, transmittance, last)
        composite = _Composite(tiles.grid, views, channels, ctx.expected, max_alpha(), *arrays)
        given = _addresses(d_rendered, d_alphas)
        _run("composite_backward", composite, _CompositeGradient(*given, ctx.absgrad, *_addresses(sums, used)))

        d_means2d, d_factors, d_opacities = (torch.empty_like(t) for t in (means2d, factors, opacities))
        d_depths = means2d.new_zeros(views, count)
        d_colors = means2d.new_empty(ctx.color_shape)
        absolute = torch.empty_like(means2d) if ctx.absgrad else None
        sizes = (views, count, channels, d_colors.shape[-1], d_colors.ndim == 3, opacities.ndim == 2, ctx.absgrad)
        arrays = _addresses(factors, opacities, tiles.tiles_per_gauss, tiles.first_slot, sums, used)
        outputs = _addresses(d_means2d, d_factors, d_depths, d_opacities, d_colors, absolute)
        _run("reduce", _Reduction(*sizes, *arrays, *outputs))
        if absolute is not None:
            means2d.absgrad = absolute
        return d_means2d, d_factors, d_depths, d_opacities, d_colors, None, None, None, None, None, None


def camera_centers(viewmats: Tensor) -> Tensor:
    """Returns the positions [V, 3] of cameras whose matrices are rigid."""
    return -(viewmats[:, :3, :3].transpose(1, 2) @ viewmats[:, :3, 3:])[..., 0]


def harmonics(means: Tensor, coefficients: Tensor, viewmats: Tensor, degree: int) -> Tensor:
    """Returns colors max(0, SH + 1/2) [V, N, 3] of coefficients [N, K, 3] or [V, N, K, 3] seen from the cameras."""
    colors: Tensor = _apply(_EvaluateHarmonics, means, coefficients, camera_centers(viewmats), degree)
    return colors


def _faster_tile_size(radii: Tensor) -> int:
    """Returns 16 if the mean radius of the visible splats exceeds 9 pixels, else 8 (measured:
    benchmarks/rasterize.md)."""
    visible = int((radii > 0).sum())
    return 16 if int(radii.sum()) > 9 * visible else 8


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
    tile_size: int | None,
    ortho: bool,
    antialiased: bool,
    depth_channel: bool,
    expected: bool,
    absgrad: bool,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Runs the native pipeline on checked float32 CPU tensors; see `rasterization` in __init__.py.

    colors: [N, D] or [V, N, D]; D may be 0 if depth_channel is set.
    """
    views, count = viewmats.shape[0], means.shape[0]
    limits = (eps2d, near_plane, far_plane, radius_clip)
    means2d, factors, depths, compensations, conics, radii, log_opacities = _apply(
        _Project, means, quats, scales, opacities, viewmats, Ks, (width, height), limits, (ortho, antialiased)
    )
    if antialiased:
        opacities = opacities * compensations
    tile_size = tile_size or _faster_tile_size(radii)
    grid = _Grid(width, height, tile_size, -(-width // tile_size), -(-height // tile_size))
    tiles = _make_tiles(means2d, factors, depths, radii, log_opacities, grid)
    images = (means2d, factors, depths, opacities, colors, radii, log_opacities, tiles)
    rendered, alphas, medians = _apply(_CompositeSplats, *images, depth_channel, expected, absgrad)
    info = {
        "batch_ids": None,
        "camera_ids": None,
        "gaussian_ids": None,
        "radii": radii,
        "means2d": means2d,
        "depths": depths,
        "conics": conics,
        "opacities": opacities.expand(views, count),
        "tile_width": grid.tiles_x,
        "tile_height": grid.tiles_y,
        "tiles_per_gauss": tiles.tiles_per_gauss,
        "isect_ids": tiles.keys,
        "flatten_ids": tiles.entries[:, 0],
        "isect_offsets": tiles.offsets[:-1].view(views, grid.tiles_y, grid.tiles_x),
        "width": width,
        "height": height,
        "tile_size": tile_size,
        "n_batches": 1,
        "n_cameras": views,
        "median_depth": medians,
    }
    return rendered, alphas, info
