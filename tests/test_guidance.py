"""The clean flow: what the gradient is, and that following it is sampling."""

import pytest
import torch
from diffusers import DDIMScheduler

from gscfd.cameras import turntable
from gscfd.guidance import cfd, distillation_loss
from gscfd.toybox.models import build_scheduler

CAMERAS = turntable(2, size=8)


class GaussianTeacher:
    """The exact teacher of data N(mean, 0.25): eps = sigma (x_t - alpha mean) / (0.25 alpha^2 + sigma^2)."""

    multiview, image_size, latent_shape = False, 8, (4, 8, 8)

    def __init__(self):
        self.alphas = build_scheduler().alphas_cumprod.double()
        self.timesteps = len(self.alphas)
        self.mean = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(4, 1, 1)

    def alpha_sigma(self, t):
        return self.alphas[t].item() ** 0.5, (1 - self.alphas[t].item()) ** 0.5

    def predict_eps(self, x_t, t, cameras):
        alpha, sigma = self.alpha_sigma(t)
        return sigma * (x_t - alpha * self.mean) / (0.25 * alpha**2 + sigma**2)


def latents(seed):
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("t", [20, 500, 980])
def test_the_gradient_points_from_the_denoised_prediction_to_z(t):
    teacher, z, noise = GaussianTeacher(), latents(0), latents(1)
    alpha, sigma = teacher.alpha_sigma(t)
    x_t = alpha * z + sigma * noise
    denoised = (x_t - sigma * teacher.predict_eps(x_t, t, CAMERAS)) / alpha
    assert torch.allclose(cfd(teacher, z, noise, t, CAMERAS), z - denoised, atol=1e-10)


def test_the_loss_hands_the_gradient_to_z():
    z, grad = latents(0).requires_grad_(), latents(1)
    distillation_loss(z, grad).backward()
    assert z.grad is not None and torch.allclose(z.grad, grad / len(z), atol=1e-12)


def clean_flow(teacher, noise_of, times):
    """Integrate the clean flow from z = 0 with Euler steps in sigma / alpha (CFD Eq. 8)."""
    z = torch.zeros(2, 4, 8, 8, dtype=torch.float64)
    ratios = [s / a for a, s in (teacher.alpha_sigma(t) for t in times)]
    for i, t in enumerate(times[:-1]):
        grad = cfd(teacher, z, noise_of(i), t, CAMERAS)
        z = z - grad * (ratios[i] - ratios[i + 1]) / ratios[i]
    return z, ratios[-1]


def ddim(teacher, noise, times):
    """diffusers' own DDIM sampler over the same times, from the same noise."""
    scheduler = DDIMScheduler.from_config({**build_scheduler().config, "prediction_type": "epsilon"})
    scheduler.alphas_cumprod = teacher.alphas
    scheduler.set_timesteps(len(teacher.alphas) // (times[0] - times[1]))
    x = teacher.alpha_sigma(times[0])[1] * noise
    for t in times[:-1]:
        x = scheduler.step(teacher.predict_eps(x, t, CAMERAS), t, x).prev_sample
    return x


def test_following_the_clean_flow_with_fixed_noise_is_ddim():
    teacher, noise, times = GaussianTeacher(), latents(2), list(range(981, 0, -20))
    z, ratio = clean_flow(teacher, lambda i: noise, times)
    alpha, _ = teacher.alpha_sigma(times[-1])
    assert torch.allclose(alpha * (z + ratio * noise), ddim(teacher, noise, times), atol=1e-10)


def test_fresh_noise_is_not_ddim():
    teacher, noise, times = GaussianTeacher(), latents(2), list(range(981, 0, -20))
    z, ratio = clean_flow(teacher, lambda i: latents(100 + i), times)
    alpha, _ = teacher.alpha_sigma(times[-1])
    assert not torch.allclose(alpha * (z + ratio * noise), ddim(teacher, noise, times), atol=0.1)


def test_fixed_noise_keeps_the_spread_of_the_data_and_fresh_noise_collapses_to_its_mean():
    """CFD section 4: SDS seeks a mode; the clean flow samples."""
    teacher, times = GaussianTeacher(), list(range(981, 0, -20))
    fixed, _ = clean_flow(teacher, lambda i: latents(2), times)
    fresh, _ = clean_flow(teacher, lambda i: latents(100 + i), times)
    assert (fixed - teacher.mean).std() == pytest.approx(0.5, abs=0.1)
    assert (fresh - teacher.mean).std() < 0.35
