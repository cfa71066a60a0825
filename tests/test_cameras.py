import math

import pytest
import torch

from gscfd.cameras import azimuth_elevation, camera_to_world, mvdream_matrices, orbit, sample_group, turntable
from gscfd.types import Cameras


def one(azimuth: float, elevation: float, size: int = 64) -> Cameras:
    value = torch.ones(1, dtype=torch.float64)
    return orbit(azimuth * value, elevation * value, 2 * value, 40 * value, size, size)


def test_mvdream_matrix_matches_the_published_reference() -> None:
    expected = [[0, -0.2588, 0.9659, 0.9659], [1, 0, 0, 0], [0, 0.9659, 0.2588, 0.2588], [0, 0, 0, 1]]
    matrix = mvdream_matrices(one(0, 15)).reshape(4, 4)
    assert torch.allclose(matrix, torch.tensor(expected, dtype=torch.float64), atol=5e-5)


def test_mvdream_matrix_tells_azimuths_apart() -> None:
    assert (mvdream_matrices(one(0, 15)) - mvdream_matrices(one(90, 15))).abs().max() > 0.5


@pytest.mark.parametrize("azimuth, elevation", [(0, 0), (30, 20), (-120, -35), (179, 80)])
def test_azimuth_and_elevation_come_back(azimuth: int, elevation: int) -> None:
    a, e = azimuth_elevation(one(azimuth, elevation))
    assert a.item() == pytest.approx(azimuth) and e.item() == pytest.approx(elevation)


def test_cameras_look_at_the_origin_with_z_up() -> None:
    cameras = one(50, 25)
    origin = cameras.Ks[0] @ cameras.viewmats[0, :3, 3]
    assert torch.allclose(origin[:2] / origin[2], torch.tensor([32.0, 32.0], dtype=torch.float64))
    above = cameras.Ks[0] @ (
        cameras.viewmats[0, :3, :3] @ torch.tensor([0, 0, 0.2], dtype=torch.float64) + cameras.viewmats[0, :3, 3]
    )
    assert above[1] / above[2] < 32, "a point above the origin is drawn above the center (y points down)"


def test_camera_to_world_inverts_the_viewmats() -> None:
    cameras = turntable(5, size=32)
    assert torch.allclose(camera_to_world(cameras) @ cameras.viewmats, torch.eye(4).expand(5, 4, 4), atol=1e-6)


def test_views_of_a_group_are_evenly_spaced_and_share_the_rest() -> None:
    cameras = sample_group(
        4, elevation=(0, 30), fov=(30, 45), radius=(1, 1.1), size=64, generator=torch.Generator().manual_seed(3)
    )
    azimuth, elevation = azimuth_elevation(cameras)
    steps = (azimuth.roll(-1) - azimuth) % 360
    assert torch.allclose(steps, torch.full((4,), 90.0), atol=1e-3)
    assert elevation.std() < 1e-3 and 0 <= elevation[0] <= 30
    assert torch.equal(cameras.Ks[0], cameras.Ks[3])


def test_groups_differ_from_draw_to_draw() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (
        sample_group(4, elevation=(0, 30), fov=(30, 45), radius=(1, 1.1), size=64, generator=generator)
        for _ in range(2)
    )
    assert not torch.allclose(first.viewmats, second.viewmats)


def test_resizing_keeps_the_field_of_view() -> None:
    large = one(0, 0).resized(128, 128)
    assert math.isclose(large.Ks[0, 0, 0] / 128, one(0, 0).Ks[0, 0, 0] / 64)


@pytest.mark.parametrize(
    "viewmats, Ks, size, word",
    [((2, 4, 3), (2, 3, 3), 8, "viewmats"), ((2, 4, 4), (1, 3, 3), 8, "Ks"), ((1, 4, 4), (1, 3, 3), 0, "width")],
)
def test_wrong_shapes_are_named(viewmats: tuple[int, int, int], Ks: tuple[int, int, int], size: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Cameras(torch.zeros(viewmats), torch.zeros(Ks), size, size)
