"""The 3DGS .ply: what viewers, engines and editors read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement

from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians


def write_ply(gaussians: Gaussians, path: str | Path) -> None:
    """Binary little-endian .ply with the properties and order of the 3DGS reference program (Kerbl et al. 2023):
    x y z nx ny nz f_dc_* f_rest_* opacity (logit) scale_* (log) rot_* (wxyz). f_rest is ordered by channel first."""
    values = {name: value.cpu().numpy() for name, value in gaussians.tensors().items()}
    n = len(gaussians)
    rest = values["shN"].transpose(0, 2, 1).reshape(n, -1)
    columns: list[tuple[str, np.ndarray]] = []

    def add(names: list[str], block: np.ndarray) -> None:
        columns.extend(zip(names, block.reshape(n, len(names)).T, strict=True))

    add(["x", "y", "z"], values["means"])
    add(["nx", "ny", "nz"], np.zeros((n, 3), np.float32))
    add([f"f_dc_{i}" for i in range(3)], values["sh0"])
    add([f"f_rest_{i}" for i in range(rest.shape[1])], rest)
    add(["opacity"], values["opacities"])
    add([f"scale_{i}" for i in range(3)], values["scales"])
    add([f"rot_{i}" for i in range(4)], values["quats"])
    vertices = np.empty(n, dtype=[(name, "<f4") for name, _ in columns])
    for name, column in columns:
        vertices[name] = column
    ply = PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<")
    with atomic_write(path) as file:
        ply.write(file)
