"""Methods in two dimensions, with an exact teacher of a mixture: which of them keep the proportions of the data."""

import pytest
import torch
from test_guidance import CAMERAS, GaussianTeacher
from test_sampling import MixtureTeacher, draws
from torch import Tensor

from gscfd.distil.sampling import clean_flow, falling_times, noise_level
from gscfd.lab.flat import FLAT, FLOW, noisy, noisy_from_gray, rfds_rev


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


def test_rfds_rev_loses_less_of_the_smaller_mode_than_sds_and_more_than_the_flow() -> None:
    shares = {name: (made_by(name, 3) > 0).double().mean().item() for name in ("sds in 2D", "rfds-rev in 2D", FLOW)}
    assert shares["sds in 2D"] + 0.1 < shares["rfds-rev in 2D"] < shares[FLOW] - 0.1


def test_a_step_of_rfds_rev_is_the_papers_two_steps_along_the_velocity() -> None:
    """Those of the code for Stable Diffusion 3, from z = 0; gscfd's weight is sigma times its own."""
    teacher, (noise, fresh) = GaussianTeacher("flow"), draws(1)
    _, sigma = teacher.alpha_sigma(600)

    def velocity(x_t: Tensor, cfg: float | None) -> Tensor:
        eps = teacher.predict_eps(x_t, 600, CAMERAS, cfg)
        return eps - (x_t - sigma * eps) / (1 - sigma)

    found = noise + (1 - sigma) * (velocity(sigma * noise, 1.0) - noise)
    expected = -sigma * (velocity(sigma * found, None) - found)
    assert torch.allclose(rfds_rev(teacher, noise, fresh, [600], CAMERAS), expected, atol=1e-10)
    as_drawn = -sigma * (velocity(sigma * noise, None) - noise)
    assert not torch.allclose(as_drawn, expected, atol=0.1), "control: the noise as drawn, which is sds"
