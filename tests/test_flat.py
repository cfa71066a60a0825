"""Methods in two dimensions, with an exact teacher of a mixture: which of them keep the proportions of the data."""

import pytest
import torch
from test_guidance import CAMERAS
from test_sampling import MixtureTeacher, draws
from torch import Tensor

from gscfd.distil.sampling import clean_flow, falling_times, noise_level
from gscfd.lab.flat import FLAT, FLOW, noisy, noisy_from_gray


def made_by(name: str, seed: int, steps: int = 100) -> Tensor:
    teacher, (noise, fresh) = MixtureTeacher(), draws(seed)
    return FLAT[name](teacher, noise, fresh, falling_times(steps, teacher.timesteps), CAMERAS)


def test_the_noisy_variable_from_noise_is_the_clean_flow_and_from_gray_it_is_not() -> None:
    teacher, (noise, fresh) = MixtureTeacher(), draws(0)
    times = falling_times(50, teacher.timesteps)
    flow = clean_flow(teacher, noise, fresh, times, CAMERAS, gamma=0.0)
    start = noise_level(teacher, times[0]) * noise
    assert torch.allclose(noisy(teacher, start, times, CAMERAS), flow, atol=1e-8)
    gray = noisy_from_gray(teacher, noise, fresh, times, CAMERAS)
    assert not torch.allclose(gray, flow, atol=0.1)
    assert torch.equal(gray, made_by("the noisy variable in 2D, from gray", 7, 50)), "no seed matters"


@pytest.mark.parametrize("name", [FLOW, "dsd in 2D"])
def test_the_flow_and_dsd_end_where_the_seeds_own_sample_does(name: str) -> None:
    same = (made_by(name, 1) > 0) == (made_by(FLOW, 1) > 0)
    assert same.double().mean() > 0.95
    other = (made_by(name, 1) > 0) == (made_by(FLOW, 2) > 0)
    assert other.double().mean() < 0.8, "the control: another seed"


@pytest.mark.parametrize("name", ["sds in 2D", "hifa in 2D", "the noisy variable in 2D, from gray"])
def test_methods_without_a_noise_of_their_own_prefer_the_larger_mode(name: str) -> None:
    shares = {method: (made_by(method, 3) > 0).double().mean().item() for method in (name, FLOW)}
    assert abs(shares[FLOW] - 0.3) < 0.1 < 0.15 < abs(shares[name] - 0.3)
