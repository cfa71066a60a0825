from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData

from gscfd.distil.state import make_optimizers
from gscfd.errors import UserError
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians, ball


def some(count: int = 50, degree: int = 0) -> Gaussians:
    return ball(count, radius=0.6, opacity=0.3, sh_degree=degree, generator=torch.Generator().manual_seed(1))


def test_the_ball_is_filled_evenly() -> None:
    gaussians = some(4000)
    r = gaussians.means.norm(dim=-1)
    assert r.max() <= 0.6
    assert (r < 0.3).double().mean().item() == pytest.approx(1 / 8, abs=0.02), "an eighth of the volume"
    assert torch.allclose(gaussians.opacities.sigmoid(), torch.tensor(0.3))


def test_start_sizes_follow_the_neighbors() -> None:
    assert some(200).scales.mean() > some(5000).scales.mean() + 0.5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_gaussians_start_with_finite_sizes(count: int) -> None:
    assert some(count).scales.isfinite().all()


def test_the_same_seed_gives_the_same_ball() -> None:
    assert all(torch.equal(a, b) for a, b in zip(some().params.values(), some().params.values(), strict=True))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_round_trips_bit_for_bit(tmp_path: Path, degree: int) -> None:
    gaussians = some(degree=degree)
    with torch.no_grad():
        gaussians.params["shN"].normal_()
    gaussians.save_ply(tmp_path / "a.ply")
    again = Gaussians.load_ply(tmp_path / "a.ply")
    assert again.sh_degree == degree
    for name, value in gaussians.tensors().items():
        assert torch.equal(again.tensors()[name], value), name


def test_ply_has_the_layout_of_the_3dgs_reference_program(tmp_path: Path) -> None:
    gaussians = some(degree=1)
    with torch.no_grad():
        gaussians.params["shN"].normal_()
    gaussians.save_ply(tmp_path / "a.ply")
    header = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode()
    assert "format binary_little_endian 1.0" in header
    vertices = PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    rest = [f"f_rest_{i}" for i in range(9)]
    expected = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest]
    expected += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert list(vertices.dtype.names) == expected
    # f_rest runs over the coefficients of red, then green, then blue.
    assert np.array_equal(vertices["f_rest_4"], gaussians.shN[:, 1, 1].detach().numpy())


def test_a_file_that_is_not_a_splat_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n")
    with pytest.raises(UserError, match="no property y"):
        Gaussians.load_ply(tmp_path / "a.ply")
    (tmp_path / "b.ply").write_bytes(b"not a ply")
    with pytest.raises(UserError, match="cannot be read"):
        Gaussians.load_ply(tmp_path / "b.ply")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="no space"), atomic_write(path) as file:
        file.write(b"new")
        raise OSError("no space")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_wrong_shapes_are_named() -> None:
    tensors = some().tensors()
    with pytest.raises(ValueError, match="quats"):
        Gaussians(**{**tensors, "quats": tensors["quats"][:, :3]})
    with pytest.raises(ValueError, match="shN"):
        Gaussians(**{**tensors, "shN": torch.zeros(50, 4, 3)})


def test_every_parameter_has_its_own_optimizer_and_step_size() -> None:
    gaussians = some()
    rates = {name: 10.0**-i for i, name in enumerate(gaussians.params)}
    optimizers = make_optimizers(gaussians, rates)
    assert {n: o.param_groups[0]["lr"] for n, o in optimizers.items()} == rates
