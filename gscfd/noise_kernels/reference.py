"""Float64 reference of the surface noise in plain numpy, one view at a time, sharing no code with the compiled core.

It follows the algorithm in docs/noise.md with whole-image arrays, Python integers and a sort in place of the core's
loops, bit fields and hash table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_BOX = 16
MAX_TANGENT = 99.0**0.5
RIDGE = 1e-3

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]
Indices = NDArray[np.int64]


@dataclass
class Owners:
    """Owning latent pixel of each cell in one view."""

    cells: Words
    """[M] packed cell keys, ascending, unique."""
    pixels: Indices
    """[M] owning latent pixel of each cell, row-major."""
    counts: Indices
    """[h, w] cells per latent pixel."""
    coverage: Floats
    """[h, w] share of the pixel's render samples on the object, in [0, 1]."""


def surface_owners(
    depth: Floats,
    opacity: Floats,
    viewmat: Floats,
    K: Floats,
    latent: tuple[int, int],
    *,
    pitch: float,
    layer_depth: float,
    opacity_threshold: float = 0.5,
    near: float = 0.01,
    normal_radius: int = 1,
    smoothing: int = 0,
) -> Owners:
    """Returns the owner map of one view.

    depth, opacity: [H, W]; viewmat: [4, 4] world-to-camera; K: [3, 3] in pixels; latent: (h, w); pitch, layer_depth,
    near: world units; normal_radius: number of samples on each side in the normal fit; smoothing: rounds of depth
    smoothing.
    """
    samples = _samples(depth, opacity, viewmat, K, latent, opacity_threshold, near, normal_radius, smoothing, pitch)
    z, normal, point, rotation = samples.z, samples.normal, samples.point, samples.rotation

    axis = np.abs(normal).argmax(1)
    take = np.arange(len(z))
    nu, nv, nk = (normal[take, (axis + i) % 3] for i in (1, 2, 0))
    pu, pv, pk = (point[take, (axis + i) % 3] for i in (1, 2, 0))
    outward = np.where(nk > 0, -1, 1)
    base_u, base_v = np.floor(pu / pitch), np.floor(pv / pitch)
    inside = (np.abs(base_u) < 2**20 - 32) & (np.abs(base_v) < 2**20 - 32) & (np.abs(pk / layer_depth) < 2**18 - 32)

    claims = _Claims()
    for du in range(-MAX_BOX // 2, MAX_BOX // 2):
        for dv in range(-MAX_BOX // 2, MAX_BOX // 2):
            iu, iv = base_u + du, base_v + dv
            off_u, off_v = (iu + 0.5) * pitch - pu, (iv + 0.5) * pitch - pv
            off_k = -(nu * off_u + nv * off_v) / nk
            world = np.zeros_like(point)
            world[take, (axis + 1) % 3], world[take, (axis + 2) % 3], world[take, axis] = off_u, off_v, off_k
            hit = inside & samples.holds(world @ rotation.T)
            column_key = _pack(axis[hit], outward[hit], np.full(hit.sum(), -(2**18)), iu[hit], iv[hit])
            height_k = (pk + off_k)[hit]
            layer = np.floor(height_k / layer_depth + (_mix(column_key) >> np.uint64(40)) * 2.0**-24)
            cell = _pack(axis[hit], outward[hit], layer, iu[hit], iv[hit])
            claims.add(cell, -np.floor(outward[hit] * height_k * 16 / pitch), hit)
    return claims.settle(samples, latent)


def radial_owners(
    depth: Floats,
    opacity: Floats,
    viewmat: Floats,
    K: Floats,
    latent: tuple[int, int],
    *,
    cells: int,
    pitch: float,
    layer_depth: float,
    opacity_threshold: float = 0.5,
    near: float = 0.01,
    normal_radius: int = 1,
    smoothing: int = 0,
) -> Owners:
    """Returns the owner map of one view for radial noise. cells: number along each side of the map's two squares; other
    arguments as for `surface_owners`."""
    samples = _samples(depth, opacity, viewmat, K, latent, opacity_threshold, near, normal_radius, smoothing, pitch)
    radius = np.linalg.norm(samples.point, axis=1)
    offset = (samples.normal * samples.point).sum(1)
    claims = _Claims()
    for side in (-1, 1):
        u, v = _square(samples.point / radius[:, None], side)
        base_u, base_v = np.floor((u + 1) * cells / 2), np.floor((v + 1) * cells / 2)
        near_side = (radius > 1e-6) & (side * samples.point[:, 2] >= -0.5 * radius)
        for du in range(-MAX_BOX // 2, MAX_BOX // 2):
            for dv in range(-MAX_BOX // 2, MAX_BOX // 2):
                iu, iv = base_u + du, base_v + dv
                in_map = near_side & (iu >= 0) & (iu < cells) & (iv >= 0) & (iv < cells)
                safe_u, safe_v = np.where(in_map, iu, 0), np.where(in_map, iv, 0)
                direction = _unsquare((2 * safe_u + 1) / cells - 1, (2 * safe_v + 1) / cells - 1, side)
                facing = (samples.normal * direction).sum(1)
                distance = offset / np.where(facing == 0, 1e-300, facing)
                plausible = in_map & (distance > 0) & (distance < (2**18 - 32) * layer_depth)
                from_sample = np.where(plausible, distance, 0.0)[:, None] * direction - samples.point
                hit = plausible & samples.holds(from_sample @ samples.rotation.T)
                axis, sign = np.full(hit.sum(), 3), np.full(hit.sum(), side)
                column_key = _pack(axis, sign, np.full(hit.sum(), -(2**18)), iu[hit], iv[hit])
                layer = np.floor(distance[hit] / layer_depth + (_mix(column_key) >> np.uint64(40)) * 2.0**-24)
                cell = _pack(axis, sign, layer, iu[hit], iv[hit])
                claims.add(cell, -np.floor(-distance[hit] * 16 / pitch), hit)
    return claims.settle(samples, latent)


def foreground(owners: Owners, channels: int, seed: int, nodes: Sequence[tuple[int, float]], stream: int = 0) -> Floats:
    """Returns n^-1/2 times the sum of the owned cells' values, [C, h, w]; 0 for a pixel without cells.

    nodes: (draw, weight); a cell's value is the weighted sum of its draws.
    """
    values = np.zeros((channels, len(owners.cells)))
    for node, weight in nodes:
        values += weight * normals(owners.cells, channels, seed, node, stream)
    h, w = owners.counts.shape
    sums = np.stack([np.bincount(owners.pixels, v, minlength=h * w) for v in values])
    return (sums / np.sqrt(np.maximum(owners.counts.ravel(), 1))).reshape(channels, h, w)


def normals(cells: Words, channels: int, seed: int, node: int, stream: int) -> Floats:
    """Returns values [C, M], N(0, 1), a pure function of (seed, stream, cell, node, channel): Philox4x32-10 and
    Box-Muller."""
    low, high = cells & np.uint64(0xFFFFFFFF), cells >> np.uint64(32)
    out = []
    for block in range((channels + 3) // 4):
        counter = [low, high, np.full_like(low, node), np.full_like(low, (stream << 24) | block)]
        x = philox4x32(counter, seed)
        for a, b in ((x[0], x[1]), (x[2], x[3])):
            uniform = ((a >> np.uint64(1)).astype(np.float32) + np.float32(0.5)).astype(np.float64) * 2.0**-31
            radius = np.sqrt(-2 * np.log(uniform))
            angle = 2 * np.pi * b.astype(np.float64) * 2.0**-32
            out += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(out)[:channels]


def philox4x32(counter: Sequence[Words], seed: int) -> list[Words]:
    """Runs ten rounds of Philox4x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3")."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = counter
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & mask, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


@dataclass
class _Samples:
    """The N render samples of a view that show the surface."""

    rows: Indices
    columns: Indices
    z: Floats
    ray: Floats
    """[N, 3] in the camera frame, third component 1."""
    normal: Floats
    """[N, 3] world axes, away from the camera, any length."""
    point: Floats
    """[N, 3] world coordinates."""
    pixels: Indices
    """[N] latent pixel, row-major."""
    rotation: Floats
    focal: tuple[float, float]
    size: tuple[int, int]
    """(rows, columns) of the image."""

    def holds(self, offset: Floats) -> NDArray[np.bool_]:
        """Returns [N] whether the points at `offset` [N, 3] from the samples, camera axes, project into their
        samples."""
        zc = self.z + offset[:, 2]
        px = self.focal[0] * (offset[:, 0] - self.ray[:, 0] * offset[:, 2])
        py = self.focal[1] * (offset[:, 1] - self.ray[:, 1] * offset[:, 2])
        return (zc > 0) & (-zc <= 2 * px) & (2 * px < zc) & (-zc <= 2 * py) & (2 * py < zc)


def _samples(
    depth: Floats,
    opacity: Floats,
    viewmat: Floats,
    K: Floats,
    latent: tuple[int, int],
    opacity_threshold: float,
    near: float,
    normal_radius: int,
    smoothing: int,
    pitch: float,
) -> _Samples:
    height, width = depth.shape
    h, w = latent
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    rotation = viewmat[:3, :3]
    covered = (opacity > opacity_threshold) & (depth > near) & np.isfinite(depth)
    z_image = _smoothed(np.where(covered, depth, 0.0), latent, smoothing, 8 * pitch)
    rows, columns = np.nonzero(covered)
    slope_x, slope_y = (s[rows, columns] for s in _inverse_depth_slopes(z_image, fx, fy, normal_radius))
    z = z_image[rows, columns]
    ray = np.stack([(columns + 0.5 - cx) / fx, (rows + 0.5 - cy) / fy, np.ones(len(z))], -1)
    normal = _clamped_normal(ray, z, slope_x * fx, slope_y * fy) @ rotation
    point = -rotation.T @ viewmat[:3, 3] + z[:, None] * (ray @ rotation)
    pixels = (2 * rows + 1) * h // (2 * height) * w + (2 * columns + 1) * w // (2 * width)
    return _Samples(rows, columns, z, ray, normal, point, pixels, rotation, (fx, fy), (height, width))


class _Claims:
    """Claims of samples on cells; the smallest rank wins, then the first sample."""

    def __init__(self) -> None:
        self.cells: list[Words] = []
        self.ranks: list[Floats] = []
        self.samples: list[Indices] = []

    def add(self, cells: Words, ranks: Floats, hit: NDArray[np.bool_]) -> None:
        """Adds claims of the samples marked by `hit`, in order."""
        self.cells.append(cells)
        self.ranks.append(ranks)
        self.samples.append(np.nonzero(hit)[0])

    def settle(self, samples: _Samples, latent: tuple[int, int]) -> Owners:
        (height, width), (h, w) = samples.size, latent
        cells, claimants = np.concatenate(self.cells), np.concatenate(self.samples)
        order = np.lexsort((claimants, np.concatenate(self.ranks), cells))
        unique, first = np.unique(cells[order], return_index=True)
        owner = samples.pixels[claimants[order]][first]
        every_row = (2 * np.arange(height) + 1) * h // (2 * height)
        every_column = (2 * np.arange(width) + 1) * w // (2 * width)
        total = np.bincount((every_row[:, None] * w + every_column).ravel(), minlength=h * w)
        counts = np.bincount(owner, minlength=h * w)
        seen = np.bincount(samples.pixels, minlength=h * w)
        return Owners(unique, owner, counts.reshape(h, w), (seen / np.maximum(total, 1)).reshape(h, w))


def _square(direction: Floats, side: int) -> tuple[Floats, Floats]:
    """Maps directions [N, 3] to the square of the hemisphere side * z >= 0, two arrays [N] in [-1, 1] and beyond
    (docs/noise.md: equal-area disc, then concentric map)."""
    radius = np.sqrt(np.maximum(1 - side * direction[:, 2], 0))
    angle = np.arctan2(direction[:, 1], direction[:, 0])
    quarter = np.round(angle / (np.pi / 2))
    across = radius * (angle - quarter * np.pi / 2) / (np.pi / 4)
    turn = quarter.astype(int) % 4
    u = np.choose(turn, [radius, -across, -radius, across])
    v = np.choose(turn, [across, radius, -across, -radius])
    return u, v


def _unsquare(u: Floats, v: Floats, side: int) -> Floats:
    """Returns the directions [N, 3] of points of the square."""
    radius = np.maximum(np.abs(u), np.abs(v))
    wide = np.abs(u) >= np.abs(v)
    major = np.where(wide, u, v)
    ratio = np.where(wide, v, u) / np.where(major == 0, 1, major)
    azimuth = np.where(
        wide, np.pi / 4 * ratio + np.pi * (u < 0), np.pi / 2 - np.pi / 4 * ratio + np.pi * ((v < 0) & ~wide)
    )
    polar = 2 * np.arcsin(radius / np.sqrt(2))
    return np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), side * np.cos(polar)], -1)


def _smoothed(z: Floats, latent: tuple[int, int], rounds: int, reach: float) -> Floats:
    """Returns the depth [H, W], 0 without surface; 1/z is averaged over pairs of opposite neighbors within `reach` of
    it."""
    ratio = min(z.shape[0] / latent[0], z.shape[1] / latent[1])
    spacings = [2**i for i in range(20) if 2 ** (i + 1) <= ratio][::-1]
    for spacing in spacings * rounds:
        total, count = 1 / np.where(z > 0, z, np.inf), np.ones_like(z)
        padded = np.pad(z, spacing)
        for direction in ((0, 1), (1, 0), (1, 1), (1, -1)):
            a, b = (np.roll(padded, np.multiply(sign * spacing, direction), (0, 1)) for sign in (1, -1))
            a, b = (image[spacing:-spacing, spacing:-spacing] for image in (a, b))
            both = (z > 0) & (a > 0) & (b > 0) & (np.abs(a - z) < reach) & (np.abs(b - z) < reach)
            total += np.where(both, 1 / np.where(both, a, 1) + 1 / np.where(both, b, 1), 0)
            count += 2 * both
        z = np.where(z > 0, count / np.where(z > 0, total, 1), 0.0)
    return z


def _inverse_depth_slopes(z: Floats, fx: float, fy: float, radius: int) -> tuple[Floats, Floats]:
    """Returns the slopes of 1/z per sample, two arrays [H, W], by least squares through the center; 1/z is linear on a
    plane."""
    height, width = z.shape
    padded = np.pad(z, radius)
    sxx, syy = np.full_like(z, RIDGE), np.full_like(z, RIDGE)
    sxy, bx, by = np.zeros_like(z), np.zeros_like(z), np.zeros_like(z)
    safe = np.maximum(z, 1e-30)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            other = padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width]
            limit = MAX_TANGENT * safe * ((dx / fx) ** 2 + (dy / fy) ** 2) ** 0.5
            valid = (z > 0) & (other > 0) & (np.abs(other - z) <= limit)
            delta = np.where(valid, (z - other) / (safe * np.maximum(other, 1e-30)), 0.0)
            sxx, sxy, syy = sxx + valid * dx * dx, sxy + valid * dx * dy, syy + valid * dy * dy
            bx, by = bx + delta * dx, by + delta * dy
    det = sxx * syy - sxy**2
    return (bx * syy - by * sxy) / det, (by * sxx - bx * sxy) / det


def _clamped_normal(ray: Floats, z: Floats, a: Floats, b: Floats) -> Floats:
    """Returns normals [N, 3] in the camera frame, pointing away from the camera, n . ray = 1/z, incidence cosine at
    least .1."""
    normal: Floats = np.stack([a, b, 1 / z - a * ray[:, 0] - b * ray[:, 1]], -1)
    along = ray / (z * (ray**2).sum(1))[:, None]
    across = normal - along
    limit = MAX_TANGENT * np.linalg.norm(along, axis=1)
    factor = np.minimum(1.0, limit / np.maximum(np.linalg.norm(across, axis=1), 1e-30))
    normal = along + factor[:, None] * across
    return normal


def _pack(axis: Indices, outward: Floats | Indices, layer: Floats | Indices, iu: Floats, iv: Floats) -> Words:
    """Cell key: axis (2 bits), sign (1), layer (19), column u (21), column v (21), most significant first."""
    fields = [(axis, 62), (outward > 0, 61), (layer + 2**18, 42), (iu + 2**20, 21), (iv + 2**20, 0)]
    key = np.zeros(len(axis), np.uint64)
    for value, shift in fields:
        key |= np.asarray(value).astype(np.uint64) << np.uint64(shift)
    return key


def _mix(x: Words) -> Words:
    """The finalizer of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = x ^ (x >> np.uint64(31))
    return mixed
