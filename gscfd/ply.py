"""The 3DGS .ply, the format that viewers, engines and editors read."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from plyfile import PlyData, PlyElement
from torch import Tensor

from gscfd.errors import UserError
from gscfd.files import atomic_write
from gscfd.harmonics import rgb_to_sh0

HEADER_LIMIT = 1 << 16
"""Maximum header size in bytes; that of a 3DGS .ply is about 2000 bytes."""
TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
WHITE = {"u1": 255.0, "u2": 65535.0, "f4": 1.0, "f8": 1.0}
"""Value of full red, green or blue, by type."""
MOST_COEFFICIENTS = {0, 9, 24, 45}
"""Possible numbers of f_rest properties: three channels of spherical harmonics of degree 0 to 3."""
LARGEST_LOG_POSITION = LARGEST_LOG_SCALE = 20.0
"""Natural logarithms of the largest distance along an axis, 4.9e8, and of the largest size: a splat of a house in
micrometers fits. Exports have the same limits."""
FLAT = "scale_2"
"""Size along the third axis, which the discs of 2DGS (Huang et al. 2024) do not have."""
SATURATED = 20.0
"""Replaces the infinite logit of an opacity of 1; its negative replaces the infinite logit of an opacity of 0 and the
infinite log of a size of 0. Some programs write such values."""
EXPORT_AGAIN = "export it again from the program it comes from"
NO_PLY = "cannot be read: it does not begin with the header of a .ply; export it as .ply from the program it comes from"


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes `ply_bytes` to the file, completely or not at all. Raises OSError on failure, and UserError for a splat
    without Gaussians, which no program opens."""
    if len(tensors["means"]) == 0:
        raise UserError("ply: expected at least one Gaussian to write, got none")
    content = ply_bytes(tensors)
    with atomic_write(path) as file:
        file.write(content)


def ply_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Returns a binary little-endian .ply with the properties of the 3DGS reference program (Kerbl et al. 2023), in its
    order: x y z nx ny nz f_dc_* f_rest_* opacity (logit) scale_* (log) rot_* (wxyz). f_rest is channel-major.

    tensors: the parameters of `Gaussians`, by name.
    """
    values = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    n = len(values["means"])
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
    content = io.BytesIO()
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(content)
    return content.getvalue()


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Returns the parameters of `Gaussians`, by name, from a 3DGS .ply.

    The file may be ascii or binary, with properties in any order, without f_rest, and with red, green and blue instead
    of f_dc. The discs of a 2DGS .ply, which has no scale_2, get a third size of e^-20. Other properties are ignored.
    Opacities of exactly 0 or 1 become logits of -20 or 20, and sizes of exactly 0 become logs of -20. Allocates at most
    a few times the size of the file.

    Raises UserError if the file cannot be read, is not a 3DGS .ply, is shorter than its header declares, or contains
    values that cannot be drawn.
    """
    try:
        with open(path, "rb") as file:
            return _tensors(*_vertices(file))
    except OSError as error:
        raise UserError(
            f"ply: expected a 3DGS .ply, but {path} cannot be read: {error.strerror}; check the path"
        ) from None
    except _Malformed as error:
        raise UserError(f"ply: expected a 3DGS .ply, but {path} {error}") from None


class _Malformed(Exception):
    """A malformed file. The message completes a sentence that begins with the file name."""


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: tuple[tuple[str, str], ...]
    """(name, numpy type) of each property; "list" for a list."""


def _vertices(file: IO[bytes]) -> tuple[np.ndarray, dict[str, str]]:
    """Returns the rows of the element "vertex" as a structured array, and the declared type of each property."""
    order, elements = _header(file)
    names = [element.name for element in elements]
    if "chunk" in names:
        raise _Malformed(f"is a compressed one; convert it to a plain .ply first, or {EXPORT_AGAIN} as .ply")
    if "vertex" not in names:
        raise _Malformed(f"has no element vertex; {EXPORT_AGAIN}")
    position = names.index("vertex")
    vertex = elements[position]
    if any(kind == "list" for _, kind in vertex.properties):
        raise _Malformed("has a list property in its vertices: it is a mesh, not a splat")
    if not vertex.properties or vertex.count == 0:
        raise _Malformed(f"has no Gaussians; {EXPORT_AGAIN}")
    read = _ascii_rows if order == "" else _binary_rows
    return read(file, order, elements[:position], vertex), dict(vertex.properties)


def _header(file: IO[bytes]) -> tuple[str, list[_Element]]:
    """Returns the byte order ("" for ascii) and the elements; the file is then at the first byte after the header."""
    lines: list[str] = []
    while not lines or lines[-1] != "end_header":
        line = file.readline(HEADER_LIMIT - file.tell())
        if not line.endswith(b"\n") or (not lines and line.strip() != b"ply"):
            raise _Malformed(NO_PLY)
        lines.append(line.decode("latin-1").strip())
    order, elements = None, list[_Element]()
    for words in (line.split() for line in lines[1:-1]):
        match words:
            case ["format", kind, "1.0"] if kind in BYTE_ORDERS:
                order = BYTE_ORDERS[kind]
            case ["element", name, count] if count.isdecimal() and len(count) < 19:
                elements.append(_Element(name, int(count), ()))
            case ["property", "list", _, _, name] if elements:
                elements[-1] = _with_property(elements[-1], name, "list")
            case ["property", kind, name] if elements and kind in TYPES:
                elements[-1] = _with_property(elements[-1], name, TYPES[kind])
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise _Malformed(
                    f"has the header line {' '.join(words)[:60]!r}, which is not valid in a .ply; {EXPORT_AGAIN}"
                )
    if order is None:
        raise _Malformed(f"does not say its format; {EXPORT_AGAIN}")
    return order, elements


def _with_property(element: _Element, name: str, kind: str) -> _Element:
    if name in (known for known, _ in element.properties):
        raise _Malformed(f"has two properties named {name[:60]!r}; {EXPORT_AGAIN}")
    return _Element(element.name, element.count, (*element.properties, (name, kind)))


def _binary_rows(file: IO[bytes], order: str, before: list[_Element], vertex: _Element) -> np.ndarray:
    if any(kind == "list" for element in before for _, kind in element.properties):
        raise _Malformed(f"has a list before its vertices, unlike any splat; {EXPORT_AGAIN}")
    dtype = np.dtype([(name, order + kind) for name, kind in vertex.properties])
    start = file.tell() + sum(e.count * np.dtype([(n, k) for n, k in e.properties]).itemsize for e in before)
    size = os.fstat(file.fileno()).st_size
    if start + vertex.count * dtype.itemsize > size:
        raise _Malformed(f"declares {vertex.count} Gaussians, but has only {size} bytes; {EXPORT_AGAIN}")
    file.seek(start)
    return np.fromfile(file, dtype, vertex.count)


def _ascii_rows(file: IO[bytes], order: str, before: list[_Element], vertex: _Element) -> np.ndarray:
    skipped = sum(element.count for element in before)
    lines = [line for line in file.read().splitlines() if line.strip()][skipped : skipped + vertex.count]
    if len(lines) < vertex.count:
        raise _Malformed(f"declares {vertex.count} Gaussians, but has only {len(lines)} lines; {EXPORT_AGAIN}")
    dtype = np.dtype([(name, "f8") for name, _ in vertex.properties])
    try:
        values = np.array(b" ".join(lines).split(), dtype=np.float64)
    except ValueError as error:
        raise _Malformed(f"has a value that is not a number ({error}); {EXPORT_AGAIN}") from None
    if len(values) != vertex.count * len(vertex.properties):
        raise _Malformed(f"has {len(values)} values for {vertex.count} x {len(vertex.properties)}; {EXPORT_AGAIN}")
    return values.view(dtype)


def _color(values: Tensor, kinds: list[str]) -> Tensor:
    """Returns red, green and blue in [0, 1]: bytes are divided by 255, shorts by 65535, floats by 1."""
    if not set(kinds) <= WHITE.keys():
        raise _Malformed(f"has colors of a type other than uchar, ushort, float or double; {EXPORT_AGAIN}")
    color = values / torch.tensor([WHITE[kind] for kind in kinds])
    if (color > 1 + 1e-4).any():
        raise _Malformed(f"has colors as floats above 1, expected 0 to 1; divide them by 255, or {EXPORT_AGAIN}")
    return color


def _tensors(vertices: np.ndarray, kinds: dict[str, str]) -> dict[str, Tensor]:
    names = vertices.dtype.names or ()
    rest = len([name for name in names if name.startswith("f_rest_")])
    from_bytes = "f_dc_0" not in names and {"red", "green", "blue"} <= set(names)
    color = ["red", "green", "blue"] if from_bytes else [f"f_dc_{i}" for i in range(3)]
    further = [f"f_rest_{i}" for i in range(rest)]
    means, quats, scales = ["x", "y", "z"], [f"rot_{i}" for i in range(4)], [f"scale_{i}" for i in range(3)]
    wanted = [*means, *color, *further, "opacity", *scales, *quats]
    missing = [n for n in wanted if n not in names and n != FLAT]
    if missing:
        raise _Malformed(f"has no property {', '.join(missing)}; {EXPORT_AGAIN}")
    if rest not in MOST_COEFFICIENTS:
        raise _Malformed(f"has {rest} properties f_rest_*, expected 0, 9, 24 or 45; {EXPORT_AGAIN}")

    def block(columns: list[str]) -> Tensor:
        stacked = np.empty((len(vertices), len(columns)), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for i, name in enumerate(columns):
                stacked[:, i] = vertices[name] if name in names else -SATURATED
        return torch.from_numpy(stacked)

    values = {
        "means": block(means),
        "quats": block(quats),
        "scales": block(scales).nan_to_num(torch.nan, torch.inf, -SATURATED),
        "opacities": block(["opacity"])[:, 0].nan_to_num(torch.nan, SATURATED, -SATURATED),
        "sh0": (rgb_to_sh0(_color(block(color), [kinds[name] for name in color])) if from_bytes else block(color))[
            :, None
        ],
        "shN": block(further).unflatten(1, (3, rest // 3)).transpose(1, 2).contiguous(),
    }
    _check_values(values)
    return values


def _check_values(values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        bad = int((~value.isfinite()).flatten(1).any(1).sum()) if value.ndim > 1 else int((~value.isfinite()).sum())
        if bad:
            raise _Malformed(f"has {bad} Gaussians whose {name} are not finite; remove them in a splat editor")
    limits = {
        "a rotation of length 0": values["quats"].norm(dim=1) < 1e-12,
        "a rotation of a length above 1e12": values["quats"].norm(dim=1) > 1e12,
        f"a position beyond e^{LARGEST_LOG_POSITION:.0f}": (values["means"].abs().log() > LARGEST_LOG_POSITION).any(1),
        f"a size above e^{LARGEST_LOG_SCALE:.0f}": (values["scales"] > LARGEST_LOG_SCALE).any(1),
    }
    for what, mask in limits.items():
        if mask.any():
            raise _Malformed(f"has {int(mask.sum())} Gaussians with {what}; remove them in a splat editor")
