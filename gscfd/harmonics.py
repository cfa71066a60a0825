"""Real spherical harmonics of degree 0 to 3, in the order and signs of 3DGS."""

from __future__ import annotations

import torch
from torch import Tensor

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi)): rgb = SH_C0 * sh0 + 0.5."""


def rgb_to_sh0(rgb: Tensor) -> Tensor:
    """Returns the constant SH coefficients of colors in [0, 1]."""
    return (rgb - 0.5) / SH_C0


_SH_C1 = 0.4886025119029199


def harmonic_basis(degree: int, directions: Tensor) -> Tensor:
    """Returns the basis functions Y_k [..., (degree + 1)^2] for directions [..., 3] of any length, in the order and
    with the signs of 3DGS."""
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    bases = [torch.full_like(x, SH_C0)]
    if degree > 0:
        bases += [-_SH_C1 * y, _SH_C1 * z, -_SH_C1 * x]
    if degree > 1:
        bases += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * z * z - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
        ]
    if degree > 2:
        bases += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (5 * z * z - 1),
            0.3731763325901154 * z * (5 * z * z - 3),
            -0.4570457994644658 * x * (5 * z * z - 1),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return torch.stack(bases, -1)


def spherical_harmonics(degree: int, directions: Tensor, coefficients: Tensor) -> Tensor:
    """Returns the colors max(0, sum_k Y_k c_k + 1/2) [..., 3] for directions [..., 3] of any length and coefficients
    [..., K, 3]."""
    basis = harmonic_basis(degree, directions)
    return ((basis[..., None] * coefficients[..., : basis.shape[-1], :]).sum(-2) + 0.5).clamp_min(0.0)
