"""Gaussians.load_ply on the files of other programs, and on broken ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from present import present

from gscfd.errors import UserError
from gscfd.gaussians import Gaussians, ball
from gscfd.harmonics import SH_C0
from gscfd.ply import HEADER_LIMIT

PLACES = [*"xyz"]
NORMALS = ["nx", "ny", "nz"]
COLOR = [f"f_dc_{i}" for i in range(3)]
SHAPE = ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]


def rest(count: int) -> list[str]:
    return [f"f_rest_{i}" for i in range(count)]


def rows(names: list[str], count: int = 12, kinds: dict[str, str] | None = None) -> np.ndarray:
    rng = np.random.default_rng(0)
    table = np.empty(count, [(name, (kinds or {}).get(name, "f4")) for name in names])
    for name in names:
        whole = table[name].dtype.kind in "iu"
        table[name] = rng.integers(0, 256, count) if whole else rng.normal(size=count)
    return table


def save(path: Path, table: np.ndarray, *, text: bool = False, byte_order: str = "<", extra: bool = False) -> Path:
    elements = [PlyElement.describe(table, "vertex")]
    if extra:
        camera = np.zeros(3, [("view", "u1"), ("px", "f8")])
        elements = [PlyElement.describe(camera, "camera"), *elements, PlyElement.describe(camera, "tail")]
    PlyData(elements, text=text, byte_order=byte_order, comments=["of another program"]).write(str(path))
    return path


LAYOUTS = {
    "INRIA, degree 3": PLACES + NORMALS + COLOR + rest(45) + SHAPE,
    "gsplat, degree 2": PLACES + COLOR + rest(24) + SHAPE,
    "degree 0, without normals": PLACES + COLOR + SHAPE,
    "another order": SHAPE[::-1] + rest(9)[::-1] + COLOR[::-1] + PLACES[::-1],
    "further properties": PLACES + ["red", "green", "blue", "label"] + COLOR + SHAPE + ["confidence"],
}


@pytest.mark.parametrize("how", ["<", ">", "ascii"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_other_programs_are_read(tmp_path: Path, layout: str, how: str) -> None:
    kinds = {"red": "u1", "green": "u1", "blue": "u1", "label": "i4", "confidence": "f8"}
    table = rows(LAYOUTS[layout], kinds=kinds)
    path = save(tmp_path / "a.ply", table, text=how == "ascii", byte_order=how if how != "ascii" else "=", extra=True)
    read = Gaussians.load_ply(path)
    k = len([name for name in present(table.dtype.names) if name.startswith("f_rest")]) // 3
    expected = {"means": PLACES, "scales": SHAPE[1:4], "quats": SHAPE[4:], "opacities": ["opacity"], "sh0": COLOR}
    for name, columns in expected.items():
        value = read.tensors()[name].reshape(len(table), -1)
        assert np.array_equal(value, np.stack([table[c] for c in columns], -1)), name
    assert read.shN.shape == (12, k, 3)
    if k:
        assert np.array_equal(read.shN[:, k - 1, 2].detach(), table[f"f_rest_{3 * k - 1}"]), "channel by channel"


def test_bytes_of_color_stand_for_f_dc_where_there_is_none(tmp_path: Path) -> None:
    colors = ["red", "green", "blue"]
    table = rows(PLACES + colors + SHAPE, kinds=dict.fromkeys(colors, "u1"))
    read = Gaussians.load_ply(save(tmp_path / "a.ply", table))
    rgb = SH_C0 * read.sh0[:, 0].detach() + 0.5
    assert np.allclose(255 * rgb, np.stack([table[c] for c in colors], -1), atol=1e-3)


def test_the_discs_of_2dgs_are_flat(tmp_path: Path) -> None:
    names = [name for name in PLACES + COLOR + SHAPE if name != "scale_2"]
    table = rows(names)
    read = Gaussians.load_ply(save(tmp_path / "a.ply", table))
    assert np.array_equal(read.scales[:, :2].detach(), np.stack([table["scale_0"], table["scale_1"]], -1))
    assert (read.scales[:, 2] == -20).all()
    without = rows([name for name in names if name != "scale_1"])
    with pytest.raises(UserError, match="no property scale_1;"):
        Gaussians.load_ply(save(tmp_path / "b.ply", without))


def test_windows_line_ends_in_the_header_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ply", rows(PLACES + COLOR + SHAPE))
    head, body = path.read_bytes().split(b"end_header\n", 1)
    (tmp_path / "b.ply").write_bytes(head.replace(b"\n", b"\r\n") + b"end_header\r\n" + body)
    assert torch.equal(Gaussians.load_ply(tmp_path / "b.ply").means, Gaussians.load_ply(path).means)


def test_full_opacity_and_no_size_are_finite_afterwards(tmp_path: Path) -> None:
    table = rows(PLACES + COLOR + SHAPE)
    table["opacity"][:2], table["scale_2"][0] = [np.inf, -np.inf], -np.inf
    read = Gaussians.load_ply(save(tmp_path / "a.ply", table))
    assert read.opacities[:2].tolist() == [20, -20] and read.scales[0, 2] == -20


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", np.nan, "1 Gaussians whose means are not finite"),
        ("opacity", np.nan, "whose opacities are not finite"),
        ("scale_0", np.inf, "whose scales are not finite"),
        ("f_dc_1", -np.inf, "whose sh0 are not finite"),
        ("y", 1e30, "a position beyond e\\^20"),
        ("scale_1", 50.0, "a size above e\\^20"),
        ("rot_0", 1e20, "a rotation of a length above"),
    ],
)
def test_values_that_cannot_be_drawn_are_named(tmp_path: Path, name: str, value: float, message: str) -> None:
    table = rows(PLACES + COLOR + SHAPE)
    table[name][3] = value
    with pytest.raises(UserError, match=message):
        Gaussians.load_ply(save(tmp_path / "a.ply", table))


def test_a_rotation_of_length_0_is_named(tmp_path: Path) -> None:
    table = rows(PLACES + COLOR + SHAPE)
    for i in range(4):
        table[f"rot_{i}"][5] = 0
    with pytest.raises(UserError, match="1 Gaussians with a rotation of length 0"):
        Gaussians.load_ply(save(tmp_path / "a.ply", table))


@pytest.mark.parametrize("kind", ["binary_little_endian", "ascii"])
@pytest.mark.parametrize("count", [13, 10**12, 10**18, 10**40])
def test_a_header_that_lies_about_the_count_costs_no_memory(tmp_path: Path, kind: str, count: int) -> None:
    path = save(tmp_path / "a.ply", rows(PLACES + COLOR + SHAPE), text=kind == "ascii")
    path.write_bytes(path.read_bytes().replace(b"element vertex 12", b"element vertex %d" % count))
    tracemalloc.start()
    with pytest.raises(UserError, match="declares|header line"):
        Gaussians.load_ply(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_a_file_without_an_end_of_its_header_is_not_read_to_its_end(tmp_path: Path) -> None:
    with open(tmp_path / "a.ply", "wb") as file:
        file.write(b"ply\nformat ascii 1.0\ncomment ")
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(UserError, match="header"):
        Gaussians.load_ply(tmp_path / "a.ply")
    assert tracemalloc.get_traced_memory()[1] < 20 * HEADER_LIMIT
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "does not begin with the header"),
        (b"PNG\n", "does not begin with the header"),
        (b"ply\nend_header\n", "does not say its format"),
        (b"ply\nformat ascii 1.0\nend_header\n", "no element vertex"),
        (b"ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nend_header\n", "no Gaussians"),
        (b"ply\nformat ascii 1.0\nelement vertex -1\nend_header\n", "header line 'element vertex -1'"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty word x\nend_header\n", "header line 'property word x'"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n", "it is a mesh"),
        (b"ply\nformat ascii 1.0\nelement chunk 1\nelement vertex 1\nend_header\n", "is a compressed one"),
        (
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float x\nend_header\n",
            "two properties",
        ),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\nred\n", "not a number"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1 2\n", "2 values for 1 x 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "a.ply").write_bytes(text)
    with pytest.raises(UserError, match=message):
        Gaussians.load_ply(tmp_path / "a.ply")


def test_three_or_nine_coefficients_but_not_seven(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="7 properties f_rest"):
        Gaussians.load_ply(save(tmp_path / "a.ply", rows(PLACES + COLOR + rest(7) + SHAPE)))


def test_a_missing_file_and_a_folder_are_user_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ply", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            Gaussians.load_ply(path)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One damage: cut off, bytes changed, a piece left out, doubled or moved, or a number in the header replaced."""
    damage, at = rng.integers(6), int(rng.integers(len(data)))
    length = int(rng.integers(1, 64))
    if damage == 0:
        return data[:at]
    if damage == 1:
        changed = bytearray(data)
        for i in rng.integers(len(data), size=length):
            changed[i] = rng.choice([0, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
        return bytes(changed)
    if damage == 2:
        return data[:at] + data[at + length :]
    if damage == 3:
        return data[:at] + data[at : at + length] + data[at:]
    if damage == 4:
        other = int(rng.integers(len(data)))
        return data[:at] + data[other : other + length] + data[at + length :]
    number = rng.choice([b"0", b"-5", b"7", b"99999999999", b"9" * 30, b"1e9", b"nan", b"list"])
    words = data[: data.index(b"end_header")].split(b" ")
    words[int(rng.integers(1, len(words)))] = number
    return b" ".join(words) + data[data.index(b"end_header") :]


def test_a_thousand_broken_files_are_splats_or_user_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    splat = ball(6, radius=0.5, opacity=0.5, sh_degree=1, generator=torch.Generator().manual_seed(0))
    splat.save_ply(tmp_path / "little.ply")
    table = PlyData.read(str(tmp_path / "little.ply"))["vertex"].data
    save(tmp_path / "ascii.ply", table, text=True)
    save(tmp_path / "big.ply", table.astype(table.dtype.newbyteorder(">")), byte_order=">", extra=True)
    originals = [(tmp_path / name).read_bytes() for name in ("little.ply", "ascii.ply", "big.ply")]
    outcomes = {"splat": 0, "error": 0}
    tracemalloc.start()
    for i in range(1000):
        (tmp_path / "a.ply").write_bytes(mutated(originals[i % 3], rng))
        try:
            read = Gaussians.load_ply(tmp_path / "a.ply")
        except UserError as error:
            outcomes["error"] += 1
            assert "\n" not in str(error) and len(str(error)) < 500
            continue
        outcomes["splat"] += 1
        assert isinstance(read, Gaussians) and all(value.isfinite().all() for value in read.tensors().values())
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()
    assert outcomes["splat"] > 50 and outcomes["error"] > 500, "control: both happen"


@pytest.mark.parametrize("kind, white", [("uchar", 255), ("ushort", 65535), ("float", 1), ("float", 255)])
def test_colors_have_the_range_of_their_type_or_are_refused(kind: str, white: int, tmp_path: Path) -> None:
    names = ["x", "y", "z", "opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    lines = ["ply", "format ascii 1.0", "element vertex 1", *(f"property float {name}" for name in names)]
    lines += [*(f"property {kind} {name}" for name in ("red", "green", "blue")), "end_header", ""]
    (tmp_path / "x.ply").write_text("\n".join([*lines, f"0 0 0 0 0 0 0 1 0 0 0 {white} {white} 0", "", ""]))
    if (kind, white) == ("float", 255):
        with pytest.raises(UserError, match="floats above 1"):
            Gaussians.load_ply(tmp_path / "x.ply")
        return
    sh0 = Gaussians.load_ply(tmp_path / "x.ply").sh0.detach().flatten()
    assert torch.allclose(sh0, torch.tensor([1.0, 1.0, -1.0]) * 0.5 / 0.28209479177387814, atol=1e-4)
