"""Schedules t(tau): the diffusion time of each optimization step. Times are fractions of T, in [0, 1)."""

from __future__ import annotations

import math
from bisect import bisect_right

import torch


def anneal(fraction: float, points: tuple[tuple[float, float], ...], t_min: float, t_max: float) -> float:
    """Returns t / T = t_min + (t_max - t_min)(1 - p), with p piecewise linear through the points and clamped at both
    ends (CFD section 5 and its public configuration; the public code extrapolates past the last point instead).

    fraction: share of the stage's steps done, in [0, 1]. points: (fraction, p) with rising fractions.
    """
    return t_min + (t_max - t_min) * (1 - piecewise(fraction, points))


def piecewise(x: float, points: tuple[tuple[float, float], ...]) -> float:
    """The value at x of the line through the points (x, value), whose x rise; constant before the first and after the
    last."""
    xs = [at for at, _ in points]
    i = bisect_right(xs, x)
    if i == 0 or i == len(points):
        return points[max(i - 1, 0)][1]
    (x0, y0), (x1, y1) = points[i - 1], points[i]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def sqrt_anneal(fraction: float, t_min: float, t_max: float) -> float:
    """Returns t / T = t_max - (t_max - t_min) sqrt(fraction), t2 of Consistent3D Eq. 12.

    fraction: share of the stage's steps done, in [0, 1].
    """
    return t_max - (t_max - t_min) * math.sqrt(fraction)


def uniform(t_min: float, t_max: float, generator: torch.Generator) -> float:
    """Returns a uniform draw from [t_min, t_max), the time of plain SDS (Poole et al. 2022)."""
    return t_min + (t_max - t_min) * torch.rand((), generator=generator, dtype=torch.float64).item()


def render_size(fraction: float, sizes: tuple[tuple[float, int], ...], default: int) -> int:
    """Returns the render size in pixels: that of the last (fraction, pixels) reached, or `default` if none is.

    fraction: share of the stage's steps done, in [0, 1].
    """
    reached = bisect_right([share for share, _ in sizes], fraction)
    return sizes[reached - 1][1] if reached else default


def time_index(t: float, timesteps: int) -> int:
    """Returns the teacher's integer time for t in [0, 1). timesteps: number of the teacher's times."""
    return min(max(round(t * timesteps), 0), timesteps - 1)
