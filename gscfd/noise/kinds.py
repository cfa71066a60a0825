"""The noise that guides the distillation: `(field, cameras, render, step) -> [V, C, h, w]`, every entry N(0, 1).

Noise is a pure function of the field's settings, the step, the cameras and the render: every random number is drawn
by a counter (Philox), nothing is stored between steps, and a checkpoint holds a few numbers. docs/noise.md states the
algorithm.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from gscfd.cameras import azimuth_elevation
from gscfd.noise.field import NoiseField, _check
from gscfd.noise_kernels import cpu, cuda
from gscfd.noise_kernels.cells import Grid, Surface
from gscfd.types import Cameras, Render

# Random numbers of different uses never meet: each has its own counter space.
_SURFACE, _SCREEN, _IID, _FRESH_BACKGROUND, _BLEND, _DIRECTION, _WORLD_MAP, _RADIAL = range(8)


class Kind(Protocol):
    """A kind of noise: [V, C, h, w] for these views, N(0, 1) in every view."""

    def __call__(self, field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor: ...


def iid(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """[V, C, h, w] fresh noise in every view and step (SDS; CFD Tab. 1)."""
    device, now = cameras.viewmats.device, [(step, 1.0)]
    return torch.stack([_white(field, device, _IID, view, now) for view in range(len(cameras))])


def fixed(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """[V, C, h, w] one image, the same in every view and aging with gamma: a negative control (FSD Fig. 6)."""
    screen = _screen(field, cameras, step)
    return _blend(field, torch.stack([screen] * len(cameras)), cameras, step)


def world_map(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """[V, C, h, w] each view's foreground reads the part of one wide map that its camera stands over (FSD Eq. 16).

    The map is periodic in azimuth, 360 / theta latent images wide and 180 / theta high, and goes on by half an image
    beyond the poles, where cameras still look. A view reads the patch centered on its camera's azimuth and elevation,
    moved to the nearest whole cell: any interpolation would correlate the pixels, so sub-cell motion is rounded.
    Latent pixels whose opacity averages to the threshold or less read the background. White in every view; views
    agree roughly, as if the object were a screen at a fixed distance. cameras, render, step: as for `surface`; only
    render.opacity is read.

    Raises ValueError for sizes and devices that disagree, and for a negative step.
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
    # The object's points move up the image as the camera falls, and to the left as it goes round.
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
    """[V, C, h, w] as `surface`, with cells in one map of the directions from the origin and layers of distance.

    The plain reading of CFD Alg. 2: white in every view, and as consistent as `surface` on smooth shapes around the
    origin. Surfaces seen edge-on from the origin (flat parts through it, off-center parts) get few cells or none.
    Arguments and errors as for `surface`; ValueError for CUDA tensors, which it has no kernel for.
    """
    return _compose(field, radial_parts(field, cameras, render, step), cameras, render, step)


def radial_parts(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Surface:
    """What `radial` composes, as `surface_parts`."""
    return _parts(field, radial_grid(field), _RADIAL, cameras, render, step)


def radial_grid(field: NoiseField) -> Grid:
    """Cells that have on the unit sphere the area of the surface cells; layers as theirs."""
    cells = grid(field)
    # One square holds half the unit sphere, 2 pi. An even number: no cell's center lies on the pole, which cameras that
    # look at the origin see on the border between two columns.
    cells.radial = min(max(2 * round(math.sqrt(2 * math.pi) / cells.pitch / 2), 2), 2**20 - 2)
    return cells


def surface(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """[V, C, h, w] noise that is white in every view and agrees between views where they see the same surface.

    G = sqrt(alpha) n^-1/2 sum of W over the n cells that a pixel owns + sqrt(1 - alpha) B (CFD Alg. 2 in the form of
    docs/noise.md). cameras: of the render's size, which need not be a multiple of the latents'. render: opacity and the
    depth that field.depth names are read. step: the optimization step, from 0.

    Drawn where the render is; on CUDA nothing waits for the device, and noise_kernels/cuda.py says what happens to a
    view with more cells than expected. Raises ValueError for sizes and devices that disagree, for a missing median
    depth, and for a negative step; ImportError on CUDA without gscfd's CUDA library.
    """
    return _compose(field, surface_parts(field, cameras, render, step), cameras, render, step)


def kernels(device: torch.device) -> ModuleType:
    """The compiled noise of a device: noise_kernels.cpu or noise_kernels.cuda."""
    return cuda if device.type == "cuda" else cpu


def surface_parts(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Surface:
    """What `surface` composes: foreground noise, cells per pixel, coverage. Raises ValueError as `surface` does."""
    return _parts(field, grid(field), _SURFACE, cameras, render, step)


def grid(field: NoiseField) -> Grid:
    """Cells and latent pixels of a field: pitch footprint / 4, depth 8 footprint."""
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
    """([V, H, W], [V, H, W]) the depth that shows the surface, and opacity. Raises ValueError as `surface` does."""
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
    """[V, H, W] of the cameras' size, from [V, H, W, 1]. Raises ValueError as `surface` does."""
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
    """[V, C, h, w] sqrt(alpha) foreground + sqrt(1 - alpha) background, blended with fresh noise."""
    noise = kernels(cameras.viewmats.device).compose(parts, _background(field, cameras, render, step))
    return _blend(field, noise, cameras, step)


def _background(field: NoiseField, cameras: Cameras, render: Render, step: int) -> Tensor:
    """[V, C, h, w], or [C, h, w] the same for all views."""
    if field.background == "screen":
        return _screen(field, cameras, step)
    if field.background == "fresh":
        return _fresh_views(field, _FRESH_BACKGROUND, cameras, step)
    return _direction(field, cameras, step)


def _screen(field: NoiseField, cameras: Cameras, step: int) -> Tensor:
    return _white(field, cameras.viewmats.device, _SCREEN, 0, _nodes(field, step))


def _direction(field: NoiseField, cameras: Cameras, step: int) -> Tensor:
    """[V, C, h, w] the surface noise of a cube around the camera that moves with it, so that only directions count.

    Pixels without a cell (a zoom far beyond the cells' size) show the screen's background.
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
    cells.smoothing = 0  # its edges are sharp
    cells.cells_per_pixel = 48  # all pixels are covered
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


# Half the field of view, as a tangent, at which a latent pixel spans four cells of the direction-keyed background.
_DIRECTION_TANGENT = math.tan(math.radians(20))


def _blend(field: NoiseField, noise: Tensor, cameras: Cameras, step: int) -> Tensor:
    """sqrt(beta) noise + sqrt(1 - beta) fresh (the blending of FSD)."""
    if field.beta == 1:
        return noise
    return math.sqrt(field.beta) * noise + math.sqrt(1 - field.beta) * _fresh_views(field, _BLEND, cameras, step)


def _fresh_views(field: NoiseField, stream: int, cameras: Cameras, step: int) -> Tensor:
    """[V, C, h, w] new in every step and for every camera, whatever its place in the batch."""
    views, shape = (cameras.viewmats, cameras.Ks), (field.channels, field.height, field.width)
    return kernels(cameras.viewmats.device).fresh(*shape, *views, seed=field.seed, stream=stream, nodes=[(step, 1.0)])


def _white(field: NoiseField, device: torch.device, stream: int, key: int, nodes: list[tuple[int, float]]) -> Tensor:
    """[C, h, w] on the device."""
    shape = (field.channels, field.height, field.width)
    return kernels(device).white(*shape, seed=field.seed, stream=stream, key=key, nodes=nodes, device=device)


def _nodes(field: NoiseField, step: int) -> list[tuple[int, float]]:
    _check(step >= 0, "step", "a step of the run, from 0", step)
    return field.nodes(step)


NOISES = {
    "surface": surface,
    "radial": radial,
    "world_map": world_map,
    "fixed": fixed,
    "iid": iid,
}
