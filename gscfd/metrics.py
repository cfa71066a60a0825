"""How good is a splat? Figures in the protocols of the papers (METHOD section 7)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer


class Scorer:
    """A CLIP model as judge of how well pictures fit captions. folder: model and tokenizer in transformers' layout."""

    def __init__(self, folder: Path):
        self.model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.size: int = self.model.config.vision_config.image_size

    @torch.no_grad()
    def similarity(self, images: Tensor, captions: list[str]) -> Tensor:
        """[V, P] cosine similarities of images [V, 3, H, W] in [0, 1] and P captions."""
        image_features, text_features = self._embed(images, captions)
        return image_features @ text_features.T

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """[V, D] of unit length, of images [V, 3, H, W] in [0, 1]."""
        return self._embed(images, [""])[0]

    def _embed(self, images: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        output = self.model(input_ids=tokens.input_ids, pixel_values=images * 2 - 1)
        return output.image_embeds, output.text_embeds


def r_precision(similarity: Tensor, truth: int) -> float:
    """Share of views [V, P] whose most similar caption is number `truth` (Consistent3D's CLIP R-precision)."""
    return (similarity.argmax(1) == truth).double().mean().item()


def diversity(features: Tensor) -> float:
    """How much objects differ: mean of 1 - cosine similarity over all pairs of objects, seen from the same side.

    features: [S, V, D] of S >= 2 objects from V sides, of unit length. 0: all alike.
    """
    if len(features) < 2:
        raise ValueError(f"features: expected at least 2 objects, got {len(features)}")
    similarity = torch.einsum("svd,tvd->vst", features.double(), features.double())
    first, second = torch.triu_indices(len(features), len(features), 1)
    return (1 - similarity[:, first, second]).mean().item()


def scaled_gradient_variance(optimizer: torch.optim.Adam) -> float:
    """sqrt(sum(v - m^2) / sum(v)) over all entries of Adam's bias-corrected moments m and v (CFD Eq. 15), in [0, 1].

    0: every step the same gradient; 1: the gradients cancel out. m averages over 1 / (1 - beta1) steps only, so that of
    pure noise sqrt(1 - (1 - beta1) / (1 + beta1)) is seen: .973 for beta1 = .9. NaN before the first step.
    """
    spread, total = 0.0, 0.0
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "exp_avg" in state:
                step = float(state["step"])
                m, v = state["exp_avg"].double() / (1 - beta1**step), state["exp_avg_sq"].double() / (1 - beta2**step)
                spread, total = spread + (v - m**2).sum().item(), total + v.sum().item()
    return math.sqrt(max(spread, 0.0) / total) if total > 0 else math.nan
