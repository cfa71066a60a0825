"""Input spaces of teachers: VAE latents, or the pixels themselves."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Space(Protocol):
    image_size: int
    latent_shape: tuple[int, int, int]

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


def resized(images: Tensor, size: int) -> Tensor:
    """Resizes [V, 3, H, W] to [V, 3, size, size], bilinear, with pixel centers aligned."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear")


def shown(pictures: Tensor) -> Tensor:
    """Maps pictures from [-1, 1] to [0, 1], clipped; NaN where a value is not finite, which clipping would hide."""
    return torch.where(pictures.isfinite(), (pictures / 2 + 0.5).clamp(0, 1), torch.nan)


class Latents:
    """z = (E(2 x - 1) - shift) scale, where E is the mean of the VAE's posterior, so that equal images give equal z.

    A tiny autoencoder has no posterior: E is its output.
    size: width and height in latent cells. Scale and shift come from the VAE's config.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, size: int):
        self.vae = vae
        self.latent_shape = (vae.config["latent_channels"], size, size)
        self.image_size = size * 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.scale: float = vae.config["scaling_factor"]
        self.shift: float = vae.config["shift_factor"] or 0.0
        self.checkpointing = False
        """Whether views are encoded one at a time and recomputed in the backward pass instead of being stored."""

    def encode(self, images: Tensor) -> Tensor:
        images = resized(images, self.image_size).to(self.vae.dtype) * 2 - 1
        if self.checkpointing:
            mean = torch.cat([checkpoint(self.mean, image, use_reentrant=False) for image in images.split(1)])
        else:
            mean = self.mean(images)
        return (mean.float() - self.shift) * self.scale

    def mean(self, images: Tensor) -> Tensor:
        """Returns the mean of the VAE's posterior for images in [-1, 1], or the output of a tiny autoencoder."""
        encoded = self.vae.encode(images)
        mean: Tensor = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mean
        return mean

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        decoded: Tensor = self.vae.decode((z / self.scale + self.shift).to(self.vae.dtype)).sample
        return shown(decoded.float())


class Pixels:
    """z = 2 x - 1. size: width and height in pixels."""

    def __init__(self, size: int):
        self.image_size = size
        self.latent_shape = (3, size, size)

    def encode(self, images: Tensor) -> Tensor:
        return resized(images, self.image_size) * 2 - 1

    def decode(self, z: Tensor) -> Tensor:
        return shown(z)
