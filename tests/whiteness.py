"""Statistics of noise images: how white they are, and how much of one view another one predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
import scipy.stats
import torch
from torch import Tensor

from gscfd.noise import kinds
from gscfd.noise.field import NoiseField
from gscfd.noise_kernels import cpu
from gscfd.types import Cameras, Render


def morans_i(images: Tensor) -> tuple[Tensor, Tensor]:
    """([F], [F]) Moran's I with rook neighbors, and its two-sided p-value under normality, of images [F, h, w]."""
    x = images.double() - images.double().mean((1, 2), keepdim=True)
    h, w = x.shape[1:]
    n, pairs = h * w, h * (w - 1) + w * (h - 1)
    products = (x[:, :, 1:] * x[:, :, :-1]).sum((1, 2)) + (x[:, 1:] * x[:, :-1]).sum((1, 2))
    value = n / pairs * products / (x**2).sum((1, 2))
    degree = torch.full((h, w), 4.0, dtype=torch.float64)
    degree[0], degree[-1] = degree[0] - 1, degree[-1] - 1
    degree[:, 0], degree[:, -1] = degree[:, 0] - 1, degree[:, -1] - 1
    s0, s1, s2 = 2.0 * pairs, 4.0 * pairs, 4 * (degree**2).sum()
    mean = -1 / (n - 1)
    variance = (n**2 * s1 - n * s2 + 3 * s0**2) / ((n**2 - 1) * s0**2) - mean**2
    z = (value - mean) / variance.sqrt()
    return value, torch.from_numpy(2 * scipy.stats.norm.sf(z.abs().numpy()))


def ks_normal(samples: Tensor) -> float:
    """p-value of the Kolmogorov-Smirnov test against N(0, 1)."""
    return float(scipy.stats.kstest(samples.flatten().double().numpy(), "norm", method="asymp").pvalue)


def ks_uniform(p_values: Tensor | list[float]) -> float:
    return float(scipy.stats.kstest(np.asarray(p_values), "uniform", method="asymp").pvalue)


def assert_white_pixels(fields: Tensor) -> None:
    """Unit variance in every pixel and none shared by neighbors, over the T independent images of fields [T, h, w]."""
    count = len(fields)
    variance = (fields**2).mean(0)
    spread = variance.std().item() / math.sqrt(2 / count)
    across, down = (fields[:, :, 1:] * fields[:, :, :-1]).mean(0), (fields[:, 1:] * fields[:, :-1]).mean(0)
    neighbors = torch.cat([across.flatten(), down.flatten()]).square().mean().sqrt().item() * math.sqrt(count)
    print(f"variance {variance.mean():.5f}, its sd {spread:.3f} of expected, neighbors {neighbors:.3f} / sqrt(T)")
    assert abs(variance.mean() - 1) < 0.002
    assert abs(spread - 1) < 0.05
    assert neighbors <= 1.05


@dataclass
class View:
    """Owner map of one view."""

    cells: np.ndarray
    """[M] cell keys."""
    pixels: np.ndarray
    """[M] row-major latent pixel of each."""
    counts: np.ndarray
    """[h * w] cells per latent pixel."""
    coverage: np.ndarray
    """[h * w] covered share of each latent pixel."""


def owner_views(field: NoiseField, cameras: Cameras, render: Render, *, radial: bool = False) -> list[View]:
    grid = kinds.radial_grid(field) if radial else kinds.grid(field)
    parts = (kinds.radial_parts if radial else kinds.surface_parts)(field, cameras, render, 0)
    depth, opacity = kinds.surface_images(field, cameras, render)
    views = []
    for v in range(len(cameras)):
        cells, pixels = cpu.owners(grid, depth[v], opacity[v], cameras.viewmats[v], cameras.Ks[v])
        counts, coverage = parts.counts[v].flatten().numpy(), parts.coverage[v].flatten().numpy()
        views.append(View(cells.numpy(), pixels.numpy(), counts, coverage))
    return views


def shared(a: View, b: View) -> sparse.csr_matrix:
    """R [P, P]: N_pq / sqrt(n_p n_q), N_pq the cells that pixel p owns in view a and pixel q in view b."""
    _, in_a, in_b = np.intersect1d(a.cells, b.cells, return_indices=True)
    ones = np.ones(len(in_a))
    n = len(a.counts), len(b.counts)
    common = sparse.coo_matrix((ones, (a.pixels[in_a], b.pixels[in_b])), shape=n).tocsr()
    scale_a, scale_b = (sparse.diags(np.maximum(v.counts, 1) ** -0.5) for v in (a, b))
    return (scale_a @ common @ scale_b).tocsr()


def consistency(a: View, b: View) -> float:
    """E: the share of variance that view b predicts, mean over the pixels of view a that the object fills."""
    r = shared(a, b)
    return float(np.asarray(r.multiply(r).sum(1)).ravel()[a.coverage == 1].mean())


def far_consistency(a: View, b: View, points_a: Tensor, points_b: Tensor, distance: float) -> float:
    """The part of `consistency` between pixels that see points more than `distance` apart.

    points_a, points_b: [P, S, 3] surface points seen in each latent pixel, NaN where a sample sees none.
    """
    r = shared(a, b).tocoo()
    apart = (points_a[r.row][:, :, None] - points_b[r.col][:, None]).norm(dim=-1)
    nearest = apart.nan_to_num(nan=np.inf).amin((1, 2)).numpy()
    far = np.zeros(len(a.counts))
    np.add.at(far, r.row, np.where(nearest > distance, r.data**2, 0.0))
    return float(far[a.coverage == 1].mean())
