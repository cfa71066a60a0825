"""--init MESH: the surface of a mesh becomes Gaussians with the colors of its texture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh as untyped
from PIL import Image
from present import present

from gscfd import train
from gscfd.cameras import turntable
from gscfd.config import InitConfig
from gscfd.distil.meshes import mesh_gaussians
from gscfd.distil.start import read_start
from gscfd.gaussians import Gaussians
from gscfd.harmonics import SH_C0

trimesh: Any = untyped
COLORS = {
    "upper left": (255, 0, 0),
    "upper right": (0, 255, 0),
    "lower left": (0, 0, 255),
    "lower right": (255, 255, 0),
}


def quadrants() -> Image.Image:
    texture = np.zeros((64, 64, 3), np.uint8)
    for i, color in enumerate(COLORS.values()):
        texture[32 * (i // 2) : 32 * (i // 2) + 32, 32 * (i % 2) : 32 * (i % 2) + 32] = color
    return Image.fromarray(texture)


def square(**visual: Any) -> Any:
    """The square [-1, 1]^2 in the plane z = 0 of glTF's axes, seen from +z; u is x, v is y."""
    vertices = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], float)
    shape = trimesh.Trimesh(vertices, [[0, 1, 2], [0, 2, 3]], process=False)
    if "image" in visual:
        white = trimesh.visual.material.SimpleMaterial(image=visual["image"], diffuse=[255] * 4)
        shape.visual = trimesh.visual.TextureVisuals(uv=vertices[:, :2] / 2 + 0.5, material=white)
    return shape


def rgb(gaussians: Gaussians) -> torch.Tensor:
    return 0.5 + SH_C0 * gaussians.sh0[:, 0].detach()


def at_quadrant(gaussians: Gaussians, name: str) -> torch.Tensor:
    """Mean color of the discs well inside a quadrant, in the file's axes."""
    x, y = gaussians.means.detach()[:, :2].T
    side = (x > 0.2) if "right" in name else (x < -0.2)
    level = (y > 0.2) if "upper" in name else (y < -0.2)
    return rgb(gaussians)[side & level].mean(0)


@pytest.mark.parametrize("ending", ["obj", "glb"])
def test_every_place_has_the_color_that_the_texture_has_there(ending: str, tmp_path: Path) -> None:
    square(image=quadrants()).export(tmp_path / f"x.{ending}")
    found = mesh_gaussians(tmp_path / f"x.{ending}", 2000)
    for name, color in COLORS.items():
        torch.testing.assert_close(at_quadrant(found, name), torch.tensor(color) / 255, atol=0.02, rtol=0)
    assert (at_quadrant(found, "upper left") - at_quadrant(found, "lower left")).abs().max() > 0.9, (
        "control: upside down"
    )


def test_discs_lie_flat_on_the_surface_and_cover_it_evenly(tmp_path: Path) -> None:
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.9)
    sphere.visual.vertex_colors = [200, 100, 50, 255]
    sphere.export(tmp_path / "x.glb")
    found = mesh_gaussians(tmp_path / "x.glb", 3000)
    assert len(found) == 3000 and (found.means.norm(dim=1) - 0.9).abs().max() < 0.01
    w, x, y, z = found.quats.detach().T
    third = torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1)
    normal = found.means / found.means.norm(dim=1, keepdim=True)
    assert (third * normal).sum(1).min() > 0.98
    assert (found.scales[:, 2] < found.scales[:, 0] - 2).all()
    inner = found.render(turntable(4, size=64)).opacity[:, 24:40, 24:40]
    assert inner.min() > 0.98, "no holes"
    few = found.tensors()
    scattered = torch.rand(len(found), generator=torch.Generator().manual_seed(0)) < 0.2
    sparse = Gaussians(**{name: value[scattered] for name, value in few.items()})
    assert sparse.render(turntable(4, size=64)).opacity[:, 24:40, 24:40].min() < 0.9, "control: a fifth has holes"


def test_a_mesh_stands_upright_and_looks_to_the_front(tmp_path: Path) -> None:
    """glTF has y up and the front at +z; gscfd z up and the front at +x."""
    square(image=quadrants()).export(tmp_path / "x.glb")
    start = present(read_start(InitConfig(ply=tmp_path / "x.glb", count=4000)))
    front = start.render(turntable(1, size=64, elevation=0.0)).rgb[0]
    for name, color in COLORS.items():
        row, column = (16 if "upper" in name else 47), (47 if "right" in name else 16)
        torch.testing.assert_close(front[row, column], torch.tensor(color) / 255, atol=0.1, rtol=0)
    lying = present(read_start(InitConfig(ply=tmp_path / "x.glb", count=4000, axes="z-up")))
    assert lying.means[:, 2].abs().max() < 1e-5, "control"


def test_vertices_faces_and_materials_have_colors_too(tmp_path: Path) -> None:
    by_vertex, by_face = square(), square()
    by_vertex.visual.vertex_colors = np.array([[255, 0, 0, 255]] * 2 + [[0, 0, 255, 255]] * 2, np.uint8)
    by_vertex.export(tmp_path / "vertex.obj")
    found = mesh_gaussians(tmp_path / "vertex.obj", 500)
    expected = found.means[:, 1].detach() / 2 + 0.5
    torch.testing.assert_close(rgb(found)[:, 2], expected, atol=0.01, rtol=0)

    factor = trimesh.visual.material.PBRMaterial(baseColorFactor=[0.5, 0.0, 1.0, 1.0])
    by_face.visual = trimesh.visual.TextureVisuals(material=factor)
    by_face.export(tmp_path / "factor.glb")
    # Half of the light is displayed as 188 of 255.
    seen = rgb(mesh_gaussians(tmp_path / "factor.glb", 10))[0]
    torch.testing.assert_close(seen, torch.tensor([188 / 255, 0, 1]), atol=0.01, rtol=0)

    (tmp_path / "kd.mtl").write_text("newmtl a\nKd 0.2 0.4 0.6\n")
    (tmp_path / "kd.obj").write_text("mtllib kd.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    seen = rgb(mesh_gaussians(tmp_path / "kd.obj", 10))[0]
    torch.testing.assert_close(seen, torch.tensor([0.2, 0.4, 0.6]), atol=0.01, rtol=0)


def half_clear(tmp_path: Path, alpha: int, **settings: Any) -> Gaussians:
    """The square from a .glb whose texture has this alpha on the right, by a material with the settings."""
    texture = np.array(quadrants().convert("RGBA"))
    texture[:, 32:, 3] = alpha
    shape = square(image=Image.fromarray(texture))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texture), **settings)
    shape.visual = trimesh.visual.TextureVisuals(uv=shape.visual.uv, material=material)
    shape.export(tmp_path / "x.glb")
    return mesh_gaussians(tmp_path / "x.glb", 1000)


@pytest.mark.parametrize(
    ("alpha", "settings"),
    [(0, {"alphaMode": "BLEND"}), (0, {"alphaMode": "MASK"}), (150, {"alphaMode": "MASK", "alphaCutoff": 0.7})],
)
def test_what_the_texture_leaves_out_is_left_out(alpha: int, settings: dict[str, Any], tmp_path: Path) -> None:
    found = half_clear(tmp_path, alpha, **settings)
    assert 400 < len(found) < 600 and (found.means[:, 0] > 0.1).sum() < 10, "but where the texture repeats"


@pytest.mark.parametrize("settings", [{}, {"alphaMode": "OPAQUE"}, {"alphaMode": "MASK", "alphaCutoff": 0.0}])
def test_the_alpha_of_an_opaque_material_means_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    found = half_clear(tmp_path, 0, **settings)
    assert found.means[:, 0].max() > 0.9 and len(found) == 1000


def test_the_factor_of_a_material_tints_its_texture_in_linear_light(tmp_path: Path) -> None:
    found = half_clear(tmp_path, 255, baseColorFactor=[0.5, 1.0, 0.0, 1.0])
    # Half of the light is displayed as 188 of 255.
    torch.testing.assert_close(at_quadrant(found, "upper left"), torch.tensor([188 / 255, 0, 0]), atol=0.02, rtol=0)
    torch.testing.assert_close(at_quadrant(found, "upper right"), torch.tensor([0.0, 1, 0]), atol=0.01, rtol=0)
    torch.testing.assert_close(at_quadrant(found, "lower left"), torch.zeros(3), atol=0.01, rtol=0)


def test_parts_are_placed_as_the_scene_has_them(tmp_path: Path) -> None:
    shape = square()
    shape.visual.face_colors = [255, 0, 0, 255]
    there = trimesh.transformations.translation_matrix([0, 0, 5])
    scene = trimesh.Scene()
    scene.add_geometry(shape)
    scene.add_geometry(shape, transform=there)
    scene.export(tmp_path / "x.glb")
    depth = mesh_gaussians(tmp_path / "x.glb", 1000).means[:, 2]
    assert (depth.abs() < 1e-4).sum() == 500 and ((depth - 5).abs() < 1e-4).sum() == 500


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"


def test_many_small_parts_have_as_many_discs_as_one_part_of_their_area(tmp_path: Path) -> None:
    whole, pieces = square(), []
    for i in range(400):
        piece = square()
        piece.apply_scale(1 / 20)
        piece.apply_translation([i, 0, 0])
        pieces.append(piece)
    for part in (whole, *pieces):
        part.visual.vertex_colors = [255, 0, 0, 255] if part is whole else [0, 0, 255, 255]
    trimesh.Scene([whole, *pieces]).export(tmp_path / "x.glb")
    red, _, blue = rgb(mesh_gaussians(tmp_path / "x.glb", 200)).sum(0).tolist()
    assert blue == pytest.approx(100, abs=1.5)
    assert red == pytest.approx(100, abs=1.5), "the control: the part alone"


def write_gone_texture(path: Path) -> None:
    path.with_suffix(".mtl").write_text("newmtl a\nKd 0.2 0.4 0.6\nmap_Kd -s 1 1 1 gone.png\n")
    path.write_text(f"mtllib {path.stem}.mtl\nusemtl a\n{TRIANGLE}")


@pytest.mark.parametrize(
    "name, make, words",
    [
        ("gone.glb", lambda path: None, "cannot be read"),
        ("bad.glb", lambda path: path.write_bytes(b"glTF123"), "cannot be read"),
        ("text.obj", lambda path: path.write_text("hello"), "with faces"),
        ("points.obj", lambda path: path.write_text("v 0 0 0\nv 1 0 0\n"), "with faces"),
        ("points.glb", lambda path: trimesh.PointCloud(np.eye(3)).export(path), "with faces"),
        ("plain.glb", lambda path: square().export(path), "with colors"),
        ("plain.obj", lambda path: path.write_text(TRIANGLE), "with colors"),
        ("line.obj", lambda path: path.write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"), "no area"),
        ("mtl.obj", lambda path: path.write_text(f"mtllib gone.mtl\nusemtl a\n{TRIANGLE}"), "expected gone.mtl beside"),
        ("texture.obj", write_gone_texture, "expected gone.png beside"),
    ],
)
def test_a_mesh_without_faces_or_colors_is_one_clear_line(
    name: str, make: Callable[[Path], object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / name)
    arguments = ["--prompt", "a mug", "--init", str(tmp_path / name), "--out", str(tmp_path / "run"), "--no-viewer"]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: init: expected") and words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_mesh_in_other_units_is_scaled_and_the_plan_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = square(image=quadrants())
    shape.apply_scale(50)
    shape.export(tmp_path / "x.glb")
    start = present(read_start(InitConfig(ply=tmp_path / "x.glb", count=300)))
    assert len(start) == 300 and 0.9 < start.means.norm(dim=1).max() < 1.1
    assert mesh_gaussians(tmp_path / "x.glb", 300).means.norm(dim=1).max() > 50, "control"
    arguments = ["--prompt", "a mug", "--init", str(tmp_path / "x.glb"), "--init.count", "300", "--dry-run"]
    capsys.readouterr()
    assert train.main(arguments) == 0
    said = capsys.readouterr()
    assert "x.glb, 300 Gaussians" in said.out and "is scaled by 0.0" in said.err
