"""Training of the VAE."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from gscfd.toybox import models
from gscfd.toybox.data import make_group
from gscfd.toybox.training.fit import TrainingOptions, fit, tile

# ---------------------------------------------------------------------------------------------------------------- VAE


def image_example(seed: int, views: int) -> Tensor:
    """Returns [V, 3, 64, 64] uint8: views at 64 px, or crops of views at 128 px."""
    if seed % 3:
        images = make_group(seed, views=views, size=64, grouped=False).images
    else:
        large = make_group(seed, views=views, size=128, grouped=False).images
        y, x = np.random.default_rng(seed).integers(64, size=2)
        images = large[:, :, y : y + 64, x : x + 64]
    return (images * 255).round().to(torch.uint8)


def vae_loss(vae: AutoencoderKL, batch: list[Tensor], rng: np.random.Generator) -> Tensor:
    """L1 and squared error of the reconstruction, and a weak pull of the posterior toward N(0, I).

    Most steps use crops of 32 x 32, which cost a quarter and make nearly the same progress per step. Some decode the
    latents at half resolution and must reconstruct the image at half resolution (EQ-VAE, Kouzelis et al. 2025): this
    keeps the latents smooth and thus easy to denoise.
    """
    size = 32 if rng.random() < 0.75 else 64
    y, x = rng.integers(64 - size + 1, size=2)
    images = torch.cat(batch)[:, :, y : y + size, x : x + size].to(vae.device, torch.float32) / 127.5 - 1
    posterior = vae.encode(images).latent_dist
    latents = posterior.sample()
    if rng.random() < 0.4:
        latents, images = F.avg_pool2d(latents, 2), F.avg_pool2d(images, 2)
    difference = vae.decode(latents).sample - images
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    loss: Tensor = difference.abs().mean() + 2 * difference.square().mean() + 1e-4 * kl
    return loss


def train_vae(settings: TrainingOptions) -> AutoencoderKL:
    vae = models.build_vae().to(memory_format=torch.channels_last)
    shown = torch.cat([image_example(seed, 2) for seed in range(12)])

    def sheet(average: AutoencoderKL) -> Image.Image:
        x = shown.to(average.device, torch.float32) / 127.5 - 1
        with torch.no_grad():
            decoded = average.decode(average.encode(x).latent_dist.mean).sample
        return tile(torch.cat([x, decoded]) / 2 + 0.5, 12)

    trained = fit("vae", vae, lambda seed: image_example(seed, 4), vae_loss, sheet, settings.vae, settings)
    with torch.no_grad():
        latents = trained.encode(shown.to(settings.device, torch.float32) / 127.5 - 1).latent_dist.mean
    trained.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return trained
