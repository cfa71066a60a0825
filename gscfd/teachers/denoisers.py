"""Networks behind a common call: (x [B, C, h, w], t, text of B, cameras of V) to the output [B, C, h, w].

B is a multiple of V: the branches of guidance, one after another, each with all views.
"""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, T2IAdapter, UNet2DConditionModel
from torch import Tensor

from gscfd.cameras import mv_adapter_labels, mvdream_matrices
from gscfd.deferred import moved
from gscfd.teachers.multiview import join_views, set_views
from gscfd.teachers.texts import TextFeatures
from gscfd.types import Cameras

FLUX_GUIDANCE = 1.0
"""Distilled guidance passed to FLUX.1-dev: 1 is none, so that `cfg` means the same for every teacher."""


TIME_IDS = 6
"""Numbers that SDXL receives in addition to the text."""
CELL = 8
"""Pixels of MV-Adapter's camera images per latent cell, both ways."""


class Denoiser(Protocol):
    text_width: int
    """Width of a token's features."""
    pooled_width: int
    """Width of the pooled text features; 0 for none."""

    def __call__(self, x: Tensor, t: int, text: TextFeatures, cameras: Cameras) -> Tensor: ...


def times(x: Tensor, t: int) -> Tensor:
    """Returns the time of every sample [B], created on their device: this neither waits nor recompiles for each t."""
    return torch.full((len(x),), t, device=x.device)


def camera_labels(x: Tensor, cameras: Cameras, dtype: torch.dtype) -> Tensor:
    """Returns the camera of every sample, [B, 16]."""
    return moved(mvdream_matrices(cameras), x.device).to(dtype).repeat(len(x) // len(cameras), 1)


def pooled_width(unet: UNet2DConditionModel) -> int:
    """Returns the width of the pooled text that SDXL's UNet reads."""
    width: int = unet.config["projection_class_embeddings_input_dim"]
    return width - TIME_IDS * int(unet.config["addition_time_embed_dim"])


def size_and_text(x: Tensor, text: TextFeatures, image_size: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Returns what SDXL's UNet reads besides the tokens: original size, crop corner, target size (Podell et al. 2023,
    section 2.2) and the pooled text."""
    ids = [image_size, image_size, 0, 0, image_size, image_size]
    return {"text_embeds": text.pooled, "time_ids": moved(torch.tensor([ids] * len(x), dtype=dtype), x.device)}


class UNetDenoiser:
    """Stable Diffusion 1.x and 2.x, SDXL (image_size: enters its time ids) and DeepFloyd IF stage I."""

    def __init__(self, unet: UNet2DConditionModel, *, image_size: int | None = None):
        self.unet, self.image_size = unet, image_size
        self.text_width: int = unet.config["encoder_hid_dim"] or unet.config["cross_attention_dim"]
        self.pooled_width = 0 if image_size is None else pooled_width(unet)

    def __call__(self, x: Tensor, t: int, text: TextFeatures, cameras: Cameras) -> Tensor:
        """DeepFloyd IF outputs 6 channels; the last three are a variance and are dropped."""
        added = None if self.image_size is None else size_and_text(x, text, self.image_size, self.unet.dtype)
        # None of these models reads a camera; the copy on which a LoRA is trained does, in the LoRA's precision.
        labels = None if self.unet.class_embedding is None else camera_labels(x, cameras, torch.float32)
        output: Tensor = self.unet(
            x.to(self.unet.dtype), times(x, t), text.tokens, class_labels=labels, added_cond_kwargs=added
        ).sample
        return output[:, : x.shape[1]]


class MultiviewDenoiser:
    """MVDream: a Stable Diffusion UNet that reads cameras and attends to all views of a group jointly.

    The views of a call form one group; every branch of guidance gets the same cameras.
    """

    def __init__(self, unet: UNet2DConditionModel):
        self.unet, self.views = unet, 0
        self.text_width: int = unet.config["cross_attention_dim"]
        self.pooled_width = 0

    def __call__(self, x: Tensor, t: int, text: TextFeatures, cameras: Cameras) -> Tensor:
        if self.views != len(cameras):
            self.views = len(cameras)
            join_views(self.unet, self.views)
        labels = camera_labels(x, cameras, self.unet.dtype)
        output: Tensor = self.unet(x.to(self.unet.dtype), times(x, t), text.tokens, class_labels=labels).sample
        return output


class AdaptedDenoiser:
    """MV-Adapter on Stable Diffusion 2.1 or SDXL (image_size: enters its time ids): attention along rows of all views,
    and an encoder of the cameras whose features are added to those of the UNet (Huang et al. 2024).

    The views of a call form one group; every branch of guidance gets the same cameras.
    """

    def __init__(self, unet: UNet2DConditionModel, encoder: T2IAdapter, *, image_size: int | None = None):
        self.unet, self.encoder, self.image_size = unet, encoder, image_size
        self.text_width: int = unet.config["cross_attention_dim"]
        self.pooled_width = 0 if image_size is None else pooled_width(unet)

    def __call__(self, x: Tensor, t: int, text: TextFeatures, cameras: Cameras) -> Tensor:
        set_views(self.unet, len(cameras))
        labels = moved(mv_adapter_labels(cameras), x.device).to(self.unet.dtype)
        height, width = (CELL * side for side in x.shape[2:])
        pictures = labels[:, :, None, None].expand(-1, -1, height, width)
        added = None if self.image_size is None else size_and_text(x, text, self.image_size, self.unet.dtype)
        features = [feature.repeat(len(x) // len(cameras), 1, 1, 1) for feature in self.encoder(pictures)]
        output: Tensor = self.unet(
            x.to(self.unet.dtype),
            times(x, t),
            text.tokens,
            added_cond_kwargs=added,
            down_intrablock_additional_residuals=features,
        ).sample
        return output


class SD3Denoiser:
    """Stable Diffusion 3 and 3.5; model time is 1000 sigma, which equals t."""

    def __init__(self, transformer: SD3Transformer2DModel):
        self.transformer = transformer
        self.text_width: int = transformer.config["joint_attention_dim"]
        self.pooled_width: int = transformer.config["pooled_projection_dim"]

    def __call__(self, x: Tensor, t: int, text: TextFeatures, cameras: Cameras) -> Tensor:
        output: Tensor = self.transformer(
            hidden_states=x.to(self.transformer.dtype),
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            timestep=times(x, t),
        ).sample
        return output


def pack(x: Tensor) -> Tensor:
    """Maps [B, C, h, w] to [B, (h / 2)(w / 2), 4 C]: FLUX's tokens are 2 x 2 cells."""
    batch, channels, h, w = x.shape
    cells = x.reshape(batch, channels, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, (h // 2) * (w // 2), channels * 4)


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """Inverse of `pack`."""
    batch, _, width = tokens.shape
    cells = tokens.reshape(batch, h // 2, w // 2, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(batch, width // 4, h, w)


class FluxDenoiser:
    """FLUX.1 dev and schnell; latents are packed, model time is sigma = t / timesteps."""

    def __init__(self, transformer: FluxTransformer2DModel, timesteps: int):
        self.transformer, self.timesteps = transformer, timesteps
        self.text_width: int = transformer.config["joint_attention_dim"]
        self.pooled_width: int = transformer.config["pooled_projection_dim"]

    def __call__(self, x: Tensor, t: int, text: TextFeatures, cameras: Cameras) -> Tensor:
        batch, _, h, w = x.shape
        cells = torch.arange(h // 2, device=x.device), torch.arange(w // 2, device=x.device)
        rows, columns = torch.meshgrid(*cells, indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).to(x)
        guidance = torch.full((batch,), FLUX_GUIDANCE, device=x.device)
        output = self.transformer(
            hidden_states=pack(x).to(self.transformer.dtype),
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            timestep=torch.full((batch,), t / self.timesteps, device=x.device),
            img_ids=places,
            txt_ids=x.new_zeros(text.tokens.shape[1], 3),
            guidance=guidance if self.transformer.config["guidance_embeds"] else None,
        ).sample
        return unpack(output, h, w)
