"""Training of the scorer, a small CLIP."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPOutput

from gscfd.toybox import models
from gscfd.toybox.data import Group, make_group
from gscfd.toybox.training.fit import TrainingOptions, fit, tile
from gscfd.toybox.training.text import FACTS, fact_heads, facts, facts_loss

# ------------------------------------------------------------------------------------------------------------- scorer


class Clip(nn.Module):
    """A CLIP and its tokenizer; its text tower starts from the trained text encoder."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.tokenizer = models.build_tokenizer()
        self.clip = models.build_clip(self.tokenizer)
        self.clip.text_model.load_state_dict(text_encoder.state_dict())
        self.heads = fact_heads(*FACTS)

    def compare(self, images: Tensor, texts: list[str]) -> CLIPOutput:
        """Returns CLIP's output for images [B, 3, 64, 64] in [0, 1] and P texts; its logits_per_image are [B, P]."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return self.clip(input_ids=tokens.input_ids.to(images.device), pixel_values=images * 2 - 1)


def scorer_example(seed: int) -> Group:
    """Returns views of any object, including the (kind, color) pairs that the teachers never see."""
    group = make_group(seed, views=2, size=models.CLIP_SIZE, grouped=False, allow_withheld=True)
    group.images = (group.images * 255).round().to(torch.uint8)
    return group


def degrade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Applies blur, noise and contrast changes, so that the scorer judges the object and not the renderer."""
    if rng.random() < 0.5:
        small = int(rng.integers(28, 60))
        images = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True)
        images = F.interpolate(images, size=(models.CLIP_SIZE,) * 2, mode="bilinear")
    contrast = 0.8 + 0.4 * torch.rand(len(images), 1, 1, 1, device=images.device)
    images = (images - 0.5) * contrast + 0.5
    return (images + 0.06 * rng.random() * torch.randn_like(images)).clamp(0, 1)


def contrastive_loss(module: Clip, batch: list[Group], rng: np.random.Generator) -> Tensor:
    """CLIP's symmetric cross-entropy, in which all images with equal captions are correct (SupCon), plus the loss of
    reading the image's content linearly from its features, which teaches far more per image than telling a few
    apart."""
    device = module.clip.device
    texts = [g.captions[0] if rng.random() < 0.7 else g.captions[rng.integers(len(g.captions))] for g in batch]
    images = torch.stack([g.images[rng.integers(len(g.images))] for g in batch]).to(device).float() / 255
    output = module.compare(degrade(images, rng), texts)
    logits = output.logits_per_image
    same = torch.tensor([[a == b for b in texts] for a in texts], device=device).float()
    same = same / same.sum(1, keepdim=True)
    contrast = 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))
    seen = output.vision_model_output.pooler_output
    return contrast + facts_loss(module.heads, seen, [facts(g.captions[0]) for g in batch])


def train_scorer(settings: TrainingOptions, text_encoder: CLIPTextModel) -> Clip:
    """Trains a CLIP over all (kind, color) pairs."""
    held = [scorer_example(seed) for seed in range(64)]

    def sheet(average: Clip) -> Image.Image:
        """Prints held-out retrieval to the console; the sheet shows the images it was measured on."""
        texts = [g.captions[0] for g in held]
        images = torch.stack([g.images[0] for g in held]).to(average.clip.device).float() / 255
        with torch.no_grad():
            best = average.compare(images, texts).logits_per_image.argmax(1).tolist()
        right = sum(texts[i] == text for i, text in zip(best, texts, strict=True))
        tqdm.write(f"scorer: {right} of {len(held)} held-out images retrieve their caption among {len(held)}")
        return tile(images, 16)

    return fit("scorer", Clip(text_encoder), scorer_example, contrastive_loss, sheet, settings.scorer, settings)
