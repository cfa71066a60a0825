"""The clean flow: what the gradient is, and that following it is sampling."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import PixelTeacher
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.distil.guidance import (
    cds,
    cfd,
    ddim_step,
    distillation_loss,
    dsd,
    fsd,
    inverted,
    ism,
    sdi,
    sds,
    trajectory,
)
from gscfd.distil.sampling import ddim as sampled
from gscfd.toybox.models import build_scheduler
from gscfd.types import Cameras

CAMERAS = turntable(2, size=8)


class GaussianTeacher(PixelTeacher):
    """The exact teacher of data N(mean, 0.25): eps = sigma (x_t - alpha mean) / (0.25 alpha^2 + sigma^2). Without the
    text the data are N(empty, 0.25); the prompt's cfg is 1. It notes what it is asked."""

    multiview, image_size, latent_shape, timesteps = False, 8, (4, 8, 8), 1000

    def __init__(self, schedule: str = "diffusion") -> None:
        alphas = build_scheduler().alphas_cumprod.double()
        self.alphas = alphas
        straight = torch.arange(self.timesteps, dtype=torch.float64) / self.timesteps
        self.pairs = {
            "diffusion": list(zip(alphas.sqrt().tolist(), (1 - alphas).sqrt().tolist(), strict=True)),
            "flow": list(zip((1 - straight).tolist(), straight.tolist(), strict=True)),
        }[schedule]
        self.mean = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(4, 1, 1)
        self.empty = 0.2 - 0.5 * self.mean
        self.asked: list[tuple[int, float | None]] = []

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return self.pairs[t]

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        self.asked.append((t, cfg))
        alpha, sigma = self.alpha_sigma(t)
        mean = (self.empty + (1 if cfg is None else cfg) * (self.mean - self.empty)).to(x_t.dtype)
        return sigma * (x_t - alpha * mean) / (0.25 * alpha**2 + sigma**2)


def latents(seed: int) -> Tensor:
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("t", [20, 500, 980])
def test_the_gradient_points_from_the_denoised_prediction_to_z(t: int) -> None:
    teacher, z, noise = GaussianTeacher(), latents(0), latents(1)
    alpha, sigma = teacher.alpha_sigma(t)
    x_t = alpha * z + sigma * noise
    denoised = (x_t - sigma * teacher.predict_eps(x_t, t, CAMERAS)) / alpha
    assert torch.allclose(cfd(teacher, z, noise, t, CAMERAS), z - denoised, atol=1e-10)


def test_the_loss_hands_the_gradient_to_z() -> None:
    z, grad = latents(0).requires_grad_(), latents(1)
    distillation_loss(z, grad).backward()
    assert z.grad is not None and torch.allclose(z.grad, grad / len(z), atol=1e-12)


def clean_flow(teacher: GaussianTeacher, noise_of: Callable[[int], Tensor], times: list[int]) -> tuple[Tensor, float]:
    """Integrate the clean flow from z = 0 with Euler steps in sigma / alpha (CFD Eq. 8)."""
    z = torch.zeros(2, 4, 8, 8, dtype=torch.float64)
    ratios = [s / a for a, s in (teacher.alpha_sigma(t) for t in times)]
    for i, t in enumerate(times[:-1]):
        grad = cfd(teacher, z, noise_of(i), t, CAMERAS)
        z = z - grad * (ratios[i] - ratios[i + 1]) / ratios[i]
    return z, ratios[-1]


def ddim(teacher: GaussianTeacher, noise: Tensor, times: list[int]) -> Tensor:
    """diffusers' own DDIM sampler over the same times, from the same noise."""
    scheduler = DDIMScheduler.from_config({**build_scheduler().config, "prediction_type": "epsilon"})
    scheduler.alphas_cumprod = teacher.alphas
    scheduler.set_timesteps(len(teacher.alphas) // (times[0] - times[1]))
    x = teacher.alpha_sigma(times[0])[1] * noise
    for t in times[:-1]:
        x = scheduler.step(teacher.predict_eps(x, t, CAMERAS), t, x).prev_sample
    return x


def test_following_the_clean_flow_with_fixed_noise_is_ddim() -> None:
    teacher, noise, times = GaussianTeacher(), latents(2), list(range(981, 0, -20))
    z, ratio = clean_flow(teacher, lambda i: noise, times)
    alpha, _ = teacher.alpha_sigma(times[-1])
    assert torch.allclose(alpha * (z + ratio * noise), ddim(teacher, noise, times), atol=1e-10)


def test_fresh_noise_is_not_ddim() -> None:
    teacher, noise, times = GaussianTeacher(), latents(2), list(range(981, 0, -20))
    z, ratio = clean_flow(teacher, lambda i: latents(100 + i), times)
    alpha, _ = teacher.alpha_sigma(times[-1])
    assert not torch.allclose(alpha * (z + ratio * noise), ddim(teacher, noise, times), atol=0.1)


def test_fixed_noise_keeps_the_spread_of_the_data_and_fresh_noise_collapses_to_its_mean() -> None:
    """CFD section 4: SDS seeks a mode; the clean flow samples."""
    teacher, times = GaussianTeacher(), list(range(981, 0, -20))
    fixed, _ = clean_flow(teacher, lambda i: latents(2), times)
    fresh, _ = clean_flow(teacher, lambda i: latents(100 + i), times)
    assert (fixed - teacher.mean).std() == pytest.approx(0.5, abs=0.1)
    assert (fresh - teacher.mean).std() < 0.35


def test_sds_and_fsd_are_the_same_direction_with_other_noise() -> None:
    teacher, z = GaussianTeacher(), latents(0)
    for noise in (latents(1), latents(2)):
        direction = cfd(teacher, z, noise, 500, CAMERAS)
        assert torch.equal(sds(teacher, z, noise, 500, CAMERAS), direction)
        assert torch.equal(fsd(teacher, z, noise, 500, CAMERAS), direction)
    assert not torch.allclose(cfd(teacher, z, latents(1), 500, CAMERAS), direction)


def consistent3d(teacher: GaussianTeacher, z: Tensor, noise: Tensor, t1: int, t2: int) -> Tensor:
    """Consistent3D Eq. 10-11 in its own variables, x / alpha at the noise level s = sigma / alpha."""
    s1, s2 = (sigma / alpha for alpha, sigma in map(teacher.alpha_sigma, (t1, t2)))

    def denoiser(x: Tensor, s: float) -> Tensor:
        return (teacher.mean * s**2 + 0.25 * x) / (s**2 + 0.25)

    x1 = z + s1 * noise
    x2 = x1 + (s2 - s1) / s1 * (x1 - denoiser(x1, s1))
    return s1 / s2 * (denoiser(x2, s2) - denoiser(x1, s1))


@pytest.mark.parametrize("schedule", ["diffusion", "flow"])
def test_cds_is_the_equation_of_consistent3d_on_every_schedule(schedule: str) -> None:
    teacher, z, noise = GaussianTeacher(schedule), latents(0), latents(1)
    expected = consistent3d(teacher, z, noise, 700, 550)
    assert torch.allclose(cds(teacher, z, noise, 700, CAMERAS, target=550), expected, atol=1e-10)
    assert not torch.allclose(cds(teacher, z, noise, 700, CAMERAS, target=500), expected, atol=1e-3)


def test_cds_asks_with_its_own_guidance() -> None:
    teacher = GaussianTeacher()
    cds(teacher, latents(0), latents(1), 700, CAMERAS, target=550, cfg=20.0)
    assert teacher.asked == [(700, 20.0), (550, 20.0)]


def exact_flow(teacher: GaussianTeacher, x: Tensor, t: int, other: int) -> Tensor:
    """The probability-flow ODE of the data without text: x - alpha empty grows with its standard deviation."""
    (a, s), (b, u) = teacher.alpha_sigma(t), teacher.alpha_sigma(other)
    growth = math.sqrt((0.25 * b**2 + u**2) / (0.25 * a**2 + s**2))
    return b * teacher.empty + (x - a * teacher.empty) * growth


@pytest.mark.parametrize("schedule", ["diffusion", "flow"])
def test_the_inversion_converges_to_the_exact_flow(schedule: str) -> None:
    """With first order: a fifth of the step, about a fifth of the error. Noise alone is nowhere near."""
    teacher, z, noise = GaussianTeacher(schedule), latents(0), torch.zeros(2, 4, 8, 8, dtype=torch.float64)
    expected = exact_flow(teacher, teacher.alpha_sigma(0)[0] * z, 0, 600)
    errors = []
    for stride in (50, 10, 2):
        x = inverted(teacher, z, noise, 600, CAMERAS, cfg=0.0, stride=stride, steps=600)
        errors.append((x - expected).abs().max().item())
    assert errors[1] < 0.25 * errors[0] and errors[2] < 0.25 * errors[1] and errors[2] < 0.05
    alpha, sigma = teacher.alpha_sigma(600)
    assert (alpha * z + sigma * latents(1) - expected).abs().max() > 0.5


INVERSION = {"delta_t": 50, "xs_delta_t": 200, "xs_inv_steps": 5}


@pytest.mark.parametrize("schedule", ["diffusion", "flow"])
@pytest.mark.parametrize("method, cfg", [(ism, 0.0), (sdi, 1.0)])
def test_interval_methods_compare_the_two_ends_of_the_last_step_of_an_inversion(
    method: Callable[..., Tensor], cfg: float, schedule: str
) -> None:
    teacher, z, noise = GaussianTeacher(schedule), latents(0), latents(1)
    grad = method(teacher, z, noise, 600, CAMERAS, **INVERSION)
    assert teacher.asked == [(0, cfg), (200, cfg), (400, cfg), (550, cfg), (600, None)]
    alpha, sigma = teacher.alpha_sigma(600)
    x = teacher.alpha_sigma(0)[0] * z + teacher.alpha_sigma(0)[1] * noise
    for now, later in ((0, 200), (200, 400), (400, 550), (550, 600)):
        (a, s), (b, u) = teacher.alpha_sigma(now), teacher.alpha_sigma(later)
        eps = teacher.predict_eps(x, now, CAMERAS, cfg)
        x = b / a * x + (u - b * s / a) * eps
    assert torch.allclose(grad, sigma / alpha * (teacher.predict_eps(x, 600, CAMERAS) - eps), atol=1e-10)


def test_ism_is_sdi_only_where_the_text_says_nothing() -> None:
    teacher, z, noise = GaussianTeacher(), latents(0), latents(1)
    assert (
        ism(teacher, z, noise, 600, CAMERAS, **INVERSION) - sdi(teacher, z, noise, 600, CAMERAS, **INVERSION)
    ).abs().max() > 0.1
    teacher.empty = teacher.mean
    first, second = (method(teacher, z, noise, 600, CAMERAS, **INVERSION) for method in (ism, sdi))
    assert torch.equal(first, second)


def test_few_steps_of_inversion_start_from_the_noisy_image() -> None:
    teacher = GaussianTeacher()
    grads = [ism(teacher, latents(0), latents(n), 600, CAMERAS, **{**INVERSION, "xs_inv_steps": 2}) for n in (1, 2)]
    assert [t for t, _ in teacher.asked[:4]] == [150, 350, 550, 600]
    assert not torch.allclose(grads[0], grads[1], atol=0.01)


def test_an_inversion_of_less_than_its_last_step_starts_at_the_image() -> None:
    teacher = GaussianTeacher()
    ism(teacher, latents(0), latents(1), 20, CAMERAS, **INVERSION)
    assert teacher.asked == [(0, 0.0), (20, None)]


@pytest.mark.parametrize("schedule", ["diffusion", "flow"])
def test_dsd_leads_along_the_denoised_images_of_the_seeds_own_trajectory(schedule: str) -> None:
    """CFD Eq. 43: from the denoised image at one time of DDIM to that at the next."""
    teacher, noise = GaussianTeacher(schedule), latents(1)
    x = trajectory(teacher, noise, 500, CAMERAS, 10)
    eps = teacher.predict_eps(x, 500, CAMERAS)
    later = ddim_step(teacher, x, eps, 500, 450)
    alpha, sigma = teacher.alpha_sigma(500)
    z = (x - sigma * eps) / alpha
    alpha, sigma = teacher.alpha_sigma(450)
    target = (later - sigma * teacher.predict_eps(later, 450, CAMERAS)) / alpha
    assert torch.allclose(dsd(teacher, z, noise, 450, CAMERAS, before=500), z - target, atol=1e-10)
    other = dsd(teacher, z, latents(2), 450, CAMERAS, before=500)
    assert not torch.allclose(other, z - target, atol=0.01), "control: another seed"


def test_dsd_asks_for_the_trajectory_and_then_at_its_two_times() -> None:
    teacher = GaussianTeacher()
    dsd(teacher, latents(0), latents(1), 700, CAMERAS, before=750)
    assert teacher.asked == [(999, None), (900, None), (800, None), (750, None), (750, 1.0), (700, None)]
    teacher.asked.clear()
    dsd(teacher, latents(0), latents(1), 980, CAMERAS, before=999)
    assert teacher.asked == [(999, None), (999, 1.0), (980, None)], "at the last time, the trajectory is the noise"


def test_a_trajectory_to_the_end_is_ddims_sample() -> None:
    teacher, noise = GaussianTeacher("flow"), latents(1)
    expected = sampled(teacher, noise, [999, 900, 800, 700, 600, 500, 400, 300, 200, 100], CAMERAS)
    assert torch.allclose(trajectory(teacher, noise, 0, CAMERAS, 10), expected, atol=1e-10)


@pytest.mark.parametrize("schedule", ["diffusion", "flow"])
def test_without_noise_the_gradient_is_that_of_the_noisy_variable(schedule: str) -> None:
    """CFD Eq. 6 with x_t / alpha = z."""
    teacher, z = GaussianTeacher(schedule), latents(0)
    alpha, sigma = teacher.alpha_sigma(500)
    expected = sigma / alpha * teacher.predict_eps(alpha * z, 500, CAMERAS)
    assert torch.allclose(cfd(teacher, z, torch.zeros_like(z), 500, CAMERAS), expected, atol=1e-10)
