"""Distillation in two dimensions is sampling: the clean flow against diffusers' DDIM and EDM's Algorithm 2, and what
fresh noise does to diversity. The teachers are exact, of a mixture of Gaussians."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from test_guidance import CAMERAS, GaussianTeacher
from torch import Tensor

from gscfd.config import rescaled_gamma
from gscfd.distil.guidance import cfd
from gscfd.distil.sampling import (
    clean_flow,
    ddim,
    edm,
    falling_times,
    nearest_time,
    noise_level,
    noise_levels,
    refreshed,
)
from gscfd.teachers.base import Teacher
from gscfd.toybox.models import build_scheduler
from gscfd.types import Cameras


class MixtureTeacher(GaussianTeacher):
    """The exact teacher of data whose entries are each N(-1, 0.01) or, three times in ten, N(1, 0.01)."""

    shares, means, variance = (0.7, 0.3), (-1.0, 1.0), 0.01

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        spread = alpha**2 * self.variance + sigma**2
        logits = [
            math.log(w) - (x_t - alpha * m) ** 2 / (2 * spread) for w, m in zip(self.shares, self.means, strict=True)
        ]
        chosen = torch.softmax(torch.stack(logits), 0)
        kinds = [m + alpha * self.variance / spread * (x_t - alpha * m) for m in self.means]
        x0: Tensor = sum((c * k for c, k in zip(chosen, kinds, strict=True)), torch.zeros_like(x_t))
        return (x_t - alpha * x0) / sigma


def draws(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Callable[[int], Tensor]]:
    """(the noise at the start, fresh noise of every step), of one seed."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=generator).to(dtype)
    return first, lambda step: torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=generator).to(dtype)


def diffusers_ddim(teacher: GaussianTeacher, noise: Tensor, steps: int) -> tuple[Tensor, list[int]]:
    """diffusers' own sampler: its picture, and its times."""
    scheduler = DDIMScheduler.from_config(
        {**build_scheduler().config, "prediction_type": "epsilon", "set_alpha_to_one": True}
    )
    scheduler.alphas_cumprod = teacher.alphas
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    x = teacher.alpha_sigma(times[0])[1] * noise
    for t in times:
        x = scheduler.step(teacher.predict_eps(x, t, CAMERAS), t, x).prev_sample
    return x, times


@pytest.mark.parametrize("kind", [GaussianTeacher, MixtureTeacher])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_clean_flow_without_fresh_noise_is_diffusers_ddim(
    kind: type[GaussianTeacher], dtype: torch.dtype, tolerance: float
) -> None:
    teacher, (noise, fresh) = kind(), draws(1, dtype)
    expected, times = diffusers_ddim(teacher, noise, 50)
    picture = clean_flow(teacher, noise, fresh, times, CAMERAS, gamma=0.0)
    assert picture.dtype == dtype and (picture - expected).abs().max() <= tolerance
    start = teacher.alpha_sigma(times[0])[1] * noise
    assert (ddim(teacher, start, times, CAMERAS) - expected).abs().max() <= tolerance


@pytest.mark.parametrize("gamma", [0.01, 1.0])
def test_the_clean_flow_with_fresh_noise_is_not_ddim(gamma: float) -> None:
    teacher, (noise, fresh) = GaussianTeacher(), draws(1)
    expected, times = diffusers_ddim(teacher, noise, 50)
    assert (clean_flow(teacher, noise, fresh, times, CAMERAS, gamma=gamma) - expected).abs().max() > 0.1


def test_other_noise_is_another_picture() -> None:
    teacher, times = GaussianTeacher(), falling_times(50, 1000)
    first, second = (clean_flow(teacher, *draws(seed), times, CAMERAS, gamma=0.0) for seed in (1, 2))
    assert (first - second).abs().max() > 0.5


def test_the_clean_flow_of_a_flow_teacher_is_its_euler_sampler() -> None:
    teacher, (noise, fresh), times = MixtureTeacher("flow"), draws(1), falling_times(30, 1000)
    x, sigmas = times[0] / 1000 * noise, [*(t / 1000 for t in times), 0.0]
    for i, t in enumerate(times):
        eps = teacher.predict_eps(x, t, CAMERAS)
        velocity = eps - (x - sigmas[i] * eps) / (1 - sigmas[i])
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity
    assert (clean_flow(teacher, noise, fresh, times, CAMERAS, gamma=0.0) - x).abs().max() <= 1e-10


def edm_algorithm_2(
    teacher: GaussianTeacher, noise: Tensor, fresh: Callable[[int], Tensor], times: Sequence[int], churn: float
) -> Tensor:
    """Karras et al. 2022, Algorithm 2, with the noise in the picture and levels rounded to those of the teacher."""
    all_levels = torch.tensor([noise_level(teacher, t) for t in range(teacher.timesteps)], dtype=torch.float64)

    def denoise(x: Tensor, t: int) -> Tensor:
        alpha, sigma = teacher.alpha_sigma(t)
        return x - sigma / alpha * teacher.predict_eps(alpha * x, t, CAMERAS)

    x = all_levels[times[0]] * noise
    gamma = min(churn / len(times), 2**0.5 - 1)
    for i, t in enumerate(times):
        now, later = all_levels[t], all_levels[times[i + 1]] if i + 1 < len(times) else torch.tensor(0.0)
        back = int((all_levels - (now + gamma * now)).abs().argmin())
        hat = all_levels[back]
        x_hat = x + (hat**2 - now**2).sqrt() * fresh(i) if hat > now else x
        slope = (x_hat - denoise(x_hat, back)) / hat
        x = x_hat + (later - hat) * slope
        if later > 0:
            end_slope = (x - denoise(x, times[i + 1])) / later
            x = x_hat + (later - hat) * (slope + end_slope) / 2
    return x


@pytest.mark.parametrize("schedule", ["diffusion", "flow"])
@pytest.mark.parametrize("churn", [0.0, 4.0, 40.0])
def test_the_clean_flow_sde_is_edms_algorithm_2_with_the_same_draws(churn: float, schedule: str) -> None:
    teacher, times = MixtureTeacher(schedule), falling_times(18, 1000)
    picture = edm(teacher, *draws(3), times, CAMERAS, churn=churn)
    assert (picture - edm_algorithm_2(teacher, *draws(3), times, churn)).abs().max() <= 1e-9
    assert (picture - edm_algorithm_2(teacher, *draws(4), times, churn)).abs().max() > 0.1
    assert (picture - edm_algorithm_2(teacher, *draws(3), times, 2.0)).abs().max() > 1e-3


def test_noise_levels_are_rounded_to_the_nearest_time() -> None:
    teacher = GaussianTeacher()
    assert all(nearest_time(teacher, noise_level(teacher, t) * 1.0001) == t for t in (0, 20, 500, 980, 999))


@pytest.mark.parametrize("gamma", [0.0, 1e-4, 0.05, 1.0])
def test_the_variance_of_the_noise_stays_1(gamma: float) -> None:
    """Within 5 standard errors of 40 000 values; sums that are not of squares lose it."""
    generator = torch.Generator().manual_seed(0)
    start = noise = lost = torch.randn(40_000, dtype=torch.float64, generator=generator)
    for _ in range(200):
        fresh = torch.randn(40_000, dtype=torch.float64, generator=generator)
        noise, lost = refreshed(noise, fresh, gamma), (1 - gamma) * lost + gamma * fresh
    limit = 5 * math.sqrt(2 / 40_000)
    assert abs(noise.var() - 1) < limit
    assert (start * noise).mean() == pytest.approx((1 - gamma) ** 100, abs=5 / math.sqrt(40_000))
    if gamma == 0.05:
        assert abs(lost.var() - 1) > 10 * limit


def test_seeds_give_diverse_pictures_with_cfd_and_collapse_with_sds() -> None:
    """Diversity: standard deviation between 12 seeds of each entry, and the share of entries in the rarer kind."""
    teacher, times = MixtureTeacher(), falling_times(200, 1000)
    spread, rare = {}, {}
    for name, gamma in (("cfd", 1e-4), ("fsd", 0.0), ("sds", 1.0)):
        pictures = torch.stack([clean_flow(teacher, *draws(s), times, CAMERAS, gamma=gamma) for s in range(12)])
        spread[name], rare[name] = pictures.std(0).mean().item(), (pictures > 0).double().mean().item()
    of_data = math.sqrt(1 - 0.4**2 + teacher.variance)
    for name in ("cfd", "fsd"):
        assert spread[name] > 0.9 * of_data and rare[name] == pytest.approx(0.3, abs=0.04)
    assert spread["sds"] < 0.25 * of_data and rare["sds"] < 0.05


# ------------------------------------------------------------------------------------- the law of the clean flow's SDE


class NormalTeacher(GaussianTeacher):
    """The exact teacher of data whose entries are N(0, 1)."""

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return sigma * x_t / (alpha**2 + sigma**2)


def without_drift(
    teacher: Teacher,
    noise: Tensor,
    fresh: Callable[[int], Tensor],
    times: Sequence[int],
    cameras: Cameras,
    *,
    gamma: float,
) -> Tensor:
    """The control: fresh noise alone, with steps from the teacher's own levels."""
    z, levels = torch.zeros_like(noise), noise_levels(teacher, times)
    for step, t in enumerate(times):
        noise = refreshed(noise, fresh(step), gamma) if step else noise
        z = z + (levels[step + 1] - levels[step]) / levels[step] * cfd(teacher, z, noise, t, cameras)
    return z


def pictures_of(flow: Callable[..., Tensor], teacher: Teacher, gamma: float) -> Tensor:
    """Of 20 480 entries, with as much fresh noise in 400 steps as with gamma in CFD's 25 000."""
    generator = torch.Generator().manual_seed(0)

    def fresh(step: int) -> Tensor:
        return torch.randn(80, 4, 8, 8, dtype=torch.float64, generator=generator)

    gamma = rescaled_gamma(gamma, 25_000, 400)
    return flow(teacher, fresh(0), fresh, falling_times(400, 1000), CAMERAS, gamma=gamma)


@pytest.mark.parametrize("gamma, least, undrifted", [(1e-4, 0.96, 0.90), (1e-3, 0.94, 0.55), (1e-2, 0.87, 0.30)])
def test_fresh_noise_leaves_the_spread_of_normal_data(gamma: float, least: float, undrifted: float) -> None:
    """A standard error is .005; the steps themselves cost a few hundredths."""
    assert least < pictures_of(clean_flow, NormalTeacher(), gamma).std().item() < 1.02
    assert pictures_of(without_drift, NormalTeacher(), gamma).std().item() < undrifted, "the control"


def test_much_fresh_noise_in_few_steps_stops_at_the_teachers_last_level() -> None:
    """Any share beyond it gives the picture of that level, which has the data's scale."""
    teacher, times = NormalTeacher(), falling_times(20, 1000)
    flow = partial(clean_flow, teacher, times=times, cameras=CAMERAS)
    some, much, more = (flow(*draws(1), gamma=gamma) for gamma in (0.9, 1 - 1e-8, 1 - 1e-12))
    assert torch.equal(much, more) and much.abs().max() < 5
    assert not torch.equal(some, much), "the control: a share that the levels hold"


def test_fresh_noise_leaves_the_shares_of_two_kinds() -> None:
    """Three in ten are of the second kind, up to 4 standard errors and the steps' own error."""
    shares = {flow: (pictures_of(flow, MixtureTeacher(), 1e-3) > 0).double().mean().item() for flow in FLOWS}
    assert shares[clean_flow] == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 20_480) + 0.02)
    assert abs(shares[without_drift] - 0.3) > 0.06, "the control"


FLOWS = (clean_flow, without_drift)
