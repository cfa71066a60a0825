"""A Stable Diffusion or MVDream style teacher: VAE latents, CLIP text, one UNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from gscfd.cameras import azimuth_elevation, mvdream_matrices
from gscfd.errors import UserError
from gscfd.prompts import VIEW_WORDS, join_words, view_words
from gscfd.teachers.base import Prompt
from gscfd.types import Cameras


def guide(negative: Tensor, text: Tensor, cfg: float, rescale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022), then scaled back to the text prediction's standard deviation.

    negative, text: [V, C, h, w] denoised predictions. rescale: 0 leaves the guided value, 1 takes the scaled one.
    """
    guided = negative + cfg * (text - negative)
    if rescale == 0:
        return guided
    ratio = text.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    return guided * (1 - rescale + rescale * ratio)


class LatentTeacher:
    """See `Teacher`. alphas_cumprod: [T], alpha_t squared. prediction: what the UNet puts out."""

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        alphas_cumprod: Tensor,
        prediction: str,
        multiview: bool,
    ):
        if prediction not in ("epsilon", "v_prediction"):
            raise UserError(f"prediction: expected epsilon or v_prediction, got {prediction}")
        self.vae, self.unet, self.text_encoder, self.tokenizer = vae, unet, text_encoder, tokenizer
        self.prediction, self.multiview = prediction, multiview
        self.alphas_cumprod = alphas_cumprod.double().tolist()
        self.timesteps = len(self.alphas_cumprod)
        factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        size = unet.config["sample_size"]
        self.image_size = size * factor
        self.latent_shape = (unet.config["in_channels"], size, size)
        self.scale: float = vae.config["scaling_factor"]
        self.prompt: Prompt | None = None
        self.embeddings: dict[str, Tensor] = {}

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        squared = self.alphas_cumprod[t]
        return squared**0.5, (1 - squared) ** 0.5

    @torch.no_grad()
    def set_prompt(self, prompt: Prompt) -> None:
        """Encode the prompt once; a single-view teacher gets one text for each view word (DreamFusion).

        Raises UserError when a text is longer than the text encoder reads.
        """
        texts = {"": prompt.text, "negative": prompt.negative}
        if not self.multiview:
            texts |= {words: join_words(prompt.text, words) for words in VIEW_WORDS}
        limit = self.tokenizer.model_max_length
        longest = max(len(ids) for ids in self.tokenizer(list(texts.values())).input_ids)
        if longest > limit:
            raise UserError(f"prompt: expected at most {limit} tokens, got {longest}; shorten {prompt.text!r}")
        tokens = self.tokenizer(list(texts.values()), padding="max_length", return_tensors="pt")
        encoded = self.text_encoder(tokens.input_ids.to(self.text_encoder.device)).last_hidden_state
        self.embeddings = dict(zip(texts, encoded.to(self.unet.dtype), strict=True))
        self.prompt = prompt

    def encode(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear")
        return self.vae.encode(images.to(self.vae.dtype) * 2 - 1).latent_dist.mean.float() * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        return (self.vae.decode((z / self.scale).to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras) -> Tensor:
        if self.prompt is None:
            raise RuntimeError("predict_eps: set_prompt first")
        context = torch.stack([self.embeddings["negative"]] * len(x_t) + self.text_embeddings(cameras))
        labels = None
        if self.multiview:
            labels = mvdream_matrices(cameras).to(self.unet.dtype).repeat(2, 1)
        output = self.unet(torch.cat([x_t, x_t]).to(self.unet.dtype), t, context, class_labels=labels).sample
        negative, text = self.to_x0(torch.cat([x_t, x_t]), output.float(), t).chunk(2)
        x0 = guide(negative, text, self.prompt.cfg, self.prompt.cfg_rescale)
        alpha, sigma = self.alpha_sigma(t)
        return (x_t - alpha * x0) / sigma

    def text_embeddings(self, cameras: Cameras) -> list[Tensor]:
        """One [L, D] for each view."""
        if self.multiview:
            return [self.embeddings[""]] * len(cameras)
        azimuth, elevation = azimuth_elevation(cameras)
        words = [view_words(a, e) for a, e in zip(azimuth.tolist(), elevation.tolist(), strict=True)]
        return [self.embeddings[w] for w in words]

    def to_x0(self, x_t: Tensor, output: Tensor, t: int) -> Tensor:
        """eps: x0 = (x_t - sigma eps) / alpha. v: x0 = alpha x_t - sigma v (Salimans & Ho 2022)."""
        alpha, sigma = self.alpha_sigma(t)
        if self.prediction == "epsilon":
            return (x_t - sigma * output) / alpha
        return alpha * x_t - sigma * output
