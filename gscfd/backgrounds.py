"""Plain backgrounds behind the renders, so that no colour of the splat can hide in a fixed one."""

from __future__ import annotations

import torch
from torch import Tensor


def random_background(generator: torch.Generator) -> Tensor:
    """[3] any grey with a slight tint, in [0, 1]: the backgrounds that the toybox teachers are trained on."""
    grey = torch.rand(1, generator=generator)
    tint = 0.16 * (torch.rand(3, generator=generator) - 0.5)
    return (grey + tint).clamp(0, 1)
