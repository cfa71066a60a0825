import pytest
import torch

from gscfd.distil.schedule import anneal, time_index, uniform

MVDREAM = ((0.0, 0.0), (0.5, 0.4), (1.0, 0.7))


@pytest.mark.parametrize("fraction, expected", [(0.0, 0.98), (0.5, 0.596), (1.0, 0.308), (0.25, 0.788)])
def test_annealing_passes_through_the_official_values(fraction: float, expected: float) -> None:
    assert anneal(fraction, MVDREAM, 0.02, 0.98) == pytest.approx(expected)


def test_annealing_falls_monotonically() -> None:
    values = [anneal(i / 100, MVDREAM, 0.02, 0.98) for i in range(101)]
    assert values == sorted(values, reverse=True)


def test_annealing_is_clamped_at_both_ends() -> None:
    points = ((0.2, 0.1), (0.8, 0.9))
    assert anneal(0.0, points, 0, 1 - 1e-9) == anneal(0.2, points, 0, 1 - 1e-9)
    assert anneal(1.5, points, 0, 1 - 1e-9) == anneal(0.8, points, 0, 1 - 1e-9)


def test_uniform_times_fill_the_range() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [uniform(0.2, 0.6, generator) for _ in range(2000)]
    assert 0.2 <= min(draws) < 0.21 and 0.59 < max(draws) < 0.6
    assert sum(draws) / 2000 == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("t, index", [(0.0, 0), (0.98, 980), (0.9999, 999)])
def test_time_index_stays_inside_the_schedule(t: float, index: int) -> None:
    assert time_index(t, 1000) == index
