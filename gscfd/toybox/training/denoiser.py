"""Training of the multi-view and single-view denoisers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel

from gscfd.cameras import mvdream_matrices, turntable
from gscfd.prompts import join_words, with_view
from gscfd.teachers.multiview import join_views
from gscfd.toybox import models
from gscfd.toybox.data import Group, make_group
from gscfd.toybox.training.fit import TrainingOptions, fit, tile

# ----------------------------------------------------------------------------------------------------------- teachers


class Denoiser(nn.Module):
    """A UNet and its frozen text encoder."""

    def __init__(self, multiview: bool, text_encoder: CLIPTextModel):
        super().__init__()
        self.tokenizer = models.build_tokenizer()
        self.text_encoder = copy.deepcopy(text_encoder).eval().requires_grad_(False)
        self.unet = models.build_unet(multiview).to(memory_format=torch.channels_last)
        if multiview:
            join_views(self.unet, models.VIEWS)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """[B, L, D] text embedding."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        features: Tensor = self.text_encoder(tokens.input_ids.to(self.unet.device)).last_hidden_state
        return features


@dataclass
class LatentGroup:
    latents: Tensor
    """[V, 4, h, w] scaled VAE latents."""
    group: Group
    """Cameras and captions, without images."""


def latent_example(seed: int, vae: AutoencoderKL, *, size: int, grouped: bool) -> LatentGroup:
    group = make_group(seed, views=models.VIEWS, size=size, grouped=grouped)
    with torch.no_grad():
        latents = vae.encode(group.images.to(vae.device) * 2 - 1).latent_dist.mean * vae.config["scaling_factor"]
    group.images = torch.empty(0)
    return LatentGroup(latents.cpu(), group)


def choose_caption(captions: tuple[str, ...], rng: np.random.Generator) -> str:
    """Draws a caption: the most specific one three times in four, otherwise any; one in ten is empty, for
    classifier-free guidance."""
    if rng.random() < 0.1:
        return ""
    return captions[0] if rng.random() < 0.75 else captions[rng.integers(len(captions))]


def denoising_loss(
    denoiser: Denoiser,
    batch: list[LatentGroup],
    rng: np.random.Generator,
    *,
    scheduler: DDIMScheduler,
    multiview: bool,
) -> Tensor:
    """Squared error of the v-prediction (Salimans & Ho 2022), with one time per group of views."""
    device, views = denoiser.unet.device, models.VIEWS
    z = torch.cat([item.latents for item in batch]).to(device)
    captions = [choose_caption(item.group.captions, rng) for item in batch for _ in range(1 if multiview else views)]
    if multiview:
        texts = [caption for caption in captions for _ in range(views)]
        t = draw_times(len(batch), rng, COARSE_TIMES).repeat_interleave(views)
        cameras = torch.cat([item.group.cameras for item in batch]).to(device)
    else:
        words = [w for item in batch for w in item.group.view_words]
        texts = [join_words(c, w) if c and rng.random() < 0.85 else c for c, w in zip(captions, words, strict=True)]
        t = draw_times(len(z), rng, REFINE_TIMES)
        cameras = None
    noise = torch.randn_like(z)
    x = scheduler.add_noise(z, noise, t)
    target = scheduler.get_velocity(z, noise, t)
    v = denoiser.unet(x, t.to(device), denoiser.embed(texts), class_labels=cameras).sample
    return F.mse_loss(v.float(), target)


COARSE_TIMES = ((0.0, 0.0), (0.05, 200.0), (0.35, 600.0), (1.0, 1000.0))
REFINE_TIMES = ((0.0, 0.0), (0.05, 50.0), (0.75, 500.0), (1.0, 1000.0))
"""(share of the draws, upper bound of t): most draws lie where the stage that uses the teacher spends its steps."""


def draw_times(count: int, rng: np.random.Generator, shares: tuple[tuple[float, float], ...]) -> Tensor:
    """Returns times [count] int64 in [0, 1000), one in each of `count` equal shares of the distribution."""
    strata = (np.arange(count) + rng.random(count)) / count
    return torch.from_numpy(np.interp(strata, [share for share, _ in shares], [t for _, t in shares])).long()


SHEET_PROMPTS = (
    "a yellow duck",
    "a red mushroom with a white stem",
    "a snowman with a blue hat",
    "a green chair",
    "a blue mug",
    "a white house with a red roof",
    "a yellow duck on a brown table",
    "a pink rocket",
)


@torch.no_grad()
def ddim(denoiser: Denoiser, texts: list[str], cameras: Tensor | None, *, cfg: float, steps: int, seed: int) -> Tensor:
    """Samples latents [B, 4, h, w] with DDIM and classifier-free guidance."""
    scheduler = models.build_scheduler()
    scheduler.set_timesteps(steps)
    device, size = denoiser.unet.device, denoiser.unet.config["sample_size"]
    x = torch.randn(len(texts), models.LATENT_CHANNELS, size, size, generator=torch.Generator().manual_seed(seed))
    x = x.to(device)
    context = denoiser.embed([""] * len(texts) + texts)
    labels = None if cameras is None else torch.cat([cameras, cameras]).to(device)
    for t in scheduler.timesteps:
        v_empty, v_text = denoiser.unet(torch.cat([x, x]), t, context, class_labels=labels).sample.chunk(2)
        x = scheduler.step(v_empty + cfg * (v_text - v_empty), t, x).prev_sample
    return x


def sample_sheet(denoiser: Denoiser, vae: AutoencoderKL, *, multiview: bool) -> Image.Image:
    """Draws four views of each of the prompts above."""
    cameras = turntable(models.VIEWS, size=64)
    repeated = [prompt for prompt in SHEET_PROMPTS for _ in range(models.VIEWS)]
    if multiview:
        latents = ddim(
            denoiser, repeated, mvdream_matrices(cameras).repeat(len(SHEET_PROMPTS), 1), cfg=4.0, steps=30, seed=0
        )
    else:
        azimuths = [0.0, 90.0, 180.0, 270.0] * len(SHEET_PROMPTS)
        texts = [with_view(p, a, 15.0) for p, a in zip(repeated, azimuths, strict=True)]
        latents = ddim(denoiser, texts, None, cfg=4.0, steps=30, seed=0)
    return tile(vae.decode(latents / vae.config["scaling_factor"]).sample / 2 + 0.5, 2 * models.VIEWS)


def train_denoiser(
    settings: TrainingOptions, vae: AutoencoderKL, text_encoder: CLIPTextModel, start_from: Denoiser | None
) -> Denoiser:
    """Trains the multi-view teacher or, given one to start from, the single-view teacher."""
    multiview = start_from is None
    name, size = ("multiview", models.MULTIVIEW_SIZE) if multiview else ("singleview", models.SINGLEVIEW_SIZE)
    denoiser, scheduler = Denoiser(multiview, text_encoder), models.build_scheduler()
    if start_from is not None:
        weights = {k: v for k, v in start_from.unet.state_dict().items() if not k.startswith("class_embedding.")}
        denoiser.unet.load_state_dict(weights)

    def loss_of(module: Denoiser, batch: list[LatentGroup], rng: np.random.Generator) -> Tensor:
        return denoising_loss(module, batch, rng, scheduler=scheduler, multiview=multiview)

    return fit(
        name,
        denoiser,
        lambda seed: latent_example(seed, vae, size=size, grouped=multiview),
        loss_of,
        lambda average: sample_sheet(average, vae, multiview=multiview),
        getattr(settings, name),
        settings,
    )
