"""Attention over the views of a group, which turns an image model into a multi-view one: MVDream's joint attention (Shi
et al. 2023), and MV-Adapter's attention along rows (Huang et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn


class JointViewsProcessor:
    """Self-attention over all tokens of all views of a group: (b v) l c -> b (v l) c and back."""

    def __init__(self, views: int):
        self.views = views
        self.attend = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        batch, length, channels = hidden_states.shape
        if batch % self.views:
            raise ValueError(f"views: expected a multiple of {self.views} images in the batch, got {batch}")
        grouped = hidden_states.reshape(batch // self.views, self.views * length, channels)
        attended: Tensor = self.attend(attn, grouped, encoder_hidden_states, attention_mask)
        return attended.reshape(batch, length, channels)


def join_views(unet: UNet2DConditionModel, views: int) -> None:
    """Attaches joint attention to every self-attention (`attn1`) of the UNet; cross-attention is unchanged.

    Processors are not saved with a model, so they must be attached after every load.
    """
    attach(unet, lambda attn: JointViewsProcessor(views))


def attach(unet: UNet2DConditionModel, processor: Callable[[Attention], Any]) -> None:
    """Gives every self-attention (`attn1`) of the UNet the processor that the function returns for it."""
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn1.processor"):
            processors[name] = processor(unet.get_submodule(name.removesuffix(".processor")))
    unet.set_attn_processor(processors)


class RowsProcessor(nn.Module):
    """Self-attention of each view as before, plus one of its own projections over the same row of all views (Huang et
    al. 2024, section 4.2), whose output is added.

    The views of a group follow one another in the batch. The names of the layers are those of MV-Adapter's files.
    """

    def __init__(self, width: int, inner: int):
        """width: channels of the tokens. inner: channels of all heads together."""
        super().__init__()
        self.to_q_mv, self.to_k_mv, self.to_v_mv = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.to_out_mv = nn.ModuleList([nn.Linear(inner, width)])
        self.attend = AttnProcessor2_0()
        self.views = 1

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        batch, length, _ = hidden_states.shape
        side = math.isqrt(length)
        if batch % self.views or side**2 != length:
            raise ValueError(
                f"views: expected a multiple of {self.views} square images, got {batch} of {length} tokens"
            )

        def rows(tokens: Tensor) -> Tensor:
            """(b v) (y x) (h c) -> (b y) h (v x) c."""
            split = tokens.reshape(-1, self.views, side, side, attn.heads, tokens.shape[-1] // attn.heads)
            return split.permute(0, 2, 4, 1, 3, 5).reshape(-1, attn.heads, self.views * side, split.shape[-1])

        q, k, v = (rows(layer(hidden_states)) for layer in (self.to_q_mv, self.to_k_mv, self.to_v_mv))
        attended = F.scaled_dot_product_attention(q, k, v)
        back = attended.reshape(-1, side, attn.heads, self.views, side, attended.shape[-1])
        joined = back.permute(0, 3, 1, 4, 2, 5).reshape(batch, length, -1)
        own: Tensor = self.attend(attn, hidden_states, encoder_hidden_states, attention_mask)
        across: Tensor = self.to_out_mv[0](joined)
        return own + across


def add_rows(unet: UNet2DConditionModel) -> None:
    """Attaches MV-Adapter's attention, with new weights, to every self-attention (`attn1`) of the UNet."""
    attach(unet, lambda attn: RowsProcessor(attn.query_dim, attn.inner_dim))


def set_views(unet: UNet2DConditionModel, views: int) -> None:
    """Sets the size of a group in the attention that `add_rows` attached."""
    for processor in unet.attn_processors.values():
        if isinstance(processor, RowsProcessor):
            processor.views = views
