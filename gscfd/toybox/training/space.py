"""The latent space of the toybox teachers: a linear encoder found in closed form, and a trained decoder.

    python -m gscfd.toybox.training.space --out DIR --data GROUPS --minutes 30

The encoder projects every 4 x 4 patch of the picture onto its CHANNELS principal components. Being linear and close to
orthogonal, it is cheap, and brings gradients back to the pixels undistorted. Each component is scaled to the square
root of its standard deviation: for a given power and noise, that is the best linear code (Berger 1971, section 4.5).
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from diffusers import AutoencoderTiny
from torch import Tensor
from tqdm import tqdm

from gscfd.cli import exit_code
from gscfd.errors import UserError
from gscfd.toybox.training.groups import composite, read_shard, shard_files

PATCH = 4
CHANNELS = 16
WIDTH = 16
"""Channels between the encoder's convolutions: at least 12, the numbers in a 2 x 2 patch."""
DECODER_WIDTH = 32
DECODER_BLOCKS = (3, 2, 0)
"""At 1/4, 1/2 and full size."""
LATENT_RMS = 0.6
"""Of the latents that a denoiser sees, over all channels."""
SCALING = 2.0
"""Latents per number that the VAE puts out: its decoder squashes numbers beyond 3."""
NOISE = 0.12
"""Most noise on the latents that the decoder learns to live with, relative to their root mean square."""


def build_space() -> AutoencoderTiny:
    """Images [B, 3, 4h, 4w] in [-1, 1] to latents [B, 16, h, w]; nothing learned yet."""
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(DECODER_WIDTH,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=DECODER_BLOCKS,
        latent_channels=CHANNELS,
        scaling_factor=SCALING,
    )


def principal_patches(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[48] mean, [CHANNELS, 48] principal directions and [CHANNELS] standard deviations of all 4 x 4 patches.

    images: [B, 3, H, W] in [-1, 1].
    """
    patches = F.pixel_unshuffle(images, PATCH).permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    order = values.argsort(descending=True)[:CHANNELS]
    return mean, vectors[:, order].T, values[order].sqrt()


@torch.no_grad()
def set_encoder(vae: AutoencoderTiny, images: Tensor) -> None:
    """Make the encoder the scaled principal components of the images' patches, [B, 3, H, W] in [-1, 1].

    Its convolutions gather: the first copies the colors, two of stride 2 collect 2 x 2 neighbours, of which the second
    projects, and the last shifts.
    """
    mean, directions, deviations = principal_patches(images)
    gains = deviations.rsqrt()
    gains *= LATENT_RMS / SCALING / (gains * deviations).square().mean().sqrt()
    projection = gains[:, None] * directions
    first, second, third, last = vae.encoder.layers
    for layer in (first, second, third, last):
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    for color in range(3):
        first.weight[color, color, 1, 1] = 2  # The encoder maps [-1, 1] to [0, 1] before.
        first.bias[color] = -1
        for y, x in ((0, 0), (0, 1), (1, 0), (1, 1)):
            second.weight[4 * color + 2 * y + x, color, 1 + y, 1 + x] = 1
            # Pixel 2 v + y, 2 u + x of the patch is channel 4 color + 2 y + x of its neighbour v, u.
            for v, u in ((0, 0), (0, 1), (1, 0), (1, 1)):
                place = PATCH * PATCH * color + PATCH * (2 * v + y) + 2 * u + x
                third.weight[:CHANNELS, 4 * color + 2 * y + x, 1 + v, 1 + u] = projection[:, place].float()
    last.weight[range(CHANNELS), range(CHANNELS), 1, 1] = 1
    last.bias[:] = -(projection @ mean).float()


def psnr(images: Tensor, others: Tensor) -> float:
    """Mean over [B, 3, H, W] pictures in [-1, 1], in dB."""
    error = (images.clamp(-1, 1) - others).square().mean((1, 2, 3)) / 4
    return (-10 * error.log10()).mean().item()


def reconstruction_loss(vae: AutoencoderTiny, images: Tensor) -> Tensor:
    """L1 and squared error of what the decoder makes of latents with a little noise; images in [-1, 1]."""
    with torch.no_grad():
        latents = vae.encode(images).latents
        level = NOISE * LATENT_RMS / SCALING * torch.rand(len(latents), 1, 1, 1, device=latents.device)
        latents = latents + level * torch.randn_like(latents)
    difference = vae.decode(latents).sample - images
    loss: Tensor = difference.abs().mean() + 2 * difference.square().mean()
    return loss


def crops(layers: Tensor, count: int, size: int) -> Tensor:
    """[count, 3, size, size] in [-1, 1]: random parts of random views, over random backgrounds."""
    y, x = (int(torch.randint(layers.shape[-1] - size + 1, ())) for _ in range(2))
    chosen = layers[torch.randint(len(layers), (count,))][..., y : y + size, x : x + size]
    background = (torch.rand(count, 1) + 0.16 * (torch.rand(count, 3) - 0.5)).clamp(0, 1)
    return composite(chosen, background) * 2 - 1


@dataclass(kw_only=True)
class Settings:
    """Find the encoder and train the decoder."""

    out: Path
    """The space, a folder in diffusers' layout; one that is there is trained further."""
    data: tuple[Path, ...]
    """Folders of rendered groups."""
    files: int = 8
    """How many of each folder's files are read."""
    minutes: float = 30.0
    lr: float = 2e-3
    """Peak learning rate; it falls to zero along a cosine."""
    batch: int = 16


def read_views(folder: Path, files: int) -> Tensor:
    """[N, 4, H, W] uint8, all views of a folder's first files."""
    found = shard_files(folder)[:files]
    if not found:
        raise UserError(f"data: expected rendered groups in {folder}, got none; make them with training.groups")
    return torch.cat([read_shard(file).layers.flatten(0, 1) for file in found])


def train_decoder(vae: AutoencoderTiny, folders: list[Tensor], held: Tensor, settings: Settings) -> None:
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    start, shown = time.monotonic(), -math.inf
    progress = tqdm(desc="decoder", mininterval=5.0)
    while (share := (time.monotonic() - start) / (60 * settings.minutes)) < 1:
        size = 32 if torch.rand(()) < 0.8 else 64
        images = crops(folders[int(torch.randint(len(folders), ()))], settings.batch, size)
        optimizer.param_groups[0]["lr"] = settings.lr * (0.5 + 0.5 * math.cos(math.pi * share))
        loss = reconstruction_loss(vae, images.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        progress.update()
        if time.monotonic() - shown > 120:
            shown = time.monotonic()
            save_space(vae, settings.out)
            with torch.no_grad():
                found = psnr(vae.decode(vae.encode(held).latents).sample, held)
            tqdm.write(f"step {progress.n}: loss {loss.item():.4f}, {found:.2f} dB on views held out")
    save_space(vae, settings.out)


def save_space(vae: AutoencoderTiny, out: Path) -> None:
    partial = out.with_name(out.name + ".partial")
    vae.save_pretrained(partial)
    out.mkdir(parents=True, exist_ok=True)
    for file in partial.iterdir():
        os.replace(file, out / file.name)
    partial.rmdir()


def main() -> None:
    settings = tyro.cli(Settings, prog="python -m gscfd.toybox.training.space")
    folders = [read_views(folder, settings.files) for folder in settings.data]
    held = torch.cat([crops(views[:64], 32, 64) for views in folders])
    folders = [views[64:] for views in folders]
    if (settings.out / "config.json").is_file():
        vae = AutoencoderTiny.from_pretrained(settings.out)
    else:
        vae = build_space()
        set_encoder(vae, torch.cat([crops(views, 2048, 64) for views in folders[:1]]))
        save_space(vae, settings.out)
    vae.encoder.requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    train_decoder(vae, folders, held, settings)


if __name__ == "__main__":
    sys.exit(exit_code(main))
