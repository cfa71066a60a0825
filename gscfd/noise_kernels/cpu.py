"""Calls of the compiled CPU noise (csrc/): handles only shapes, types and memory."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from gscfd import native
from gscfd.noise_kernels.cells import SURFACE_ARGUMENTS, WHITE_ARGUMENTS, Grid, Nodes, Surface, geometry_of, node_arrays


def surface(
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
) -> Surface:
    """Returns the foreground noise of a batch of views.

    depth, opacity: [V, H, W]; viewmats: [V, 4, 4]; Ks: [V, 3, 3] for the H x W image; all on the CPU. Raises
    MemoryError if memory runs out.
    """
    views, geometry = len(depth), geometry_of(grid, depth)
    depth, opacity, viewmats, Ks = (t.detach().float().contiguous() for t in (depth, opacity, viewmats, Ks))
    noise = torch.empty(views, channels, grid.height, grid.width)
    counts = torch.empty(views, grid.height, grid.width, dtype=torch.int32)
    coverage = torch.empty(views, grid.height, grid.width)
    call = native.function(
        "gscfd_noise_surface",
        ctypes.c_void_p,
        ctypes.c_int,
        *SURFACE_ARGUMENTS[1:],
        ctypes.c_int,
        restype=ctypes.c_int,
    )
    failed = call(
        ctypes.addressof(geometry),
        grid.radial,
        *map(native.pointer, (depth, opacity, viewmats, Ks)),
        views,
        channels,
        seed,
        stream,
        *node_arrays(nodes),
        len(nodes),
        *map(native.pointer, (noise, counts, coverage)),
        native.threads(),
    )
    if failed:
        raise MemoryError("surface noise: out of memory; render the views at a smaller size or in smaller batches")
    return Surface(noise, counts, coverage)


def owners(grid: Grid, depth: Tensor, opacity: Tensor, viewmat: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cell keys [M] and, for each, its row-major owning latent pixel [M], both int64; one view, for tests and
    images.

    depth, opacity: [H, W]; viewmat: [4, 4]; K: [3, 3]. Raises MemoryError if memory runs out.
    """
    geometry = geometry_of(grid, depth[None])
    depth, opacity, viewmat, K = (t.detach().float().contiguous() for t in (depth, opacity, viewmat, K))
    call = native.function(
        "gscfd_noise_owners",
        ctypes.c_void_p,
        ctypes.c_int,
        *[ctypes.c_void_p] * 4,
        ctypes.c_int64,
        *[ctypes.c_void_p] * 2,
        ctypes.c_int,
        restype=ctypes.c_int64,
    )
    size = 0
    while True:
        cells, pixels = torch.empty(size, dtype=torch.int64), torch.empty(size, dtype=torch.int64)
        inputs = map(native.pointer, (depth, opacity, viewmat, K))
        outputs = map(native.pointer, (cells, pixels))
        found = call(ctypes.addressof(geometry), grid.radial, *inputs, size, *outputs, native.threads())
        if found < 0:
            raise MemoryError("surface noise: out of memory; render the view at a smaller size")
        if found <= size:
            return cells[:found], pixels[:found]
        size = found


def compose(surface: Surface, background: Tensor) -> Tensor:
    """Returns sqrt(a) noise + sqrt(1 - a) background with coverage a, [V, C, h, w]; a pixel without cells is all
    background.

    background: [V, C, h, w], or [C, h, w] for all views.
    """
    alpha = torch.where(surface.counts > 0, surface.coverage, 0.0)[:, None]
    return alpha.sqrt() * surface.noise + (1 - alpha).sqrt() * background


def white(
    channels: int,
    height: int,
    width: int,
    *,
    seed: int,
    stream: int,
    key: int,
    nodes: Nodes,
    device: torch.device | None = None,
) -> Tensor:
    """Returns noise of the image plane [C, h, w]: a pure function of (seed, stream, key, draws, channel, pixel).

    device: the CPU; part of the signature shared with other devices.
    """
    noise = torch.empty(1, channels, height, width)
    _white(noise, seed, stream, key, None, None, nodes)
    return noise[0]


def fresh(
    channels: int, height: int, width: int, viewmats: Tensor, Ks: Tensor, *, seed: int, stream: int, nodes: Nodes
) -> Tensor:
    """Returns noise [V, C, h, w] like `white`, keyed by the bits of each view's matrices, not by its index in the
    batch.

    viewmats: [V, 4, 4]; Ks: [V, 3, 3].
    """
    viewmats, Ks = (t.detach().float().contiguous() for t in (viewmats, Ks))
    noise = torch.empty(len(viewmats), channels, height, width)
    _white(noise, seed, stream, 0, viewmats, Ks, nodes)
    return noise


def _white(
    noise: Tensor, seed: int, stream: int, key: int, viewmats: Tensor | None, Ks: Tensor | None, nodes: Nodes
) -> None:
    call = native.function("gscfd_noise_white", *WHITE_ARGUMENTS, ctypes.c_int)
    inputs = map(native.pointer, (viewmats, Ks))
    shape = (len(noise), noise.shape[1], noise[0, 0].numel())
    call(seed, stream, key, *inputs, *node_arrays(nodes), len(nodes), *shape, native.pointer(noise), native.threads())
