"""The 3DGS .ply: what viewers, engines and editors read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyParseError

from gscfd.errors import UserError
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


def read_ply(path: str | Path) -> Gaussians:
    """The Gaussians of a 3DGS .ply, whatever the order of its properties. Raises UserError when it is not one."""
    try:
        vertices = PlyData.read(str(path))["vertex"].data
    except (PlyParseError, KeyError, ValueError) as error:
        raise UserError(f"ply: expected a 3DGS .ply, but {path} cannot be read: {error}") from None
    names = vertices.dtype.names or ()
    rest = len([name for name in names if name.startswith("f_rest_")])

    def block(columns: list[str]) -> torch.Tensor:
        missing = [name for name in columns if name not in names]
        if missing:
            raise UserError(f"ply: expected a 3DGS .ply, but {path} has no property {', '.join(missing)}")
        stacked = np.stack([vertices[name] for name in columns], -1) if columns else np.zeros((len(vertices), 0))
        return torch.from_numpy(stacked.astype(np.float32))

    return Gaussians(
        means=block(["x", "y", "z"]),
        quats=block([f"rot_{i}" for i in range(4)]),
        scales=block([f"scale_{i}" for i in range(3)]),
        opacities=block(["opacity"])[:, 0],
        sh0=block([f"f_dc_{i}" for i in range(3)])[:, None],
        shN=block([f"f_rest_{i}" for i in range(rest)]).unflatten(1, (3, rest // 3)).transpose(1, 2).contiguous(),
    )
