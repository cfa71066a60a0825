"""Training of the text encoder, whose features must encode the content of a caption."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel

from gscfd.prompts import VIEW_WORDS, join_words
from gscfd.toybox import models
from gscfd.toybox.kinds import COLORS
from gscfd.toybox.objects import KINDS, sample_object
from gscfd.toybox.training.fit import TrainingOptions, fit
from gscfd.toybox.words import parse_caption

# ------------------------------------------------------------------------------------------------------------- text


FACTS = ((None, *KINDS), (None, *COLORS), (None, *COLORS), (None, *KINDS), (None, *COLORS))
"""Facts in a caption: kind, color, part's color; kind and color of the supporting object."""


def facts(caption: str) -> list[int]:
    """Returns the index of the caption's choice for each of FACTS."""
    said = parse_caption(caption)
    if said is None:
        return [0] * len(FACTS)
    named = (said.kind, said.color, said.part_color, said.on_kind, said.on_color)
    return [choices.index(fact) for choices, fact in zip(FACTS, named, strict=True)]


def fact_heads(*choices: tuple[str | None, ...]) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(models.TEXT_WIDTH, len(names)) for names in choices])


def facts_loss(heads: nn.ModuleList, features: Tensor, truth: list[list[int]]) -> Tensor:
    """Sums the cross-entropies of all facts read linearly from features [B, D]; truth: [B][heads] choices."""
    targets = torch.tensor(truth, device=features.device).T
    losses = [F.cross_entropy(head(features), target) for head, target in zip(heads, targets, strict=True)]
    return torch.stack(losses).sum()


class TextReader(nn.Module):
    """A text encoder whose end tokens encode the caption's content: kind, colors, view words.

    The UNets attend to a caption mainly through its many end tokens. Those of a small CLIP separate colors far better
    than kinds, and so did the UNets trained with one: the right colors on shapeless blobs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = models.build_tokenizer()
        self.text_encoder = models.build_text_encoder(self.tokenizer)
        self.heads = fact_heads(*FACTS, ("", *VIEW_WORDS))


def caption_example(seed: int) -> tuple[str, ...]:
    return (*sample_object(seed, spacing=0.2).captions, "")


def reading_loss(module: TextReader, batch: list[tuple[str, ...]], rng: np.random.Generator) -> Tensor:
    """Cross-entropy of each fact, read linearly from a random one of the caption's end tokens."""
    device = module.text_encoder.device
    texts, truth = [], []
    for captions in batch:
        caption = captions[rng.integers(len(captions))]
        words = VIEW_WORDS[rng.integers(len(VIEW_WORDS))] if caption and rng.random() < 0.5 else ""
        texts.append(join_words(caption, words) if words else caption)
        truth.append([*facts(caption), ("", *VIEW_WORDS).index(words)])
    ids = module.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ends = torch.multinomial((ids == module.tokenizer.eos_token_id).float(), 1)[:, 0]
    features = module.text_encoder(ids.to(device)).last_hidden_state[torch.arange(len(ids)), ends.to(device)]
    return facts_loss(module.heads, features, truth)


def train_text(settings: TrainingOptions) -> CLIPTextModel:
    return fit("text", TextReader(), caption_example, reading_loss, None, settings.text, settings).text_encoder
