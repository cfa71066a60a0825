"""Damaged files: each is read, or refused with a UserError, in bounded memory, and no code in it is run."""

from __future__ import annotations

import io
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from present import as_a
from safetensors.torch import save

from gscfd.errors import UserError
from gscfd.gaussians import Gaussians, ball
from gscfd.ply import ply_bytes, read_tensors
from gscfd.runs.checkpoint import DamagedError
from gscfd.teachers.weights import read_json, read_state

MUTATIONS = 500
"""For each kind of file."""
MOST_BYTES = 20_000_000
"""Memory that reading a file of some kilobytes may take."""


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with one to four changes: bytes set, numbers of the header replaced, parts cut, doubled or moved."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(max(len(data), 1))
        length = draw.choice([1, 2, 8, 64])
        match draw.randrange(5):
            case 0:
                data[place : place + length] = draw.randbytes(length)
            case 1:
                del data[place : place + length * draw.choice([1, 30])]
            case 2:
                data[place:place] = data[place : place + length]
            case 3:
                text = draw.choice([b"9" * 18, b"-1", b"nan", b"0", b"2147483648", b"\0", b"\xff" * 8, b"\n"])
                data[place : place + len(text)] = text
            case _:
                head = draw.randrange(min(len(data), 400) or 1)
                data[head : head + 1] = draw.choice([b" ", b"\n", b"7", b"x", b"\x80"])
    return bytes(data)


def splat_tensors() -> dict[str, torch.Tensor]:
    return ball(20, radius=0.5, opacity=0.5, sh_degree=1, generator=torch.Generator().manual_seed(0)).tensors()


def ascii_ply() -> bytes:
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
    names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    head = ["ply", "format ascii 1.0", "element vertex 8", *(f"property float {n}" for n in names), "end_header"]
    return "\n".join(
        [*head, *[" ".join(f"{0.1 * (i + j):.3f}" for j in range(len(names))) for i in range(8)], ""]
    ).encode()


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(30.0), "b": torch.ones(4, 4)}, file)
    return file.getvalue()


def read_splat(path: Path) -> None:
    Gaussians(**read_tensors(path))


FILES: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "a.ply": (lambda: ply_bytes(splat_tensors()), read_splat),
    "b.ply": (ascii_ply, read_splat),
    "a.safetensors": (lambda: as_a(bytes, save(splat_tensors())), read_state),
    "a.pt": (pickled, read_state),
    "a.json": (lambda: b'{"a": [1, 2, {"b": null}], "c": "d", "e": 1e3}', read_json),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    make, read = FILES[name]
    content, draw, refused = make(), random.Random(0), 0
    path = tmp_path / name
    path.write_bytes(content)
    read(path)
    tracemalloc.start()
    try:
        for number in range(MUTATIONS):
            path.unlink()  # a file that is mapped into memory is not overwritten
            path.write_bytes(mutated(content, draw))
            try:
                read(path)
            except (UserError, DamagedError):
                refused += 1
            except Exception as error:
                kept = path.rename(tmp_path / f"found-{number}-{name}")
                pytest.fail(f"{kept}: {type(error).__name__}: {error}")
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert refused > MUTATIONS // 10, "control: the changes do damage"
