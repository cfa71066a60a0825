"""Training data on the device: groups as bytes, and batches drawn from them without a word from the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from gscfd.errors import UserError
from gscfd.prompts import join_words
from gscfd.toybox.models import TEXT_LENGTH
from gscfd.toybox.training.groups import Groups, composite

CAPTIONS = 4
"""Texts kept of each object, with and without view words; those that have fewer repeat them."""
EMPTY_SHARE = 0.1
"""Share of the draws without a caption, for classifier-free guidance."""
SPECIFIC_SHARE = 0.75
"""Share of the others that take the most specific caption; the rest take any."""
WORDS_SHARE = 0.85
"""Share of the captions that name the view, for a teacher that is told it in words."""


@dataclass(frozen=True)
class Batch:
    """B groups of V views each; all tensors are on the device."""

    images: Tensor
    """[B V, 3, H, W] in [0, 1]."""
    tokens: Tensor
    """[B V, L] int64."""
    cameras: Tensor
    """[B V, 16]."""


class Pool:
    """The last `capacity` groups, at fixed addresses: a captured graph goes on reading them while they are replaced."""

    def __init__(self, capacity: int, like: Groups, tokenizer: CLIPTokenizer, *, words: bool, device: torch.device):
        views = like.layers.shape[1]
        self.tokenizer, self.words, self.device, self.capacity = tokenizer, words, device, capacity
        self.layers = torch.empty(capacity, *like.layers.shape[1:], dtype=torch.uint8, device=device)
        self.cameras = torch.empty(capacity, views, 16, device=device)
        self.tokens = torch.empty(
            capacity, views if words else 1, 2 * CAPTIONS, TEXT_LENGTH, dtype=torch.int16, device=device
        )
        self.filled = torch.zeros((), device=device)
        self.added = 0
        self.empty = self.tokenized([""])[0].to(device)

    def tokenized(self, texts: list[str]) -> Tensor:
        """[T, L] int64."""
        ids: Tensor = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return ids

    def texts_of(self, captions: list[str], words: list[str]) -> list[str]:
        """The texts of one object: for each view CAPTIONS plain ones, and the same with view words."""
        plain = [captions[i % len(captions)] for i in range(CAPTIONS)]
        if not self.words:
            return plain * 2
        return [text for view in words for text in (*plain, *(join_words(caption, view) for caption in plain))]

    def add(self, groups: Groups) -> None:
        """Put the groups in, in place of the oldest where it is full. Raises UserError for views of another size."""
        if groups.layers.shape[1:] != self.layers.shape[1:]:
            raise UserError(
                f"data: expected groups of {list(self.layers.shape[1:])} as in the first file, got others "
                f"({list(groups.layers.shape[1:])}); give each kind of teacher a folder of its own"
            )
        groups = groups[-self.capacity :]  # the same place twice would mix two groups
        places = (self.added + torch.arange(len(groups))) % self.capacity
        texts = [self.texts_of(*said) for said in zip(groups.captions, groups.view_words, strict=True)]
        distinct = {text: i for i, text in enumerate(dict.fromkeys(text for some in texts for text in some))}
        index = torch.tensor([[distinct[text] for text in some] for some in texts])
        tokens = self.tokenized(list(distinct)).to(torch.int16)[index]
        places = places.to(self.device)
        self.layers[places] = groups.layers.to(self.device)
        self.cameras[places] = groups.cameras.to(self.device)
        self.tokens[places] = tokens.reshape(len(groups), *self.tokens.shape[1:]).to(self.device)
        self.added += len(groups)
        self.filled.fill_(min(self.added, self.capacity))

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, device=self.device)

    def draw(self, count: int) -> Batch:
        """`count` random groups over new backgrounds, each with one of its captions."""
        index = (self.uniform(count) * self.filled).long()
        layers = self.layers[index]
        views = layers.shape[1]
        tint = 0.16 * (self.uniform(count, 1, 3) - 0.5)
        background = (self.uniform(count, 1, 1) + tint).clamp(0, 1).expand(count, views, 3)
        return Batch(
            images=composite(layers, background).flatten(0, 1),
            tokens=self.choose(self.tokens[index]).expand(count, views, -1).flatten(0, 1),
            cameras=self.cameras[index].flatten(0, 1),
        )

    def choose(self, tokens: Tensor) -> Tensor:
        """[B, V', L] int64 one text for each of tokens [B, V', 2 CAPTIONS, L]."""
        shape = tokens.shape[:2]
        specific = self.uniform(*shape) < SPECIFIC_SHARE
        caption = torch.where(specific, 0, (self.uniform(*shape) * CAPTIONS).long())
        worded = self.uniform(*shape) < WORDS_SHARE
        place = caption + CAPTIONS * worded
        chosen = tokens.gather(2, place[..., None, None].expand(*shape, 1, tokens.shape[-1]))[:, :, 0].long()
        return torch.where(self.uniform(*shape)[..., None] < EMPTY_SHARE, self.empty, chosen)
