"""Fit an autoencoder of Stable Diffusion's architecture to the textured assets, for `gscfd bench full-size --vae OUT`.

    python scripts/fit_vae.py OUT [--minutes 20] [--width 32]

It has four levels, two residual blocks on each, attention in the middle and four latent channels, as Stable Diffusion's
has; --width 128 is its size, too. OUT is saved every minute, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from gscfd.cameras import sample_group
from gscfd.devices import choose_device, choose_dtype
from gscfd.lab.metrics import psnr
from gscfd.lab.textured import TEXTURED, textured_asset
from gscfd.types import Render

SIZE, CROP, BATCH = 512, 64, 8
"""Pixels of a view and of the crops that are fitted, and crops per step."""
GROUPS, VIEWS = 16, 4
"""Of each asset."""
KL = 1e-6
"""Weight of the posterior's distance from N(0, I) (Rombach et al. 2022, appendix G)."""


def build(width: int) -> AutoencoderKL:
    """width: channels of the first level."""
    return AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=SIZE,
    )


def views_of_assets(seed: int) -> list[Render]:
    """Returns groups of views of all assets, near and far."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name in TEXTURED:
        gaussians = textured_asset(name, spacing=0.012).gaussians
        for _ in range(GROUPS):
            cameras = sample_group(
                VIEWS, elevation=(-20, 60), fov=(15, 60), radius=(0.8, 1.2), size=SIZE, generator=generator
            )
            found.append(gaussians.render(cameras))
    return found


def crops(renders: list[Render], count: int) -> Tensor:
    """Returns parts [count, 3, CROP, CROP] in [-1, 1] of views, each over a color of its own."""
    parts = []
    for _ in range(count):
        render, view = renders[int(torch.randint(len(renders), ()))], int(torch.randint(VIEWS, ()))
        image = render.rgb[view] + (1 - render.opacity[view]) * torch.rand(3)
        y, x = (int(torch.randint(SIZE - CROP + 1, ())) for _ in range(2))
        parts.append(image[y : y + CROP, x : x + CROP].permute(2, 0, 1))
    return torch.stack(parts).clamp(0, 1) * 2 - 1


def loss_of(vae: AutoencoderKL, images: Tensor) -> Tensor:
    mean = vae.encode(images).latent_dist.mean
    difference = vae.decode(mean).sample - images
    loss: Tensor = difference.abs().mean() + 2 * difference.square().mean() + KL * mean.square().mean()
    return loss


@torch.no_grad()
def save(vae: AutoencoderKL, held: Tensor, out: Path) -> float:
    """Saves the autoencoder with the scale of its latents, and returns its dB on images held out."""
    mean = vae.encode(held).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / mean.std().item())
    vae.save_pretrained(out)
    return psnr(vae.decode(mean).sample.clamp(-1, 1) / 2 + 0.5, held / 2 + 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    settings = parser.parse_args()
    torch.manual_seed(0)
    device = choose_device("auto")
    there = (settings.out / "config.json").is_file()
    vae = AutoencoderKL.from_pretrained(settings.out) if there else build(settings.width)
    vae.to(device)
    renders = views_of_assets(0)
    held = crops(views_of_assets(1)[::GROUPS], 24).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.lr, betas=(0.9, 0.99))
    start = saved = time.monotonic()
    dtype, step = choose_dtype("auto", device), 0
    while (share := (time.monotonic() - start) / (60 * settings.minutes)) < 1:
        optimizer.param_groups[0]["lr"] = settings.lr * min(1.0, (step + 1) / 50) * (1 - share)
        images = crops(renders, BATCH).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = loss_of(vae, images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if time.monotonic() - saved > 60:
            print(f"step {step}: {save(vae, held, settings.out):.2f} dB on views held out", flush=True)
            saved = time.monotonic()
    print(f"step {step}: {save(vae, held, settings.out):.2f} dB on views held out")


if __name__ == "__main__":
    main()
