"""Joint attention over the views of a group, which turns a Stable Diffusion UNet into MVDream's (Shi et al. 2023)."""

from __future__ import annotations

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor


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
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn1.processor"):
            processors[name] = JointViewsProcessor(views)
    unet.set_attn_processor(processors)
