"""Content of the viewer as pure functions of a splat, a camera and a snapshot: no browser, no threads."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from viser import transforms

from gscfd.cameras import camera_to_world
from gscfd.export.transform import with_degree
from gscfd.export.turntable import turntable_frames
from gscfd.gaussians import Gaussians
from gscfd.geometry import normals
from gscfd.harmonics import SH_C0
from gscfd.pictures import as_bytes
from gscfd.types import Cameras, Render
from gscfd.viewer.snapshot import Point, Snapshot

MODES = ("splat", "color", "depth", "opacity", "normal", "noise")
""""splat" is drawn by the browser. The other modes are rendered here for each browser's own camera."""
Paint = Callable[[Cameras, Render], Tensor]
"""Returns the noise of some views, [V, 3, H / 4, W / 4], N(0, 1)."""
GRID = 4
"""Image sizes are multiples of this number, as `Paint` requires."""
MOST_POINTS = 400
"""Maximum number of points in a plot."""
SHEET_SIZE = 128
"""Width and height of a picture in `sheet`, pixels."""
SIGMAS = 3.0
"""Radius of a Gaussian in its standard deviations."""
GAP = 2.2
"""Distance between the centers of two splats shown side by side, world units."""
ALONE, BESIDE = (0.05, 50.0), (0.3, 1.5)
"""Radii at which a splat is shown as it is, alone and beside another: the browser draws nothing near or far, and larger
ones would overlap."""


def covariances(gaussians: Gaussians) -> Tensor:
    """Returns the covariance matrices R diag(s^2) R^T, [N, 3, 3]."""
    w, x, y, z = F.normalize(gaussians.quats, dim=-1).unbind(-1)
    rotation = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        -1,
    ).unflatten(-1, (3, 3))
    scaled = rotation * gaussians.scales.exp()[:, None, :]
    covariance: Tensor = scaled @ scaled.transpose(1, 2)
    return covariance


@torch.no_grad()
def splat_arrays(gaussians: Gaussians) -> dict[str, np.ndarray]:
    """Returns the arrays viser draws: centers [N, 3], covariances [N, 3, 3], rgbs [N, 3] and opacities [N, 1] in [0,
    1], all float32.

    Colors come from the constant term of the spherical harmonics, the only one viser supports.
    """
    tensors = {
        "centers": gaussians.means,
        "covariances": covariances(gaussians),
        "rgbs": (SH_C0 * gaussians.sh0[:, 0] + 0.5).clamp(0, 1),
        "opacities": gaussians.opacities.sigmoid()[:, None],
    }
    return {name: value.float().cpu().numpy() for name, value in tensors.items()}


def side_by_side(splats: Sequence[Gaussians | None]) -> Gaussians:
    """Merges splats into one, arranged left to right as the front camera sees them, with gaps between their unit
    balls. The place of None stays empty; at least one is a splat."""
    there = [(splat, place) for splat, place in zip(splats, places(len(splats)), strict=True) if splat is not None]
    degree = max(splat.sh_degree for splat, _ in there)
    values = [with_degree(splat, degree).tensors() for splat, _ in there]
    for value, (_, place) in zip(values, there, strict=True):
        value["means"][:, 1] += place
    return Gaussians(**{name: torch.cat([value[name] for value in values]) for name in values[0]})


def places(count: int) -> list[float]:
    """Returns the y coordinates of the centers of `count` splats shown side by side."""
    return [GAP * (i - (count - 1) / 2) for i in range(count)]


def extent(gaussians: Gaussians, count: int = 1) -> tuple[np.ndarray, float]:
    """Returns the center [3] and radius of a ball that contains nearly all Gaussians. count: of splats side by side,
    whose middle is the center, whichever of them has more Gaussians."""
    means = gaussians.means.detach().double().cpu().numpy()
    if not len(means):
        return np.zeros(3), 1.0
    center = np.median(means, axis=0)
    if count > 1:
        center[1] = 0.0
    sizes = np.exp(gaussians.scales.detach().double().cpu().numpy().max(axis=1))
    distances = np.linalg.norm(means - center, axis=1)
    return center, float(max(np.quantile(distances, 0.98), SIGMAS * np.median(sizes)))


def in_reach(gaussians: Gaussians, count: int = 1) -> Gaussians:
    """Returns the splat, moved and scaled to a radius of 1 about the origin if its own is one that cannot be shown.
    count: of splats side by side."""
    center, radius = extent(gaussians)
    low, high = ALONE if count == 1 else BESIDE
    if low <= radius <= high:
        return gaussians
    values = gaussians.tensors()
    values["means"] = ((values["means"].double() - torch.from_numpy(center)) / radius).float()
    values["scales"] = values["scales"] - math.log(radius)
    return Gaussians(**values)


def camera_of(
    wxyz: np.ndarray,
    position: np.ndarray,
    fov: float,
    aspect: float,
    height: int,
    turned: float = 0.0,
    center: np.ndarray | None = None,
) -> Cameras:
    """Converts a browser's camera to `Cameras` with one view, about `height` pixels high.

    wxyz, position: camera-to-world, OpenCV axes. fov: vertical, radians. aspect: width / height. turned: rotation of
    the object about the vertical axis through `center` ([3]; None: the origin) in radians, counter-clockwise seen from
    above.
    """
    center = np.zeros(3) if center is None else center
    turn = transforms.SO3.from_z_radians(-turned)
    rotation = (turn @ transforms.SO3(np.asarray(wxyz, dtype=np.float64))).as_matrix()
    viewmat = np.eye(4)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ (center + turn @ (np.asarray(position, dtype=np.float64) - center))
    rows = max(round(height / GRID), 1) * GRID
    columns = min(max(round(rows * aspect / GRID), 1) * GRID, 4 * rows)
    focal = 0.5 * rows / np.tan(fov / 2)
    K = [[focal, 0.0, columns / 2], [0.0, focal, rows / 2], [0.0, 0.0, 1.0]]
    return Cameras(torch.from_numpy(viewmat).float()[None], torch.tensor(K, dtype=torch.float32)[None], columns, rows)


def picture(
    gaussians: Gaussians, camera: Cameras, mode: str, background: Sequence[float], paint: Paint, degree: int = 3
) -> np.ndarray:
    """Renders one view in any of MODES except "splat"; returns [H, W, 3] uint8.

    background: three numbers in [0, 1]. degree: maximum degree of the spherical harmonics to use.
    """
    shown = gaussians if degree >= gaussians.sh_degree else with_degree(gaussians, degree)
    render = shown.render(camera).to("cpu")
    if mode == "noise":
        noise = noise_colors(paint(camera, render))[0]
        return as_bytes(noise.repeat_interleave(GRID, 0).repeat_interleave(GRID, 1))
    if mode == "opacity":
        return as_bytes(render.opacity[0].expand(-1, -1, 3))
    backdrop = torch.tensor(background, dtype=torch.float32)
    if mode == "color":
        return as_bytes(render.over(backdrop)[0])
    value = shades(render) if mode == "depth" else (normals(render, camera) + 1) / 2
    return as_bytes((render.opacity * value + (1 - render.opacity) * backdrop)[0])


def shades(render: Render) -> Tensor:
    """Returns the depth as gray levels, [V, H, W, 1]: near is light, far is dark."""
    surface = render.depth[render.opacity > 0.5]
    if not len(surface):
        return torch.ones_like(render.depth)
    near, far = surface.min(), surface.max()
    return 0.95 - 0.8 * ((render.depth - near) / (far - near).clamp(min=1e-6)).clamp(0, 1)


def noise_colors(noise: Tensor) -> Tensor:
    """Maps the first three channels of noise [V, C, h, w] to colors, [V, h, w, 3] in [0, 1] over +-2.5 standard
    deviations."""
    return (0.5 + noise[:, :3] / 5).clamp(0, 1).permute(0, 2, 3, 1)


def row(images: Tensor, size: int) -> np.ndarray:
    """Returns the views [V, H, W, 3] side by side as one image, [size, V * size, 3] uint8, each `size` x `size`
    pixels."""
    shown = images.permute(0, 3, 1, 2).float()
    mode = "area" if shown.shape[-1] > size else "nearest"
    return as_bytes(torch.cat(list(F.interpolate(shown, size=(size, size), mode=mode)), -1).permute(1, 2, 0))


def sheet(gaussians: Gaussians) -> np.ndarray:
    """Returns eight pictures of one turn in two rows, [2 SHEET_SIZE, 4 SHEET_SIZE, 3] uint8."""
    frames = turntable_frames(gaussians, frames=8, size=SHEET_SIZE)
    return np.concatenate([np.concatenate(list(half), axis=1) for half in (frames[:4], frames[4:])])


def poses(cameras: Cameras) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (wxyz, position) of each camera, camera-to-world, OpenCV axes."""
    matrices = camera_to_world(cameras).double().cpu().numpy()
    return [(transforms.SO3.from_matrix(m[:3, :3]).wxyz, m[:3, 3]) for m in matrices]


def fields_of_view(cameras: Cameras) -> list[float]:
    """Returns the vertical field of view of each camera in radians."""
    return [2 * float(np.arctan(0.5 * cameras.height / K[1, 1])) for K in cameras.Ks.cpu().numpy()]


def curves(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns steps of the run, losses and Gaussian counts, at most MOST_POINTS of each, always including the last."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).round().astype(int))
    table = np.array([points[i] for i in chosen], dtype=np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def clock(seconds: float) -> str:
    """Formats seconds: 75 as 1:15, 3700 as 1:01:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def status(snapshot: Snapshot, paused: bool) -> str:
    """Returns the state of the run as HTML."""
    done = snapshot.step + 1
    facts = [
        f"t = {snapshot.t:.2f}",
        f"{len(snapshot.gaussians):,} Gaussians",
        f"loss {float(snapshot.loss):.4g}",
        f"{snapshot.rate:.2f} steps/s",
        f"{clock((snapshot.steps - done) / snapshot.rate)} left in this stage" if snapshot.rate else "",
    ]
    lines = [
        f"<b>{html.escape(snapshot.config.prompt)}</b>",
        f"{snapshot.stage}: step {done} of {snapshot.steps}{', paused' if paused else ''}",
        " · ".join(fact for fact in facts if fact),
        html.escape(snapshot.trouble),
    ]
    return text_block("<br>".join(line for line in lines if line))


def text_block(content: str) -> str:
    """Wraps HTML in the style of the panel."""
    return f'<div style="font-size: 0.875em; padding: 0.3em 0.8em; line-height: 1.5">{content}</div>'
