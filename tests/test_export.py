"""`python -m gscfd.export`: every file is read back by a program that is not gscfd, and compared as pictures.

Readers: plyfile, pygltflib, trimesh, and where they are installed PlayCanvas' splat-transform (npm install
-g @playcanvas/splat-transform, or its path in SPLAT_TRANSFORM) and Chromium (or its path in CHROMIUM).
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from chromium import CHROMIUM, FLAGS
from PIL import Image
from plyfile import PlyData
from present import as_a
from torch import Tensor
from torch.nn.functional import normalize

from gscfd.cameras import turntable
from gscfd.errors import UserError
from gscfd.export import FORMATS, Axes, Format, mesh, sog, surface, texture, write
from gscfd.export.__main__ import main
from gscfd.export.options import ExportOptions
from gscfd.export.spz import fractional_bits
from gscfd.export.transform import FROM_Z_UP, change_of_axes, transformed, turned_harmonics, with_degree
from gscfd.export.turntable import THREE_QUARTERS, WHOLE_RADIUS, turntable_frames
from gscfd.export.write import APPLIES, AXES, MESHES, SPLATS
from gscfd.gaussians import Gaussians, ball
from gscfd.harmonics import harmonic_basis, rgb_to_sh0
from gscfd.runs import names as runs_names
from gscfd.types import Cameras

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from mesh_quality import ray_cast

LOSSLESS = 50.0
VIEWS = turntable(4, size=128)
SPLAT_TRANSFORM = os.environ.get("SPLAT_TRANSFORM") or shutil.which("splat-transform")
needs_splat_transform = pytest.mark.skipif(
    SPLAT_TRANSFORM is None, reason="needs splat-transform: npm install -g @playcanvas/splat-transform"
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, or its path in CHROMIUM")


def shell(degree: int, count: int = 3000, radius: float = 0.7) -> Gaussians:
    """A sphere of flat discs in many colors, nothing symmetric about it."""
    g = torch.Generator().manual_seed(0)
    normal = normalize(torch.randn(count, 3, generator=g), dim=-1)
    towards_normal = torch.stack([1 + normal[:, 2], -normal[:, 1], normal[:, 0], torch.zeros(count)], -1)
    size = radius * math.sqrt(4 * math.pi / count)
    rgb = 0.5 + 0.4 * torch.sin(4 * normal * torch.tensor([1.0, 2.0, 3.0]))
    return Gaussians(
        means=radius * normal,
        quats=3 * normalize(towards_normal, dim=-1),
        scales=torch.tensor([0.8 * size, 0.6 * size, 0.05 * size]).log() + 0.1 * torch.randn(count, 3, generator=g),
        opacities=3 + 0.5 * torch.randn(count, generator=g),
        sh0=rgb_to_sh0(rgb)[:, None],
        shN=0.05 * torch.randn(count, (degree + 1) ** 2 - 1, 3, generator=g),
    )


@pytest.fixture(scope="module", params=[0, 3], ids=["degree 0", "degree 3"])
def splat(request: pytest.FixtureRequest) -> Gaussians:
    return shell(request.param)


degree_0 = pytest.mark.parametrize("splat", [0], indirect=True)
degree_3 = pytest.mark.parametrize("splat", [3], indirect=True)


@pytest.fixture
def source(splat: Gaussians, tmp_path: Path) -> Path:
    splat.save_ply(tmp_path / "splat.ply")
    return tmp_path / "splat.ply"


def pictures(gaussians: Gaussians, cameras: Cameras = VIEWS) -> Tensor:
    return gaussians.render(cameras).over(torch.ones(3)).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(max((a.double() - b.double()).square().mean().item(), 1e-20))


def similarity(a: Gaussians, b: Gaussians) -> float:
    return psnr(pictures(a), pictures(b))


def half_turn(axis: int) -> Tensor:
    signs = -torch.ones(3, dtype=torch.float64)
    signs[axis] = 1
    return torch.diag(signs)


def back(gaussians: Gaussians, axes: Axes) -> Gaussians:
    return transformed(gaussians, change_of_axes(axes, "z-up"))


def by_plyfile(path: Path) -> Gaussians:
    """Read independently of Gaussians.load_ply, from the layout that the 3DGS reference program documents."""
    v = PlyData.read(str(path))["vertex"]

    def block(names: list[str]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(v[n], np.float32) for n in names], -1))

    rest = [f"f_rest_{i}" for i in range(45) if f"f_rest_{i}" in v.data.dtype.names]
    n, k = len(v.data), len(rest) // 3
    coefficients = [block([f"f_rest_{j * k + i}" for j in range(3)]) for i in range(k)]
    return Gaussians(
        means=block(["x", "y", "z"]),
        quats=block([f"rot_{i}" for i in range(4)]),
        scales=block([f"scale_{i}" for i in range(3)]),
        opacities=torch.from_numpy(np.asarray(v["opacity"], np.float32)),
        sh0=block([f"f_dc_{i}" for i in range(3)])[:, None],
        shN=torch.stack(coefficients, 1) if k else torch.zeros(n, 0, 3),
    )


def by_splat_transform(path: Path) -> Gaussians:
    out = path.with_name("read-back.ply")
    assert SPLAT_TRANSFORM is not None
    command = [SPLAT_TRANSFORM] if not SPLAT_TRANSFORM.endswith("mjs") else ["node", SPLAT_TRANSFORM]
    subprocess.run([*command, "-q", "-w", path, out], check=True, capture_output=True, timeout=240)
    return by_plyfile(out)


def by_pygltflib(path: Path) -> dict[str, np.ndarray]:
    """The attributes and indices of the only primitive."""
    gltf = pygltflib.GLTF2().load(str(path))
    (primitive,) = gltf.meshes[0].primitives
    kinds = {5126: np.float32, 5121: np.uint8, 5123: np.uint16, 5125: np.uint32}
    widths = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}

    def array(index: int) -> np.ndarray:
        accessor = gltf.accessors[index]
        view = gltf.bufferViews[accessor.bufferView]
        raw = gltf.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
        return np.frombuffer(raw, kinds[accessor.componentType]).reshape(accessor.count, widths[accessor.type])

    arrays = {name: array(index) for name, index in vars(primitive.attributes).items() if index is not None}
    return arrays if primitive.indices is None else {**arrays, "indices": array(primitive.indices)[:, 0]}


# The formats, read back.


def test_a_ply_is_the_splat_itself(splat: Gaussians, source: Path) -> None:
    assert main([str(source), "--to", "ply", "--out", str(source.with_name("b.ply"))]) == 0
    for name, value in by_plyfile(source.with_name("b.ply")).tensors().items():
        assert torch.equal(value, splat.tensors()[name]), name


def test_a_ply_of_degree_3_is_filled_up_with_zeros_and_looks_the_same(splat: Gaussians, source: Path) -> None:
    out = source.with_name("b.ply")
    assert main([str(source), "--to", "ply", "--sh-degree", "3", "--out", str(out)]) == 0
    padded = by_plyfile(out)
    assert padded.sh_degree == 3 and similarity(padded, splat) > 100


@degree_3
def test_a_ply_of_degree_1_keeps_the_coefficients_of_degree_1(source: Path) -> None:
    out = source.with_name("b.ply")
    assert main([str(source), "--to", "ply", "--sh-degree", "1", "--out", str(out)]) == 0
    cut, whole = by_plyfile(out), with_degree(by_plyfile(source), 3)
    assert torch.equal(cut.shN, whole.shN[:, :3])


def test_a_glb_holds_the_splat_without_loss(splat: Gaussians, source: Path) -> None:
    assert main([str(source), "--to", "glb"]) == 0
    a = {
        name.split(":")[-1]: torch.from_numpy(v.copy()) for name, v in by_pygltflib(source.with_suffix(".glb")).items()
    }
    rest = [a[f"SH_DEGREE_{d}_COEF_{i}"] for d in range(1, splat.sh_degree + 1) for i in range(2 * d + 1)]
    read = Gaussians(
        means=a["POSITION"],
        quats=a["ROTATION"].roll(1, 1),
        scales=a["SCALE"].log(),
        opacities=a["OPACITY"][:, 0].logit(),
        sh0=a["SH_DEGREE_0_COEF_0"][:, None],
        shN=torch.stack(rest, 1) if rest else torch.zeros(len(splat), 0, 3),
    )
    print(f"glb: {similarity(back(read, 'y-up'), splat):.1f} dB")
    assert similarity(back(read, "y-up"), splat) > LOSSLESS
    assert similarity(read, splat) < 30, "control: a file in other axes looks different"
    assert (a["COLOR_0"][:, 3] / 65535 - splat.opacities.detach().sigmoid()).abs().max() < 1e-4


@degree_0
def test_the_points_of_a_glb_have_the_colors_of_the_splat_in_linear_light(splat: Gaussians, source: Path) -> None:
    assert main([str(source), "--to", "glb"]) == 0
    light = by_pygltflib(source.with_suffix(".glb"))["COLOR_0"][:, :3] / 65535.0
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    rgb = (0.5 + 0.28209479 * splat.sh0.detach()[:, 0].double().numpy()).clip(0, 1)
    assert np.abs(shown - rgb).max() < 1e-3
    assert np.abs(light - rgb).max() > 0.1, "control: colors as they are displayed"


@degree_0
def test_a_glb_says_what_the_extension_asks_for(source: Path) -> None:
    assert main([str(source), "--to", "glb"]) == 0
    gltf = pygltflib.GLTF2().load(str(source.with_suffix(".glb")))
    (primitive,) = gltf.meshes[0].primitives
    assert gltf.extensionsUsed == ["KHR_gaussian_splatting"] and primitive.mode == pygltflib.POINTS
    kind = primitive.extensions["KHR_gaussian_splatting"]
    assert kind == {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    position = gltf.accessors[primitive.attributes.POSITION]
    assert len(position.min) == len(position.max) == 3
    assert all(view.byteOffset % 4 == 0 for view in gltf.bufferViews)
    cloud = as_a(trimesh.Scene, trimesh.load(source.with_suffix(".glb"))).geometry
    assert sum(len(part.vertices) for part in cloud.values()) == position.count, "a reader of points sees points"


@needs_splat_transform
@pytest.mark.parametrize(
    ("kind", "at_least"), [("compressed.ply", 45.0), ("splat", 50.0), ("spz", 52.0), ("sog", 58.0)]
)
def test_a_lossy_format_looks_like_the_splat(splat: Gaussians, source: Path, kind: Format, at_least: float) -> None:
    assert main([str(source), "--to", kind]) == 0
    read = by_splat_transform(source.with_name(f"splat.{kind}"))
    assert len(read) == len(splat) and read.sh_degree == (0 if kind == "splat" else splat.sh_degree)
    if kind == "spz":
        read = transformed(read, half_turn(0))  # it turns the format's own axes, y up, to y down
    expected = with_degree(splat, read.sh_degree)
    level = similarity(back(read, AXES[kind]), expected)
    print(f"{kind}: {level:.1f} dB, {source.with_name(f'splat.{kind}').stat().st_size / 1000:.0f} kB")
    assert level > at_least
    moved = Gaussians(**{**expected.tensors(), "means": expected.means.detach() + 0.003})
    assert similarity(moved, expected) < at_least, "control: three thousandths of a unit off are noticed"


@needs_splat_transform
def test_a_single_gaussian_survives_every_format(tmp_path: Path) -> None:
    """The ranges and codebooks of all of them have no width then."""
    one = ball(1, radius=0.5, opacity=0.9, sh_degree=1, generator=torch.Generator().manual_seed(0))
    one.save_ply(tmp_path / "splat.ply")
    for kind in ("compressed.ply", "spz", "sog"):
        assert main([str(tmp_path), "--to", kind, "--axes", "z-up"]) == 0
        read = by_splat_transform(tmp_path / f"splat.{kind}")
        mean = read.means * torch.tensor([1, -1, -1]) if kind == "spz" else read.means
        assert torch.allclose(mean, one.means, atol=1e-3), kind


@degree_3
def test_the_same_splat_gives_the_same_bytes(source: Path) -> None:
    for kind in (*SPLATS, "html"):
        written = []
        for folder in "ab":
            out = source.parent / folder / f"splat.{kind}"
            out.parent.mkdir(exist_ok=True)
            assert main([str(source), "--to", kind, "--out", str(out)]) == 0
            written.append(out.read_bytes())
        assert written[0] == written[1], kind


def test_spz_uses_the_bits_that_the_positions_leave() -> None:
    for extent in (0.1, 1.0, 1.01, 7.9, 100.0, 1e6):
        bits = fractional_bits(extent)
        assert extent * 2**bits <= 2**23 - 1 and (bits == 20 or extent * 2 ** (bits + 1) > 2**21)


def test_a_palette_that_is_too_small_takes_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sog, "PALETTE", 256)
    rows = np.random.default_rng(0).normal(size=(2000, 2))
    entries, labels = sog.palette(rows)
    error = np.square(entries[labels] - rows).sum(1)
    assert len(entries) == 256 and error.mean() < 0.03
    assert np.square(entries[(labels + 1) % 256] - rows).sum(1).mean() > 20 * error.mean(), "control"


# Splats at the edges of the formats.


def with_strays(gaussians: Gaussians, distance: float) -> Gaussians:
    """The splat with two Gaussians far away, which are also large, and one very bright one hidden inside it."""
    values = gaussians.tensors()
    far = torch.tensor([[1, -0.5, 0.3], [-1, 0.0, 0.5], [0, 0, 0]])
    values["means"][:3] = distance * far
    values["scales"][:2] = math.log(distance / 100)
    values["sh0"][2] = 1e4
    values["opacities"][2] = -8.0
    return Gaussians(**values)


def edge_splats() -> dict[str, Gaussians]:
    """By name: a single Gaussian, one color in a plane, no opacity, one half of it, far from the origin, large, tiny,
    strays."""
    whole = shell(0, count=600)
    values, middle = whole.tensors(), torch.tensor([4e5, 0.0, 0.0])
    faint = values["opacities"].clone()
    faint[:300] = -8.0
    flat = torch.tensor([1.0, 1.0, 0.0])

    def changed(**new: Tensor) -> Gaussians:
        return Gaussians(**{**values, **new})

    return {
        "one": Gaussians(**{name: value[:1] for name, value in values.items()}),
        "one color": changed(
            means=values["means"] * flat,
            sh0=torch.ones_like(values["sh0"]),
            scales=torch.full_like(values["scales"], -3.0),
        ),
        "invisible": changed(opacities=torch.full_like(faint, -8.0)),
        "half invisible": changed(opacities=faint),
        "far": changed(means=values["means"] + middle),
        "huge": transformed(whole, torch.eye(3, dtype=torch.float64), 1e4),
        "tiny": transformed(whole, torch.eye(3, dtype=torch.float64), 1e-2),
        "strays": with_strays(whole, 3e3),
    }


REFUSED = {("invisible", "compressed.ply"), ("huge", "spz")}
"""Splats that a format cannot hold."""


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", edge_splats())
def test_every_writer_holds_the_splat_or_says_that_it_cannot(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edge_splats()[name].save_ply(tmp_path / "splat.ply")
    for kind in [*sorted(SPLATS.keys() - {"ply"}), "html", "png"]:
        small = ["--frames", "1", "--size", "16"] if kind == "png" else []
        code = main([str(tmp_path), "--to", kind, *small])
        assert (code == 2) == ((name, kind) in REFUSED), kind
        assert (tmp_path / f"splat.{kind}").exists() == (code == 0), kind
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: source: ")]
    assert all(line.startswith("error: to: ") for line in errors)
    assert len(errors) == len([kind for splat, kind in REFUSED if splat == name])


@needs_splat_transform
@pytest.mark.parametrize("name", edge_splats())
def test_another_program_reads_the_edges_of_a_format(tmp_path: Path, name: str) -> None:
    splat = edge_splats()[name]
    splat.save_ply(tmp_path / "splat.ply")
    reach = splat.means.detach().abs().max().item()
    shown = int((splat.opacities.detach().sigmoid() > 1 / 255).sum())
    for kind in ("compressed.ply", "splat", "spz", "sog"):
        if (name, kind) in REFUSED:
            continue
        assert main([str(tmp_path), "--to", kind, "--axes", "z-up"]) == 0
        read = by_splat_transform(tmp_path / f"splat.{kind}")
        assert len(read) == (shown if kind == "compressed.ply" else len(splat)), kind
        assert read.means.abs().max().item() == pytest.approx(reach, rel=2e-3), kind
        assert read.scales.max().item() == pytest.approx(splat.scales.max().item(), abs=0.1), kind


def test_a_splat_without_gaussians_is_written_by_no_one(tmp_path: Path) -> None:
    none = Gaussians(**{name: value[:0] for name, value in shell(0, count=1).tensors().items()})
    with pytest.raises(UserError, match="at least one Gaussian"):
        none.save_ply(tmp_path / "splat.ply")
    for kind in sorted(set(FORMATS)):
        with pytest.raises(UserError, match="at least one Gaussian"):
            write.write(ExportOptions(source=tmp_path, to=kind), none, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", ["1e-30", "1e30", "1e300"])
def test_a_scale_at_which_numbers_vanish_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: str
) -> None:
    shell(0, count=9).save_ply(tmp_path / "splat.ply")
    for kind in [*sorted(SPLATS.keys() - {"ply"}), "html"]:
        assert main([str(tmp_path), "--to", kind, "--scale", scale]) == 2
    assert all(line.startswith("error: scale: expected") for line in capsys.readouterr().err.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["splat.ply"]


@pytest.mark.parametrize(
    ("size", "shift", "advice"),
    [(1.0, 0.0, ""), (100.0, 0.0, "try --scale 0.0056"), (1e-3, 0.0, "try --scale"), (1.0, 50.0, "move it to the")],
)
def test_a_splat_that_pictures_would_not_show_is_named_with_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: float, shift: float, advice: str
) -> None:
    values = transformed(shell(0, count=99), torch.eye(3, dtype=torch.float64), size).tensors()
    Gaussians(**values | {"means": values["means"] + shift}).save_ply(tmp_path / "splat.ply")
    small = ["--frames", "1", "--size", "16"]
    for kind, options in (("png", small), ("html", [])):
        assert main([str(tmp_path), "--to", kind, *options]) == 0
        warning = capsys.readouterr().err
        assert bool(warning) == bool(advice)
        assert not advice or all(word in warning for word in ("warning: source: ", f".{kind} shows", advice))
    if fitting := re.search(r"--scale \S+", warning):
        assert main([str(tmp_path), "--to", "png", "--overwrite", *small, *fitting[0].split()]) == 0
        assert not capsys.readouterr().err, "the scale that it names helps"
    assert main([str(tmp_path), "--to", "splat"]) == 0 and not capsys.readouterr().err, "control"


@needs_splat_transform
def test_spz_keeps_the_last_bit_of_the_largest_position(tmp_path: Path) -> None:
    """The largest signed 24-bit number; rounding must not carry into the sign."""
    for largest in (2.0**23 - 1, 2.0**3 - 2.0**-20, 2.0**3 - 2.0**-22, 4.0):
        values = shell(0, count=2).tensors()
        values["means"] = torch.tensor([[largest, 0.0, -largest], [0.0, -largest, largest]])
        Gaussians(**values).save_ply(tmp_path / "splat.ply")
        assert main([str(tmp_path), "--to", "spz", "--axes", "z-up", "--overwrite"]) == 0
        read = by_splat_transform(tmp_path / "splat.spz").means * torch.tensor([1, -1, -1])
        assert torch.allclose(read, values["means"], rtol=1e-6), largest


def test_positions_and_sizes_beyond_spz_are_refused_and_sog_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = shell(0, count=9).tensors()
    values |= {"means": values["means"] + torch.tensor([9000.0, 0.0, 0.0]), "scales": values["scales"] - 2}
    Gaussians(**values).save_ply(tmp_path / "splat.ply")
    for scale, message in (("1000", "positions up to 8388607"), ("1e-4", "a median of")):
        assert main([str(tmp_path), "--to", "spz", "--scale", scale]) == 2
        error = capsys.readouterr().err
        assert message in error and "--to sog" in error
        assert main([str(tmp_path), "--to", "sog", "--scale", scale, "--overwrite"]) == 0


# The page.


def probed(page: Path, probe: str) -> str:
    """The document of a page after a script has run in it; fails for an error in the console."""
    copy = page.with_name("probe.html")
    copy.write_text(page.read_text().replace("</body>", f"<script>{probe}</script></body>"))
    flags = ["--headless", *FLAGS, "--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}"]
    command = [str(CHROMIUM), *flags, "--dump-dom", copy.as_uri()]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    # A driver without a GPU may tell that reading pixels makes it wait.
    said = [line for line in ran.stderr.splitlines() if "CONSOLE" in line and "GL Driver Message" not in line]
    assert not said, "no error in the console"
    return ran.stdout


def in_browser(page: Path) -> Tensor:
    """Two views of a page, a quarter turn apart, over white, [2, 128, 128, 3]; fails for an error in the console."""
    probe = """turning = false;
    const shown = [0, Math.PI / 2].map(turned => {
      camera.azimuth = turned;
      draw(128, 128);
      return canvas.toDataURL();
    });
    document.body.replaceChildren(shown);"""
    encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", probed(page, probe))
    rgba = torch.from_numpy(
        np.stack([np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) / 255.0 for png in encoded])
    )
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


@needs_chromium
@degree_3
def test_the_page_shows_the_splat_in_a_browser_without_a_network(splat: Gaussians, source: Path) -> None:
    assert main([str(source), "--to", "html"]) == 0
    shown, expected = in_browser(source.with_suffix(".html")), pictures(with_degree(splat, 0))[:2]
    print(f"html: {psnr(shown, expected):.1f} dB")
    assert psnr(shown, expected) > LOSSLESS
    assert psnr(shown.flip(0), expected) < 25, "control: the other view"


@needs_chromium
@degree_0
def test_the_page_turns_until_the_first_touch_and_heeds_the_keyboard(source: Path) -> None:
    assert main([str(source), "--to", "html"]) == 0
    probe = """const press = key => window.dispatchEvent(new KeyboardEvent("keydown", { key }));
    const first = camera.azimuth, distance = camera.distance;
    before = null;
    turn(0); turn(100);
    const moved = camera.azimuth - first;
    press("+");
    const still = camera.azimuth;
    turn(200);
    const stopped = camera.azimuth === still && !turning;
    press("ArrowRight");
    document.title = JSON.stringify([first, moved, stopped, camera.azimuth < still, camera.distance < distance,
      document.querySelector("p").style.opacity]);"""
    told = re.search(r"<title>(.*?)</title>", probed(source.with_suffix(".html"), probe))
    assert told is not None
    first, moved, *states = json.loads(told[1].replace("&quot;", '"'))
    assert math.degrees(first) == pytest.approx(30) and math.degrees(moved) == pytest.approx(2.25, abs=0.01)
    assert states == [True, True, True, "0"]


@needs_chromium
@degree_0
def test_the_page_asks_for_a_context_that_was_taken_and_draws_in_the_new_one(source: Path) -> None:
    assert main([str(source), "--to", "html"]) == 0
    probe = """const tells = name => {
      const event = new Event(name, { cancelable: true });
      canvas.dispatchEvent(event);
      return event.defaultPrevented;
    };
    const drawn = () => {
      draw(64, 64);
      const pixel = new Uint8Array(4);
      gl.readPixels(32, 32, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
      return pixel[3] > 0;
    };
    const asks = [tells("webglcontextlost"), tells("anything")];
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA16UI, 1, 1, 0, gl.RGBA_INTEGER, gl.UNSIGNED_SHORT, new Uint16Array(4));
    const empty = drawn();
    tells("webglcontextrestored");
    document.title = JSON.stringify([...asks, empty, drawn()]);"""
    told = re.search(r"<title>(.*?)</title>", probed(source.with_suffix(".html"), probe))
    assert told is not None
    assert json.loads(told[1]) == [True, False, False, True], "control: another event, and an empty texture"


@needs_chromium
@degree_0
@pytest.mark.parametrize("distance", [3e3, 9e5])
def test_the_page_keeps_its_quality_whatever_lies_far_away(splat: Gaussians, tmp_path: Path, distance: float) -> None:
    strays = with_strays(splat, distance)
    strays.save_ply(tmp_path / "splat.ply")
    assert main([str(tmp_path), "--to", "html"]) == 0
    shown, expected = in_browser(tmp_path / "splat.html"), pictures(strays)[:2]
    print(f"html: {psnr(shown, expected):.1f} dB with strays at {distance:g}")
    assert psnr(shown, expected) > LOSSLESS
    values = strays.tensors()
    means = values["means"]
    step = (means.amax() - means.amin()) / 65535
    coarse = Gaussians(**{**values, "means": (means / step).round() * step})
    assert psnr(pictures(coarse)[:2], expected) < 35, "control: positions as 16 bits of their range"


@degree_0
def test_the_page_refers_to_nothing_outside_itself(source: Path) -> None:
    assert main([str(source), "--to", "html", "--background", "0", "0", "0"]) == 0
    page = source.with_suffix(".html").read_text()
    assert "default-src 'none'" in page and "rgb(0,0,0)" in page
    assert not re.findall(r"https?://|\bsrc=(?!\"data:)|\bhref=|\bimport\b|\bfetch\b", page)
    assert "{" + "splat}" not in page and "{" + "title}" not in page


@degree_0
def test_the_page_of_a_run_has_its_prompt_as_title(source: Path) -> None:
    run = source.parent / "a-mug-0"
    run.mkdir()
    shutil.copy(source, run / "splat.ply")
    steered = "edits: [{stage: coarse, step: 3, prompt: a <red> mug}, {stage: refine, step: 1, cfg: 2.0}]\n"
    (run / "config.yaml").write_text(f"prompt: a mug\n{steered}")
    for given, title in ((run, "a &lt;red&gt; mug"), (run / "splat.ply", "a &lt;red&gt; mug"), (source, source.stem)):
        out = source.with_name("page.html")
        assert main([str(given), "--to", "html", "--out", str(out), "--overwrite"]) == 0
        assert f"<title>{title if given != source else 'page'}</title>" in out.read_text()


# Axes, scale and degree.


@pytest.mark.parametrize("axes", FROM_Z_UP)
def test_there_and_back_is_the_splat_again(splat: Gaussians, axes: Axes) -> None:
    there = transformed(splat, change_of_axes("z-up", axes), 0.25)
    assert there.means.norm(dim=1).mean().item() == pytest.approx(0.25 * splat.means.norm(dim=1).mean().item())
    assert similarity(transformed(there, change_of_axes(axes, "z-up"), 4.0), splat) > 80


def test_a_turned_splat_seen_by_turned_cameras_is_the_same_picture(splat: Gaussians) -> None:
    rotation = change_of_axes("z-up", "y-up")
    matrices = VIEWS.viewmats.clone()
    matrices[:, :3, :3] = matrices[:, :3, :3] @ rotation.float().T
    cameras = Cameras(matrices, VIEWS.Ks, VIEWS.width, VIEWS.height)
    turned = transformed(splat, rotation)
    assert psnr(pictures(turned, cameras), pictures(splat)) > 80
    if splat.sh_degree:
        unturned = Gaussians(**{**turned.tensors(), "shN": splat.tensors()["shN"]})
        assert psnr(pictures(unturned, cameras), pictures(splat)) < 45, "control: the harmonics must turn too"


def test_harmonics_turn_with_any_rotation() -> None:
    g = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
    rotation *= rotation.det()
    coefficients = torch.randn(5, 15, 3, generator=g, dtype=torch.float64)
    directions = torch.randn(40, 3, generator=g, dtype=torch.float64)
    before = harmonic_basis(3, directions)[:, 1:] @ coefficients
    after = harmonic_basis(3, directions @ rotation.T)[:, 1:] @ turned_harmonics(coefficients, rotation)
    assert torch.allclose(before, after, atol=1e-10)


@pytest.mark.parametrize("axes", FROM_Z_UP)
def test_axes_are_right_handed_and_put_up_and_front_where_they_say(axes: Axes) -> None:
    rotation = change_of_axes("z-up", axes)
    assert rotation.det().item() == 1
    front, up = (rotation @ torch.eye(3, dtype=torch.float64)[i] for i in (0, 2))
    assert up.tolist() == {"z-up": [0, 0, 1], "y-up": [0, 1, 0], "y-down": [0, -1, 0]}[axes]
    assert front.tolist() == ([1, 0, 0] if axes == "z-up" else [0, 0, 1])


@degree_3
def test_axes_of_the_source_and_of_the_file_are_both_heard(splat: Gaussians, source: Path) -> None:
    out, again = source.with_name("down.ply"), source.with_name("again.ply")
    assert main([str(source), "--to", "ply", "--axes", "y-down", "--scale", "0.5", "--out", str(out)]) == 0
    arguments = ["--to", "ply", "--source-axes", "y-down", "--scale", "2", "--out", str(again)]
    assert main([str(out), *arguments]) == 0
    assert similarity(by_plyfile(again), splat) > 80 > 30 > similarity(by_plyfile(out), splat)


# Triangles.


@pytest.fixture(scope="module")
def sphere() -> mesh.Mesh:
    for package in ("manifold3d", "xatlas"):
        pytest.importorskip(package, reason="needs pip install 'gscfd[mesh]'")
    floater = shell(0, count=30, radius=0.04).tensors()
    floater["means"] = floater["means"] + torch.tensor([0.0, 0.0, 0.95])
    both = {name: torch.cat([value, floater[name]]) for name, value in shell(0).tensors().items()}
    return mesh.extract_mesh(Gaussians(**both), resolution=48, triangles=3000)


def joined(shape: trimesh.Trimesh) -> trimesh.Trimesh:
    """The shape with one vertex for all that a seam of the texture has split."""
    shape.merge_vertices(merge_tex=True, merge_norm=True)
    return shape


def closed(shape: trimesh.Trimesh) -> bool:
    return bool(shape.is_watertight and shape.is_winding_consistent and shape.volume > 0 and shape.body_count == 1)


def test_the_mesh_of_a_sphere_is_a_closed_sphere_without_floaters(sphere: mesh.Mesh) -> None:
    shape = trimesh.Trimesh(sphere.vertices, sphere.triangles)
    radius = np.linalg.norm(sphere.vertices, axis=1)
    assert closed(shape) and len(sphere.faces) <= 3000
    assert not closed(trimesh.Trimesh(sphere.vertices, sphere.triangles[1:])), "control: one triangle is missing"
    assert abs(radius.mean() - 0.7) < 0.06 and radius.std() < 0.03 and radius.max() < 0.85
    assert np.abs(sphere.vertices.mean(0)).max() < 0.02, "half a pixel off would show"


def test_the_outlines_of_a_mesh_are_those_of_a_splat_that_is_soft_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    splat = shell(0, count=2000).tensors()
    soft = splat["means"][:, 2] > 0
    splat["scales"] = torch.where(soft[:, None], math.log(0.1), splat["scales"])
    splat["opacities"] = torch.where(soft, -2.0, splat["opacities"])
    views = surface.views_of(Gaussians(**splat), 160)
    usual = [i for i in range(len(views)) if views.usual(i)][::6]

    def wrong() -> float:
        """Share of pixels at which the mesh, but not the splat, has its object, or the other way round."""
        caster: Any = trimesh.Trimesh(*surface.closed_surface(views, 48)).ray
        pixel = (np.mgrid[:160, :160] + 0.5 - 80) / views.focal
        away = np.stack([pixel[1], pixel[0], np.ones((160, 160))], -1).reshape(-1, 3)
        found = []
        for i in usual:
            hit = caster.intersects_any(np.tile(views.position(i), (len(away), 1)), away @ views.rotations[i])
            found.append((hit != (views.opacity[i].ravel() > 0.5)).mean())
        return float(np.mean(found))

    local, levels = wrong(), surface.outline_levels
    monkeypatch.setattr(surface, "outline_levels", lambda v, field: np.full_like(field, np.median(levels(v, field))))
    print(f"outlines: {local:.4f}, with one level {wrong():.4f}")
    assert local < 0.6 * wrong(), "control: one level"


def test_the_mesh_seen_by_another_renderer_looks_like_the_splat(sphere: mesh.Mesh, tmp_path: Path) -> None:
    pytest.importorskip("embreex")
    camera = turntable(4, size=256)[:1]
    write.MESHES["mesh.glb"](sphere, tmp_path / "a.glb")
    shape = as_a(trimesh.Trimesh, trimesh.load(tmp_path / "a.glb", process=False, force="mesh"))
    image, expected = ray_cast(shape, camera), pictures(shell(0), camera)[0]
    print(f"mesh: {psnr(image, expected):.1f} dB")
    assert psnr(image, expected) > 29
    assert psnr(image.flip(1), expected) < 16, "control: mirrored"


@pytest.mark.parametrize("name", ["a", "eine süße Ente", "-'\"%", "a\nb"])
@pytest.mark.parametrize("kind", MESHES)
def test_a_mesh_file_holds_the_mesh_and_its_texture(sphere: mesh.Mesh, tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / f"{name}.{kind}"
    MESHES[kind](sphere, path)
    read = as_a(trimesh.Trimesh, trimesh.load(path, process=False, force="mesh"))
    corners = sphere.vertices[sphere.triangles]
    assert np.allclose(read.triangles, corners, atol=1e-6)
    visual: Any = as_a(trimesh.visual.TextureVisuals, read.visual)
    assert np.allclose(visual.uv[read.faces], sphere.uvs[sphere.faces], atol=1e-5)
    material = visual.material
    image = material.baseColorTexture if kind == "mesh.glb" else material.image
    assert np.array_equal(np.asarray(image.convert("RGB")), sphere.texture)
    assert closed(joined(read))


@pytest.mark.parametrize("count", [1, 9])
def test_a_splat_too_small_for_a_surface_is_refused_by_the_mesh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    pytest.importorskip("manifold3d", reason="needs pip install 'gscfd[mesh]'")
    shell(0, count=count, radius=0.001).save_ply(tmp_path / "splat.ply")
    assert main([str(tmp_path), "--to", "mesh.glb", "--resolution", "16"]) == 2
    assert capsys.readouterr().err.startswith("error: source: expected a splat with an opaque surface")
    assert [path.name for path in tmp_path.iterdir()] == ["splat.ply"]


def test_the_zero_level_of_any_field_is_closed() -> None:
    field = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    field[[0, -1]] = field[:, [0, -1]] = field[:, :, [0, -1]] = 1
    vertices, triangles = surface.zero_level(field)
    shape = trimesh.Trimesh(vertices, triangles, process=False)
    assert shape.is_watertight and shape.is_winding_consistent and shape.volume > 0
    inside, outside = np.argwhere(field < 0), shape.volume
    assert outside == pytest.approx(len(inside), rel=0.5), "triangles face outwards"


def test_a_surface_that_touches_itself_stays_closed_for_readers_that_join_equal_vertices() -> None:
    """Two cubes that share an edge, as after a collapse: four vertices at two places."""
    box = trimesh.creation.box()
    vertices = np.concatenate([box.vertices, box.vertices + [1, 1, 0]]).astype(np.float32)
    triangles = np.concatenate([box.faces, box.faces + len(box.vertices)]).astype(np.uint32)
    assert not trimesh.Trimesh(vertices, triangles).is_watertight, "control"
    moved = mesh.apart(vertices, triangles)
    assert closed_surfaces(trimesh.Trimesh(moved, triangles)) and np.abs(moved - vertices).max() < 0.05
    assert (moved != vertices).any(1).sum() == 4
    assert np.array_equal(mesh.apart(vertices[:8], triangles[:12]), vertices[:8]), "one cube stays as it is"


def closed_surfaces(shape: trimesh.Trimesh) -> bool:
    """Whether the shape is closed, of one part or several."""
    return bool(shape.is_watertight and shape.is_winding_consistent and shape.volume > 0)


def test_a_texture_has_the_colors_of_usual_elevations_where_these_see_it() -> None:
    views = surface.views_of(shell(0), 48)
    usual = np.array([views.usual(i) for i in range(len(views))])
    assert usual.any() and not usual.all()
    told = replace(views, color=np.ones_like(views.color) * usual[:, None, None, None])
    points = np.array([[0.7, 0, 0], [0, -0.7, 0], [0, 0, -0.7]], np.float32)
    colors, weights = texture.seen_colors(points, points, told)
    assert (weights > 0).all() and (colors[:2] > 0.9).all()
    assert (colors[2] < 0.1).all(), "control: nothing usual sees the bottom"


def test_floaters_go_and_cavities_are_filled() -> None:
    inside = np.zeros((12, 12, 12), bool)
    inside[2:8, 2:8, 2:8] = True
    whole = inside.copy()
    inside[4, 4, 4] = False
    inside[10, 10, 10] = True
    assert np.array_equal(surface.solid(inside), whole)


@pytest.mark.parametrize("to, zipped", [("obj", True), ("mesh.ply", True), ("mesh.glb", False), ("spz", False)])
def test_a_download_is_whole(monkeypatch: pytest.MonkeyPatch, to: Format, zipped: bool) -> None:
    """One file, with all that belongs to it."""
    corners, three = np.eye(3, dtype=np.float32), np.arange(3)
    gray = np.full((8, 8, 3), 128, np.uint8)
    triangle = mesh.Mesh(corners, three, np.full((3, 2), 0.5, np.float32), three[None].astype(np.uint32), gray)
    monkeypatch.setattr(write, "extract_mesh", lambda gaussians, resolution, triangles: triangle)
    name, data = write.download(shell(0), to, "a.mug")
    assert name == (f"a.mug.{to}.zip" if zipped else f"a.mug.{to}")
    if zipped:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert sorted(archive.namelist()) == sorted(
                {
                    "obj": ["a.mug.obj", "a.mug.mtl", "a.mug.texture.png"],
                    "mesh.ply": ["a.mug.mesh.ply", "a.mug.mesh.texture.png"],
                }[to]
            )


@degree_0
def test_a_mesh_is_turned_and_scaled_after_it_was_taken(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corners = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    three, gray = np.array([0, 1, 2]), np.full((8, 8, 3), 127, np.uint8)
    triangle = mesh.Mesh(corners, three, np.full((3, 2), 0.5, np.float32), three[None].astype(np.uint32), gray)
    monkeypatch.setattr(write, "extract_mesh", lambda gaussians, resolution, triangles: triangle)
    assert main([str(source), "--to", "obj", "--scale", "0.1"]) == 0
    assert main([str(source), "--to", "mesh.ply", "--axes", "z-up"]) == 0
    turned = as_a(trimesh.Trimesh, trimesh.load(source.with_suffix(".obj"), process=False, force="mesh"))
    assert np.allclose(turned.vertices, [[0, 0, 0.1], [0.2, 0, 0], [0, 0.3, 0]]), "front to +z, up to +y"
    as_it_is = as_a(trimesh.Trimesh, trimesh.load(source.with_suffix(".mesh.ply"), process=False, force="mesh"))
    assert np.allclose(as_it_is.vertices, corners)


@degree_0
@pytest.mark.parametrize("package", ["manifold3d", "xatlas"])
def test_without_a_package_of_the_mesh_the_error_says_what_to_install(
    source: Path, package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(source), "--to", "obj", "--resolution", "16", "--triangles", "1000"]) == 2
    assert "gscfd[mesh]" in capsys.readouterr().err and not source.with_suffix(".obj").exists()


# Pictures.


@degree_0
def test_a_video_and_a_sheet_have_the_size_and_background_asked_for(source: Path) -> None:
    options = ["--frames", "4", "--size", "64", "--background", "0", "0", "1"]
    assert main([str(source), "--to", "mp4", *options]) == 0
    assert main([str(source), "--to", "png", *options]) == 0
    video = iio.imread(source.with_suffix(".mp4"), plugin="FFMPEG")
    sheet = iio.imread(source.with_suffix(".png"))
    assert video.shape == (4, 64, 64, 3) and sheet.shape == (64, 256, 3)
    assert sheet[0, 0].tolist() == [0, 0, 255] and np.abs(video[0, 0, 0].astype(int) - [0, 0, 255]).max() < 12


@degree_0
def test_a_transparent_picture_over_white_is_the_picture_on_white(splat: Gaussians, source: Path) -> None:
    assert main([str(source), "--to", "png", "--frames", "1", "--size", "128", "--alpha"]) == 0
    rgba = torch.from_numpy(iio.imread(source.with_suffix(".png")) / 255.0)
    assert rgba.shape == (128, 128, 4) and rgba[0, 0, 3] == 0 and rgba[..., 3].max() > 0.95
    over_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    camera = turntable(1, size=128, radius=WHOLE_RADIUS, start=THREE_QUARTERS)
    assert psnr(over_white, pictures(splat, camera)[0]) > LOSSLESS
    assert psnr(rgba[..., :3], pictures(splat)[0]) < 30, "control: without its alpha it is another picture"


@degree_0
def test_the_shadow_darkens_the_ground_below_the_object_and_nothing_else(splat: Gaussians) -> None:
    plain, shaded = (turntable_frames(splat, 2, 128, start=30, shadow=on).astype(int) for on in (False, True))
    darker = plain - shaded
    assert darker.min() >= 0 and 40 < darker.max() <= 0.3 * 255 + 1
    assert darker[:, :40].max() == 0 and darker[:, 100:].max() > 20, "above the object the background is plain"
    assert darker[:, 60:68, 60:68].max() <= 2, "the object itself keeps its light"


# The command.


def test_every_format_is_written_beside_a_run_which_stays_a_run(tmp_path: Path) -> None:
    ball(20, radius=0.5, opacity=0.9, generator=torch.Generator().manual_seed(0)).save_ply(tmp_path / "splat.ply")
    for kind in sorted(set(FORMATS) - {"ply", *MESHES}):
        small = ["--frames", "2", "--size", "16"] if kind in APPLIES["size"] else []
        assert main([str(tmp_path), "--to", kind, *small]) == 0
        assert (tmp_path / f"splat.{kind}").stat().st_size > 100
    assert not runs_names.foreign_files(tmp_path), "--overwrite must still know the folder as a run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{ply}", "--to", "spz", "--out", "{dir}/a.sog"], "ends in .spz"),
        (["{ply}", "--to", "spz", "--out", "{dir}/no/a.spz"], "existing folder"),
        (["{ply}", "--to", "ply"], "is the source"),
        (["{ply}", "--to", "ply", "--overwrite"], "is the source"),
        (["{dir}/none.ply", "--to", "spz"], "there is no"),
        (["{dir}/sub", "--to", "spz"], "splat.ply"),
        (["{ply}", "--to", "spz", "--scale", "0"], "above 0"),
        (["{ply}", "--to", "spz", "--scale", "nan"], "above 0"),
        (["{ply}", "--to", "spz", "--alpha"], "alpha: expected only with --to png"),
        (["{ply}", "--to", "mp4", "--axes", "y-up"], "axes: expected only"),
        (["{ply}", "--to", "splat", "--sh-degree", "1"], "sh-degree: expected only"),
        (["{ply}", "--to", "png", "--frames", "6"], "multiple of 4"),
        (["{ply}", "--to", "png", "--size", "17"], "even number"),
        (["{ply}", "--to", "png", "--background", "0", "2", "0"], "in \\[0, 1\\]"),
        (["{ply}", "--to", "png", "--background", "0", "1", "0", "--alpha"], "no --background beside"),
        (["{ply}", "--to", "png", "--shadow", "--alpha"], "no --shadow beside"),
        (["{ply}", "--to", "obj", "--resolution", "5"], "16 to 1024"),
        (["{ply}", "--to", "obj", "--triangles", "5"], "at least 100"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "sub").mkdir()
    ball(9, radius=0.5, opacity=0.9, generator=torch.Generator().manual_seed(0)).save_ply(tmp_path / "splat.ply")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main([a.format(ply=tmp_path / "splat.ply", dir=tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@degree_0
def test_a_file_is_replaced_only_on_request(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.with_suffix(".spz").write_bytes(b"mine")
    assert main([str(source), "--to", "spz"]) == 2
    assert "--overwrite" in capsys.readouterr().err and source.with_suffix(".spz").read_bytes() == b"mine"
    assert main([str(source), "--to", "spz", "--overwrite"]) == 0
    assert source.with_suffix(".spz").read_bytes() != b"mine"


@degree_0
@pytest.mark.parametrize("side", [".mtl", ".texture.png"])
def test_a_file_beside_a_mesh_is_replaced_only_on_request(
    source: Path, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source.with_suffix(side).write_bytes(b"mine")
    assert main([str(source), "--to", "obj"]) == 2
    assert f"{source.with_suffix(side).name} exists" in capsys.readouterr().err
    assert source.with_suffix(side).read_bytes() == b"mine" and not source.with_suffix(".obj").exists()


def test_what_is_left_out_is_said(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    degree = Gaussians.load_ply(source).sh_degree
    assert main([str(source), "--to", "splat"]) == 0
    assert ("view-dependent color is dropped" in capsys.readouterr().out) == (degree > 0)


def test_an_unreadable_source_is_an_error_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.ply").write_bytes(b"ply\n")
    assert main([str(tmp_path / "a.ply"), "--to", "spz"]) == 2
    assert "expected a 3DGS .ply" in capsys.readouterr().err
    with pytest.raises(UserError):
        Gaussians.load_ply(tmp_path)
