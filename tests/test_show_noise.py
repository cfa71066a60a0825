"""`python -m gscfd.show_noise` on a small splat."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from whiteness import consistency, ks_normal, morans_i, owner_views

from gscfd import show_noise
from gscfd.cameras import turntable
from gscfd.config import Config, to_yaml
from gscfd.gaussians import Gaussians, ball
from gscfd.lab import noise_pictures
from gscfd.noise import kinds
from gscfd.noise.field import NoiseField
from gscfd.noise.kinds import NOISES
from gscfd.runs import names as runs_names


@pytest.fixture(scope="module")
def splat() -> Gaussians:
    return ball(400, radius=0.8, opacity=0.95, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(splat: Gaussians, tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(to_yaml(Config(prompt="a red ball")))
    splat.save_ply(tmp_path / "splat.ply")
    (tmp_path / "turntable.png").write_bytes(b"")
    return tmp_path


def test_it_leaves_a_video_a_sheet_and_a_correlation_map(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_noise.main([str(run), "--frames", "4", "--size", "64"]) == 0
    assert iio.imread(run / "noise.mp4", plugin="FFMPEG").shape == (4, 64, 128, 3)
    assert iio.imread(run / "noise.png").shape == (128, 256, 3)
    assert iio.imread(run / "noise-correlation.png").shape == (64, 192, 3)
    printed = capsys.readouterr().out
    assert "noise.mp4" in printed and "predicts" in printed
    assert not runs_names.foreign_files(run), "--overwrite must still know the folder as a run"


def test_another_noise_and_another_place_can_be_chosen(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "other.mp4"
    assert show_noise.main([str(run), "--frames", "3", "--size", "32", "--noise", "world_map", "--out", str(out)]) == 0
    assert out.exists() and out.with_suffix(".png").exists() and not (tmp_path / "other-correlation.png").exists()


@pytest.mark.parametrize("mine", ["film.mp4", "film.png", "film-correlation.png"])
def test_files_of_others_at_a_chosen_place_are_kept(
    run: Path, tmp_path: Path, mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / mine).write_bytes(b"mine")
    assert show_noise.main([str(run), "--frames", "3", "--size", "32", "--out", str(place / "film.mp4")]) == 2
    assert f"{mine} exists" in capsys.readouterr().err and (place / mine).read_bytes() == b"mine"
    assert [path.name for path in place.iterdir()] == [mine]


def test_a_still_frame_is_white_noise(splat: Gaussians) -> None:
    field = NoiseField(3, 3, 64, 64, gamma=0.0)
    frame = noise_pictures.painted_turntable(splat, field, "surface", 2, 256)[0, ::4, 256::4]
    values = (torch.from_numpy(frame).permute(2, 0, 1).double() / 255 - 0.5) * 5
    assert morans_i(values)[1].min() > 0.001
    # Eight bits, and the tails cut off at 2.5 standard deviations.
    inside = values.abs() < 2.4
    assert abs(inside.double().mean() - 0.9836) < 0.006
    jitter = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    assert ks_normal((values + jitter * 5 / 255)[inside][:2000]) > 1e-3


@pytest.mark.parametrize("radial", [False, True])
def test_the_map_shows_the_share_that_the_other_view_predicts(splat: Gaussians, radial: bool) -> None:
    cameras = turntable(36, size=64)[:2]
    render, field = splat.render(cameras), NoiseField(0, 3, 16, 16)
    cells = kinds.radial_grid(field) if radial else kinds.grid(field)
    share = noise_pictures.predicted_share(field, cells, cameras, render)
    a, b = owner_views(field, cameras, render, radial=radial)
    assert share.flatten()[torch.from_numpy(a.coverage == 1)].mean() == pytest.approx(consistency(a, b))
    assert share.min() == 0 and share.max() <= 1 + 1e-9
    same = turntable(36, size=64)[0:1]
    twice = type(cameras)(same.viewmats.repeat(2, 1, 1), same.Ks.repeat(2, 1, 1), 64, 64)
    itself = noise_pictures.predicted_share(field, cells, twice, splat.render(twice)).flatten()
    assert np.allclose(itself[torch.from_numpy(a.counts > 0)], 1), "a view predicts itself"


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_noise_that_is_fresh_in_every_view_is_not_predicted(splat: Gaussians, beta: float) -> None:
    """A view predicts a view a hundredth of a degree away by the square of their correlation, which is beta."""
    field, twice = NoiseField(0, 3, 16, 16, beta=beta), turntable(36_000, size=64)[:2]
    render = splat.render(twice)
    share = noise_pictures.predicted_share(field, kinds.grid(field), twice, render)
    filled = share > 0
    drawn = torch.cat(
        [NOISES["surface"](NoiseField(seed, 3, 16, 16, beta=beta), twice, render, 0) for seed in range(9)], 1
    )
    correlation = (drawn[0] * drawn[1])[:, filled].mean().item()
    assert correlation == pytest.approx(beta, abs=0.1)
    assert share[filled].mean().item() == pytest.approx(correlation**2, abs=0.1)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], ["runs", "nowhere", "config.yaml"]),
        (["RUN", "--frames", "1"], ["frames", "at least 2"]),
        (["RUN", "--size", "30"], ["size", "multiple of 4"]),
        (["RUN", "--out", "noise.gif"], ["out", ".mp4"]),
        (["RUN", "--out", "no/such/folder/noise.mp4"], ["out", "no/such/folder"]),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str], words: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_noise.main([str(run) if a == "RUN" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error
