"""How good is a splat? Figures in the protocols of the papers (METHOD section 7)."""

from __future__ import annotations

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
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        output = self.model(input_ids=tokens.input_ids, pixel_values=images * 2 - 1)
        return output.image_embeds @ output.text_embeds.T


def r_precision(similarity: Tensor, truth: int) -> float:
    """Share of views [V, P] whose most similar caption is number `truth` (Consistent3D's CLIP R-precision)."""
    return (similarity.argmax(1) == truth).double().mean().item()
