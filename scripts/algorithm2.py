"""CFD's Algorithm 2 in plain torch, as a baseline: a stored map of white noise, rasterized triangle by triangle.

As in the paper (CFD App. D), the corners of every latent pixel are carried to the surface by the rendered depth, and
from there to a reference map; the pixel's noise is the sum of the map's cells in that quadrilateral divided by the
square root of their number. The paper's limitations are kept on purpose: triangles between corners and a single layer.
Speed is limited by torch's scatter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gscfd.cameras import camera_to_world
from gscfd.types import Cameras, Render


def algorithm2(noise_map: Tensor, cameras: Cameras, render: Render, height: int, width: int) -> Tensor:
    """Returns noise [V, C, h, w]; pixels without surface or cells get fresh noise.

    noise_map: [C, M, M] white noise; the directions of a sphere fill it through an equal-area cylinder map.
    """
    return torch.stack(
        [
            _one_view(noise_map, cameras[v : v + 1], render.depth[v, ..., 0], render.opacity[v, ..., 0], height, width)
            for v in range(len(cameras))
        ]
    )


def _one_view(noise_map: Tensor, camera: Cameras, depth: Tensor, opacity: Tensor, height: int, width: int) -> Tensor:
    channels, size = noise_map.shape[:2]
    triangles, owner = _triangles(_corners(camera, depth, opacity, height, width), size)
    cells, claimants = _covered_cells(triangles, size)
    # Each cell belongs to its first triangle only, so that the sum stays white.
    first = torch.full((size * size,), len(triangles), dtype=torch.long)
    first.scatter_reduce_(0, cells, claimants, "amin")
    taken = first[cells] == claimants
    cells, pixels = cells[taken], owner[claimants[taken]]
    sums = torch.zeros(channels, height * width).index_add_(1, pixels, noise_map.flatten(1)[:, cells])
    counts = torch.zeros(height * width).index_add_(0, pixels, torch.ones(len(pixels)))
    fresh = torch.randn(channels, height * width)
    return torch.where(counts > 0, sums / counts.clamp(min=1).sqrt(), fresh).reshape(channels, height, width)


def _corners(camera: Cameras, depth: Tensor, opacity: Tensor, height: int, width: int) -> Tensor:
    """Returns surface points at the corners of the latent pixels, [h + 1, w + 1, 3]: masked mean depth around each, NaN
    without surface."""
    mask = (opacity > 0.5).float()
    step_y, step_x = camera.height // height, camera.width // width
    kernel, pad = (step_y, step_x), (step_y // 2, step_x // 2)
    total, seen = (
        torch.nn.functional.avg_pool2d(x[None, None], kernel, (step_y, step_x), pad)[0, 0] for x in (depth * mask, mask)
    )
    z = torch.where(seen > 0, total / seen.clamp(min=1e-9), math.nan)[: height + 1, : width + 1]
    rows, columns = torch.meshgrid(torch.arange(height + 1.0), torch.arange(width + 1.0), indexing="ij")
    pixels = torch.stack([columns * step_x, rows * step_y, torch.ones_like(rows)], -1)
    pose = camera_to_world(camera)[0].float()
    rays = pixels @ torch.linalg.inv(camera.Ks[0].float()).T
    points: Tensor = (rays * z[..., None]) @ pose[:3, :3].T + pose[:3, 3]
    return points


def _triangles(points: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns triangle corners in map cells [N, 3, 2] and the latent pixel of each triangle [N]; triangles across the
    seam are dropped."""
    direction = points / points.norm(dim=-1, keepdim=True)
    azimuth = torch.atan2(direction[..., 1], direction[..., 0]) / (2 * math.pi) + 0.5
    place = torch.stack([azimuth, (direction[..., 2] + 1) / 2], -1) * size
    a, b, c, d = place[:-1, :-1], place[:-1, 1:], place[1:, :-1], place[1:, 1:]
    pixels = torch.arange(a.shape[0] * a.shape[1])
    both = torch.cat([torch.stack([a, b, c], -2), torch.stack([d, c, b], -2)]).reshape(-1, 3, 2)
    extent = both.amax(1) - both.amin(1)
    whole = both.isfinite().all(-1).all(-1) & (extent.nan_to_num(nan=math.inf).amax(-1) < size / 2)
    return both[whole], torch.cat([pixels, pixels])[whole]


def _covered_cells(triangles: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns cells whose center lies in a triangle [K], and that triangle [K]; every cell of each bounding box is
    tested."""
    low = triangles.amin(1).floor().long().clamp(0, size - 1)
    high = triangles.amax(1).floor().long().clamp(0, size - 1)
    spans = high - low + 1
    areas = spans.prod(-1)
    which = torch.repeat_interleave(torch.arange(len(triangles)), areas)
    inside = torch.arange(len(which)) - (areas.cumsum(0) - areas)[which]
    x = low[which, 0] + inside % spans[which, 0]
    y = low[which, 1] + inside // spans[which, 0]
    center = torch.stack([x, y], -1) + 0.5
    edges = []
    for i in range(3):
        start, end = triangles[:, i][which], triangles[:, (i + 1) % 3][which]
        along, to = end - start, center - start
        edges.append(along[:, 0] * to[:, 1] - along[:, 1] * to[:, 0])
    signs = torch.stack(edges, -1)
    hit = (signs >= 0).all(-1) | (signs <= 0).all(-1)
    return (y * size + x)[hit], which[hit]
