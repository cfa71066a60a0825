"""What hangs in the air and is hardly seen, or faint, goes; what is seen, or hidden in the object, stays."""

from __future__ import annotations

import pytest
import torch

from gscfd.cameras import turntable
from gscfd.config import Config
from gscfd.distil.floaters import FAINT, contributions, islands, remove_floaters, supported
from gscfd.gaussians import Gaussians, ball, rasterize


def with_specks(*places: list[float], opacity: float = 0.02) -> Gaussians:
    """A solid ball, and single Gaussians at these places."""
    body = ball(600, radius=0.5, opacity=0.9, generator=torch.Generator().manual_seed(0))
    speck = ball(len(places), radius=0.1, opacity=opacity, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        speck.means.copy_(torch.tensor(places))
        speck.scales.fill_(-4.0)
    return Gaussians(**{name: torch.cat([body.params[name], speck.params[name]]) for name in body.params})


def removed(gaussians: Gaussians) -> int:
    return remove_floaters(gaussians, Config().coarse, rasterize, size=32, seed=0)


def test_a_speck_in_the_air_goes_and_the_object_stays() -> None:
    gaussians = with_specks([0.0, 0.0, 1.15], [0.9, 0.0, 0.0])
    assert removed(gaussians) == 2 and len(gaussians) == 600
    assert removed(gaussians) == 0, "again there is none"


def test_a_part_of_the_object_that_hangs_in_the_air_stays_if_it_is_seen() -> None:
    part = [[0.8 + 0.03 * i, 0.03 * j, 0.03 * k] for i in range(4) for j in range(4) for k in range(4)]
    assert removed(with_specks(*part, opacity=0.9)) == 0
    assert removed(with_specks(*part, opacity=0.001)) == 64, "the control"


def test_what_is_hidden_in_the_object_stays_though_no_view_sees_it() -> None:
    gaussians = with_specks([0.0, 0.0, 0.0])
    seen = contributions(gaussians, turntable(4, size=32), rasterize)[0]
    assert seen[-1] < 1e-3 < seen[:-1].max()
    assert removed(gaussians) == 0


def test_a_film_in_the_air_goes_and_faint_gaussians_before_the_object_stay() -> None:
    above = [[0.0, 0.0, 0.55 + 0.04 * i] for i in range(10)]
    before = [[0.45, 0.03 * j, 0.03 * k] for j in range(-2, 3) for k in range(-2, 3)]
    film, front = with_specks(*above, opacity=0.9 * FAINT), with_specks(*before, opacity=0.9 * FAINT)
    assert 6 <= removed(film) <= 10 and film.means[:, 2].max() < 0.75
    assert removed(front) == 0
    assert removed(with_specks(*above, opacity=1.5 * FAINT)) == 0, "control: not faint"


def test_a_splat_that_is_a_film_stays() -> None:
    ghost = ball(50, radius=0.5, opacity=0.01, generator=torch.Generator().manual_seed(0))
    assert removed(ghost) == 0 and len(ghost) == 50


def test_black_is_seen_as_well_as_white() -> None:
    gaussians, cameras = with_specks([0.9, 0.0, 0.0]), turntable(3, size=32)
    white = contributions(gaussians, cameras, rasterize)
    with torch.no_grad():
        gaussians.sh0.fill_(-9.0)
    assert torch.equal(contributions(gaussians, cameras, rasterize), white)
    assert rasterize(gaussians, cameras).rgb.max() == 0, "control: its own color shows nothing"


def test_contributions_add_up_to_the_opacity_of_the_views() -> None:
    gaussians, cameras = with_specks([0.9, 0.0, 0.0]), turntable(3, size=32)
    total = contributions(gaussians, cameras, rasterize)[0].sum().item()
    assert total == pytest.approx(rasterize(gaussians, cameras).opacity.sum().item(), rel=1e-3)


def test_clones_of_a_gaussian_are_no_island_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    chain = torch.tensor([[0.06 * i, 0.0, 0.0] for i in range(10)]).repeat_interleave(20, dim=0)
    clones = chain + 1e-4 * torch.randn(chain.shape, generator=generator)
    assert set(islands(clones)) == {0}
    apart = clones + torch.tensor([0.0, 0.5, 0.0]) * (torch.arange(len(clones)) < 20)[:, None]
    assert len(set(islands(apart))) == 2, "control: the first clones, moved away"


def test_points_within_the_gap_hang_together() -> None:
    line = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.2, 0.0, 0.0], [0.7, 0.0, 0.0]])
    labels = islands(line)
    assert labels[0] == labels[1] == labels[2] != labels[3]
    assert supported(labels, torch.tensor([1.0, 0.0, 0.0, 0.001])).tolist() == [True, True, True, False]
    assert supported(labels, torch.tensor([1.0, 0.0, 0.0, 0.1])).all()
    assert len(set(islands(10 * line))) == 2, "so of a sparse splat"
    assert islands(line[:1]).tolist() == [0], "one alone"
