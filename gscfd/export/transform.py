"""Changes of a splat's axes, unit or degree of spherical harmonics."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from gscfd.export import Axes
from gscfd.gaussians import Gaussians
from gscfd.harmonics import harmonic_basis

FROM_Z_UP: dict[Axes, list[list[float]]] = {
    "z-up": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "y-up": [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    "y-down": [[0, -1, 0], [0, 0, -1], [1, 0, 0]],
}


def change_of_axes(source: Axes, target: Axes) -> Tensor:
    """Returns R [3, 3] float64 with target = R source."""
    a, b = (torch.tensor(FROM_Z_UP[axes], dtype=torch.float64) for axes in (source, target))
    return b @ a.T


def transformed(gaussians: Gaussians, rotation: Tensor, scale: float = 1.0) -> Gaussians:
    """Returns the splat rotated by `rotation` [3, 3] (float64) about the origin, then scaled."""
    if scale == 1 and torch.equal(rotation, torch.eye(3, dtype=rotation.dtype)):
        return gaussians
    values = {name: value.double().cpu() for name, value in gaussians.tensors().items()}
    quaternions = Rotation.from_matrix(rotation.numpy()) * Rotation.from_quat(values["quats"], scalar_first=True)
    values["means"] = scale * values["means"] @ rotation.T
    values["scales"] = values["scales"] + math.log(scale)
    values["quats"] = torch.from_numpy(quaternions.as_quat(scalar_first=True))
    values["shN"] = turned_harmonics(values["shN"], rotation)
    return Gaussians(**{name: value.float() for name, value in values.items()})


def turned_harmonics(coefficients: Tensor, rotation: Tensor) -> Tensor:
    """Returns the coefficients [N, K - 1, 3] whose color toward R d equals that of the given ones toward d.

    Solves Y(R d) c' = Y(d) c for enough directions d; the solution is exact because a rotation keeps each degree's
    span.
    """
    degree = math.isqrt(coefficients.shape[1] + 1) - 1
    if degree == 0:
        return coefficients
    directions = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=rotation.dtype)
    before, after = (harmonic_basis(degree, d)[:, 1:] for d in (directions, directions @ rotation.T))
    turn: Tensor = torch.linalg.lstsq(after, before).solution
    return turn @ coefficients


def with_degree(gaussians: Gaussians, degree: int) -> Gaussians:
    """Returns the splat with spherical harmonics of this degree, 0 to 3, truncated or zero-padded."""
    values = gaussians.tensors()
    rest = values["shN"][:, : (degree + 1) ** 2 - 1]
    missing = (degree + 1) ** 2 - 1 - rest.shape[1]
    values["shN"] = torch.cat([rest, rest.new_zeros(len(gaussians), missing, 3)], 1)
    return Gaussians(**values)


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each quaternion [N, 4] the index [N] of its largest component, made positive, and the others [N, 3]
    as multiples of sqrt(1/2)."""
    unit = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(unit).argmax(1)
    unit *= np.where(np.take_along_axis(unit, largest[:, None], 1) < 0, -1, 1)
    others = unit[np.arange(4) != largest[:, None]].reshape(-1, 3)
    return largest, others * math.sqrt(2)
