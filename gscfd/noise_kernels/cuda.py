"""Calls of the CUDA noise (csrc/noise_cuda.cu), with the signatures of cpu.py: all views at once, on torch's current
stream, without waiting for the device.

The kernels are compiled at the first call for a GPU, by NVRTC, and kept (gscfd/gpu/nvrtc.py). csrc/noise_launch.cpp, a
part of the CPU library, launches them by the functions of the driver that a _Launcher holds.

The cells of a view are looked up in a table whose required size is known only on the device. A view with more cells
than its table holds gets no cells in that call: all its pixels are background (still white, counts 0). The device
reports the required size to pinned memory; the next call that finds the report warns and enlarges the table.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gscfd import native
from gscfd.gpu import driver as cuda_driver
from gscfd.gpu import nvrtc
from gscfd.noise_kernels.cells import SURFACE_ARGUMENTS, WHITE_ARGUMENTS, Grid, Nodes, Surface, geometry_of, node_arrays

MAX_NORMAL_RADIUS = 15
MAX_TABLES = 32
"""Number of tables kept, besides those that CUDA graphs use."""
COUNTER_STRIDE = 16
"""kCounterStride in csrc/noise_cuda.h: words between the counters of two views."""
SOURCES = [Path(__file__).with_name("csrc") / name for name in ("noise_cuda.cu", "noise_cuda.h", "noise_core.h")]
KERNELS = [f"gscfd_kernel_{name}" for name in ("prepare", "smooth", "enumerate", "gather", "white", "compose")]
"""Kernels in the order of the enum Kernel in csrc/noise_cuda.h."""


class _Launcher(ctypes.Structure):
    _fields_ = [
        ("set_context", ctypes.c_void_p),
        ("launch", ctypes.c_void_p),
        ("copy_to_host", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("kernels", ctypes.c_void_p * len(KERNELS)),
    ]


@functools.cache
def _launcher(index: int) -> _Launcher:
    """Returns the compiled kernels of a device, compiled and loaded at the first call for it.

    Raises ImportError without NVRTC or the driver, RuntimeError if the device cannot run the kernels.
    """
    if driver.capturing():
        raise RuntimeError("surface noise: call it once on this GPU before a CUDA graph is captured")
    architecture = nvrtc.target(torch.cuda.get_device_capability(index))
    kernels = cuda_driver.load(index, nvrtc.kernels(SOURCES, architecture), KERNELS)
    names = ("cuCtxSetCurrent", "cuLaunchKernel", "cuMemcpyDtoHAsync_v2")
    functions = [cuda_driver.address(name) for name in names]
    return _Launcher(*functions, cuda_driver.context(index), (ctypes.c_void_p * len(KERNELS))(*kernels))


class Driver:
    """Queries about torch's device; tests replace it."""

    def index(self, device: torch.device) -> int:
        return torch.cuda.current_device() if device.index is None else device.index

    def guard(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.cuda.device(device)

    def stream(self, device: torch.device) -> int:
        return torch.cuda.current_stream(device).cuda_stream

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def launcher(self, device: torch.device) -> int:
        """Returns the address of the device's Launcher."""
        return ctypes.addressof(_launcher(self.index(device)))

    def words(self, code: int) -> str:
        return cuda_driver.words(code)

    def pinned(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64, pin_memory=True)

    def wait(self, index: int | None) -> None:
        torch.cuda.synchronize(index)


driver = Driver()


@dataclass
class Table:
    """Table for one use of noise: the same field, latents and number of views."""

    slots: int
    """Slots per view, a power of two."""
    needed: Tensor
    """[V] int64, the first word of each row of pinned memory [V, COUNTER_STRIDE]: number of cells each view needed, as
    reported by a call the device has completed."""

    captured: bool = False
    """Whether a CUDA graph uses the table; its kernels write to `needed` at every replay."""

    @property
    def capacity(self) -> int:
        """Number of cells per view that the table holds."""
        return self.slots // 4 * 3


_tables: dict[tuple[int | None, int, int, int, int], Table] = {}
"""Tables by device, stream, views, height and width; the least recently used first."""


def check(device: torch.device) -> None:
    """Compiles and loads all kernels. Raises ImportError if NVRTC or the driver is missing, RuntimeError if the kernels
    cannot run on this device."""
    driver.launcher(device)


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

    depth, opacity: [V, H, W]; viewmats: [V, 4, 4]; Ks: [V, 3, 3] for the H x W image; all on one CUDA device. Raises
    ValueError for a normal radius above 15 and for the radial map, RuntimeError for errors reported by the device.
    """
    if grid.radial:
        raise ValueError("radial: has no CUDA kernel; pass cameras.to('cpu') and render.to('cpu')")
    if grid.normal_radius > MAX_NORMAL_RADIUS:
        limit = f"at most {MAX_NORMAL_RADIUS} on CUDA"
        raise ValueError(f"normal_radius: expected {limit}, got {grid.normal_radius}")
    device, views, geometry = depth.device, len(depth), geometry_of(grid, depth)
    depth, opacity, viewmats, Ks = (t.detach().float().contiguous() for t in (depth, opacity, viewmats, Ks))
    noise = torch.empty(views, channels, grid.height, grid.width, device=device)
    counts = torch.empty(views, grid.height, grid.width, dtype=torch.int32, device=device)
    coverage = torch.empty(views, grid.height, grid.width, device=device)
    table = _table(device, stream, views, grid)
    size = native.function(
        "gscfd_cuda_noise_scratch", ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, restype=ctypes.c_int64
    )
    scratch = torch.empty(size(ctypes.addressof(geometry), views, table.slots) + 255, dtype=torch.uint8, device=device)
    call = _call(
        "gscfd_cuda_noise_surface",
        *SURFACE_ARGUMENTS,
        ctypes.c_void_p,
        ctypes.c_int64,
        *[ctypes.c_void_p] * 3,
    )
    with driver.guard(device):
        call(
            ctypes.addressof(geometry),
            *map(native.pointer, (depth, opacity, viewmats, Ks)),
            views,
            channels,
            seed,
            stream,
            *node_arrays(nodes),
            len(nodes),
            *map(native.pointer, (noise, counts, coverage)),
            (scratch.data_ptr() + 255) // 256 * 256,
            table.slots,
            native.pointer(table.needed),
            driver.launcher(device),
            driver.stream(device),
        )
    return Surface(noise, counts, coverage)


def compose(surface: Surface, background: Tensor) -> Tensor:
    """Returns sqrt(a) noise + sqrt(1 - a) background with coverage a, [V, C, h, w]; a pixel without cells is all
    background.

    background: [V, C, h, w], or [C, h, w] for all views.
    """
    noise, device = surface.noise, surface.noise.device
    background, out = background.contiguous(), torch.empty_like(noise)
    call = _call(
        "gscfd_cuda_noise_compose",
        *[ctypes.c_int] * 2,
        ctypes.c_int64,
        *[ctypes.c_void_p] * 4,
        ctypes.c_int,
        *[ctypes.c_void_p] * 3,
    )
    with driver.guard(device):
        call(
            *noise.shape[:2],
            noise.shape[2] * noise.shape[3],
            *map(native.pointer, (noise, surface.counts, surface.coverage, background)),
            background.ndim == 3,
            native.pointer(out),
            driver.launcher(device),
            driver.stream(device),
        )
    return out


def white(
    channels: int,
    height: int,
    width: int,
    *,
    seed: int,
    stream: int,
    key: int,
    nodes: Nodes,
    device: torch.device,
) -> Tensor:
    """Returns noise of the image plane [C, h, w]: a pure function of (seed, stream, key, draws, channel, pixel)."""
    noise = torch.empty(1, channels, height, width, device=device)
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
    noise = torch.empty(len(viewmats), channels, height, width, device=viewmats.device)
    _white(noise, seed, stream, 0, viewmats, Ks, nodes)
    return noise


def _white(
    noise: Tensor, seed: int, stream: int, key: int, viewmats: Tensor | None, Ks: Tensor | None, nodes: Nodes
) -> None:
    call = _call("gscfd_cuda_noise_white", *WHITE_ARGUMENTS, *[ctypes.c_void_p] * 2)
    inputs = map(native.pointer, (viewmats, Ks))
    shape, device = (len(noise), noise.shape[1], noise[0, 0].numel()), noise.device
    with driver.guard(device):
        where = native.pointer(noise), driver.launcher(device), driver.stream(device)
        call(seed, stream, key, *inputs, *node_arrays(nodes), len(nodes), *shape, *where)


def _table(device: torch.device, stream: int, views: int, grid: Grid) -> Table:
    """Returns the table for these views, enlarged if the device has reported that it was too small."""
    key = (device.index, stream, views, grid.height, grid.width)
    capturing = driver.capturing()
    if key not in _tables:
        if capturing:
            raise RuntimeError("surface noise: call it once with these sizes before a CUDA graph is captured")
        cells = grid.cells_per_pixel * grid.height * grid.width
        _evict(MAX_TABLES - 1)
        counters = driver.pinned(views * COUNTER_STRIDE).view(views, COUNTER_STRIDE)
        _tables[key] = Table(_slots(cells), counters[:, 0])
    table = _tables[key] = _tables.pop(key)
    table.captured |= capturing
    needed = int(table.needed.max()) if views else 0
    if needed > table.capacity:
        poor, capacity = int((table.needed > table.capacity).sum()), table.capacity
        table.slots = _slots(needed)
        table.needed.zero_()
        warnings.warn(
            f"surface noise: {poor} of {views} views had up to {needed} cells where their table held {capacity}; they"
            f" got background noise in an earlier step. The table now holds {table.capacity}.",
            RuntimeWarning,
            stacklevel=3,
        )
    return table


def _evict(keep: int) -> None:
    """Drops the least recently used tables beyond `keep`, except those that CUDA graphs use."""
    loose = [key for key, table in _tables.items() if not table.captured]
    if len(loose) > keep:
        for key in loose[: len(loose) - keep]:
            driver.wait(key[0])  # calls in flight still write to the table's pinned memory
            del _tables[key]


def _slots(cells: int) -> int:
    """Returns the smallest power of two whose three quarters hold `cells` cells."""
    return max(1024, 1 << (-(-4 * cells // 3) - 1).bit_length())


def _call(name: str, *argtypes: type) -> Callable[..., None]:
    """Returns the C function `name`, which raises RuntimeError with the driver's message for a nonzero error code."""
    function = native.function(name, *argtypes, restype=ctypes.c_int)

    def call(*arguments: object) -> None:
        if error := function(*arguments):
            raise RuntimeError(f"gscfd's CUDA noise, {name}: {driver.words(error)}")

    return call
