"""Noise for the distillation: `(field, cameras, render, step) -> [V, C, h, w]`, every entry N(0, 1), but for
`none`.

Noise is a pure function of the field's settings, the step, the cameras and the render: random numbers come from a
counter-based generator (Philox), nothing is stored between steps, and a checkpoint holds a few numbers. docs/noise.md
states the algorithm.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from gscfd.cameras import azimuth_elevation
from gscfd.noise.field import NoiseField, _check
from gscfd.noise_kernels import cpu, cuda
from gscfd.noise_kernels.cells import Grid, Kernels, Surface
from gscfd.types import Cameras, Render

# Each use of random numbers has its own counter space, so they never coincide.
_SURFACE, _SCREEN, _IID, _FRESH_BACKGROUND, _BLEND, _DIRECTION, _WORLD_MAP, _RADIAL, _PER_VIEW = range(9)


class Kind(Protocol):
    """A kind of noise: returns [V, C, h, w] for the views, N(0, 1) in every view."""

    def __call__(self, field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor: ...


def iid(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """Returns noise [V, C, h, w] that is fresh in every view and step (SDS; CFD Tab. 1)."""
    device, now = cameras.viewmats.device, [(step, 1.0)]
    return torch.stack([_white(field, device, _IID, view, now) for view in range(len(cameras))])


def none(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """Returns zeros, [V, C, h, w]: the teacher is asked about the render itself, as if it were x_t / alpha. A negative
    control: the noisy variable of CFD Eq. 6 and Fig. 5a."""
    return torch.zeros(len(cameras), field.channels, field.height, field.width, device=cameras.viewmats.device)


def fixed(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """Returns one noise image for all views, aging with gamma, [V, C, h, w]: a negative control (FSD Fig. 6)."""
    screen = _screen(field, cameras, step)
    return _blend(field, torch.stack([screen] * len(cameras)), cameras, step)


def per_view(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """Returns one noise image for each place in the group of views, aging with gamma, [V, C, h, w]: `fixed` for views
    that attend to each other, of which no teacher was trained on equal noise."""
    device, nodes = cameras.viewmats.device, _nodes(field, step)
    noise = torch.stack([_white(field, device, _PER_VIEW, view, nodes) for view in range(len(cameras))])
    return _blend(field, noise, cameras, step)


def world_map(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """Returns noise [V, C, h, w] whose foreground is read from one wide map at the camera's position (FSD Eq. 16).

    The map is periodic in azimuth, 360 / theta latent images wide and 180 / theta high, and extends half an image
    beyond each pole, where cameras can still look. A view reads the patch centered on its camera's azimuth and
    elevation, rounded to whole cells: interpolation would correlate the pixels. Latent pixels whose mean opacity is at
    or below the threshold read the background. The noise is white in every view; views agree roughly, as if the object
    were a screen at a fixed distance. cameras, render, step: as for `surface`; only render.opacity is read.

    Raises ValueError if sizes or devices disagree, and for a negative step.
    """
    opacity = _image("render.opacity", render.opacity, cameras)
    nodes, columns = _nodes(field, step), round(field.width * 360 / field.theta)
    rows = round(field.height * 180 / field.theta)
    device = opacity.device
    plane = kernels(device).white(
        field.channels,
        rows + field.height,
        columns,
        seed=field.seed,
        stream=_WORLD_MAP,
        key=0,
        nodes=nodes,
        device=device,
    )
    azimuth, elevation = azimuth_elevation(Cameras(cameras.viewmats.double(), cameras.Ks, 1, 1))
    # The object's points move up in the image as the camera descends, and left as it moves around counter-clockwise.
    top = ((90 - elevation) / 180 * rows).round().long().clamp(0, rows)
    left = (azimuth / 360 * columns - field.width / 2).round().long()
    row = top[:, None, None] + torch.arange(field.height, device=device)[:, None]
    column = (left[:, None, None] + torch.arange(field.width, device=device)) % columns
    patches = plane[:, row, column].transpose(0, 1)
    footprint = torch.nn.functional.adaptive_avg_pool2d(opacity[:, None].double(), (field.height, field.width))
    foreground = footprint > field.opacity_threshold
    noise = torch.where(foreground, patches, _background(field, cameras, render, step))
    return _blend(field, noise, cameras, step)


def radial(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """Returns noise [V, C, h, w] like `surface`, with cells in one map of the directions from the origin, in layers of
    distance.

    The literal reading of CFD Alg. 2: white in every view, and as consistent as `surface` on smooth shapes around the
    origin. Surfaces seen edge-on from the origin (flat parts through it, off-center parts) get few cells or none.
    Arguments and errors are those of `surface`; also raises ValueError for CUDA tensors, because there is no CUDA
    kernel.
    """
    return _compose(field, radial_parts(field, cameras, render, step), cameras, render, step)


def radial_parts(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Surface:
    """Returns the parts that `radial` composes, like `surface_parts`."""
    return _parts(field, radial_grid(field), _RADIAL, cameras, render, step)


def radial_grid(field: NoiseField) -> Grid:
    """Returns a grid whose cells have the area of the surface cells on the unit sphere, with the same layers."""
    cells = grid(field)
    # One square covers half the unit sphere, 2 pi. The number is even so that no cell center lies on the pole, which
    # cameras that look at the origin see on the border between two columns.
    cells.radial = min(max(2 * round(math.sqrt(2 * math.pi) / cells.pitch / 2), 2), 2**20 - 2)
    return cells


def surface(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """Returns noise [V, C, h, w] that is white in every view and agrees between views that see the same surface.

    G = sqrt(alpha) n^-1/2 sum of W over the n cells that a pixel owns + sqrt(1 - alpha) B (CFD Alg. 2 in the form of
    docs/noise.md). cameras: of the render's size, which need not be a multiple of the latents'. render: its opacity and
    the depth named by field.depth are read. step: the optimization step, from 0.

    The noise is drawn on the render's device. On CUDA nothing waits for the device; noise_kernels/cuda.py describes how
    views with more cells than expected are handled. Raises ValueError if sizes or devices disagree, for a missing
    median depth, and for a negative step; raises ImportError on CUDA if NVRTC or the driver is missing.
    """
    return _compose(field, surface_parts(field, cameras, render, step), cameras, render, step)


def kernels(device: torch.device) -> Kernels:
    """Returns the module with the compiled noise of a device: noise_kernels.cpu or noise_kernels.cuda."""
    return cuda if device.type == "cuda" else cpu


def surface_parts(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Surface:
    """Returns the parts that `surface` composes: foreground noise, cells per pixel, coverage. Raises ValueError as
    `surface` does."""
    return _parts(field, grid(field), _SURFACE, cameras, render, step)


def grid(field: NoiseField) -> Grid:
    """Returns the cells and latent pixels of a field: pitch footprint / 4, depth 8 footprint."""
    return Grid(
        height=field.height,
        width=field.width,
        pitch=field.footprint / 4,
        layer_depth=8 * field.footprint,
        opacity_threshold=field.opacity_threshold,
        normal_radius=field.normal_radius,
        smoothing=field.smoothing,
    )


def surface_images(field: NoiseField, cameras: Cameras, render: Render) -> tuple[Tensor, Tensor]:
    """Returns the depth of the surface and the opacity, each [V, H, W]. Raises ValueError as `surface` does."""
    name, depth = "render.depth", render.depth
    if field.depth == "median":
        if render.median_depth is None:
            raise ValueError(
                "render.median_depth: expected depths of the render's size, got None;"
                ' choose depth="expected" for this rasterizer'
            )
        name, depth = "render.median_depth", render.median_depth
    return _image(name, depth, cameras), _image("render.opacity", render.opacity, cameras)


def _image(name: str, image: Tensor, cameras: Cameras) -> Tensor:
    """Returns the image [V, H, W, 1] as [V, H, W] after checking its device and size. Raises ValueError as `surface`
    does."""
    expected = (len(cameras), cameras.height, cameras.width, 1)
    for other in (cameras.viewmats, cameras.Ks):
        if image.device != other.device:
            raise ValueError(
                f"{name}: expected a tensor on {other.device} as the cameras are, got one on {image.device};"
                " use cameras.to(device) or render.to(device)"
            )
    if tuple(image.shape) != expected:
        raise ValueError(
            f"{name}: expected {list(expected)} to match cameras, got {list(image.shape)};"
            " use cameras.resized(width, height) for a render of another size"
        )
    return image[..., 0]


def _parts(field: NoiseField, cells: Grid, stream: int, cameras: Cameras, render: Render, step: int) -> Surface:
    depth, opacity = surface_images(field, cameras, render)
    return kernels(depth.device).surface(
        cells,
        depth,
        opacity,
        cameras.viewmats,
        cameras.Ks,
        channels=field.channels,
        seed=field.seed,
        stream=stream,
        nodes=_nodes(field, step),
    )


def _compose(field: NoiseField, parts: Surface, cameras: Cameras, render: Render, step: int) -> Tensor:
    """Returns sqrt(alpha) foreground + sqrt(1 - alpha) background, blended with fresh noise, [V, C, h, w]."""
    noise = kernels(cameras.viewmats.device).compose(parts, _background(field, cameras, render, step))
    return _blend(field, noise, cameras, step)


def _background(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """Returns the background noise, [V, C, h, w], or [C, h, w] if it is the same for all views."""
    if field.background == "screen":
        return _screen(field, cameras, step)
    if field.background == "fresh":
        return _fresh_views(field, _FRESH_BACKGROUND, cameras, step)
    return _direction(field, cameras, step)


def _screen(field: NoiseField, cameras: Cameras, step: int) -> Tensor:
    return _white(field, cameras.viewmats.device, _SCREEN, 0, _nodes(field, step))


def _direction(field: NoiseField, cameras: Cameras, step: int) -> Tensor:
    """Returns the surface noise of a cube centered on the camera, [V, C, h, w], so that only directions matter.

    Pixels without a cell (at zooms far beyond the cells' size) show the screen's background.
    """
    device, Ks = cameras.viewmats.device, cameras.Ks.double()[:, :, :, None, None]
    rows = torch.arange(cameras.height, device=device)[:, None] + 0.5
    columns = torch.arange(cameras.width, device=device) + 0.5
    x, y = (columns - Ks[:, 0, 2]) / Ks[:, 0, 0], (rows - Ks[:, 1, 2]) / Ks[:, 1, 1]
    x, y = torch.broadcast_tensors(x, y)
    directions = torch.stack([x, y, torch.ones_like(x)], -1) @ cameras.viewmats[:, None, :3, :3].double()
    depth = 1 / directions.abs().amax(-1)
    viewmats = cameras.viewmats.clone()
    viewmats[:, :3, 3] = 0
    cells = grid(field)
    cells.pitch, cells.layer_depth = 2 * _DIRECTION_TANGENT / field.height / 4, 4.0
    cells.smoothing = 0  # keeps the cube's edges sharp
    cells.cells_per_pixel = 48  # the cube covers all pixels
    cube = kernels(device).surface(
        cells,
        depth,
        torch.ones_like(depth),
        viewmats,
        cameras.Ks,
        channels=field.channels,
        seed=field.seed,
        stream=_DIRECTION,
        nodes=_nodes(field, step),
    )
    return torch.where(cube.counts[:, None] > 0, cube.noise, _screen(field, cameras, step))


# Tangent of half the field of view at which a latent pixel spans four cells of the direction-keyed background.
_DIRECTION_TANGENT = math.tan(math.radians(20))


def _blend(field: NoiseField, noise: Tensor, cameras: Cameras, step: int) -> Tensor:
    """Returns sqrt(beta) noise + sqrt(1 - beta) fresh noise (the blending of FSD)."""
    if field.beta == 1:
        return noise
    return math.sqrt(field.beta) * noise + math.sqrt(1 - field.beta) * _fresh_views(field, _BLEND, cameras, step)


def _fresh_views(field: NoiseField, stream: int, cameras: Cameras, step: int) -> Tensor:
    """Returns noise [V, C, h, w] that is fresh in every step and for every camera, independent of its index in the
    batch."""
    views, shape = (cameras.viewmats, cameras.Ks), (field.channels, field.height, field.width)
    return kernels(cameras.viewmats.device).fresh(*shape, *views, seed=field.seed, stream=stream, nodes=[(step, 1.0)])


def _white(field: NoiseField, device: torch.device, stream: int, key: int, nodes: list[tuple[int, float]]) -> Tensor:
    """Returns noise [C, h, w] on the device."""
    shape = (field.channels, field.height, field.width)
    return kernels(device).white(*shape, seed=field.seed, stream=stream, key=key, nodes=nodes, device=device)


def _nodes(field: NoiseField, step: int) -> list[tuple[int, float]]:
    _check(step >= 0, "step", "a step of the run, from 0", step)
    return field.nodes(step)


NOISES: dict[str, Kind] = {
    "surface": surface,
    "radial": radial,
    "world_map": world_map,
    "fixed": fixed,
    "per_view": per_view,
    "iid": iid,
    "none": none,
}
