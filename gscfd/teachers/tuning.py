"""Speed and memory of a loaded teacher's networks; what they compute stays the same, up to rounding."""

from __future__ import annotations

from typing import Any

from torch import nn

from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.spaces import Latents


def checkpoint_encoder(teacher: GuidedTeacher) -> None:
    """See `Latents.checkpointing`. A teacher of pixels has no encoder, and stays as it is."""
    if isinstance(teacher.space, Latents):
        teacher.space.checkpointing = True


def compile_networks(teacher: GuidedTeacher, **options: Any) -> None:
    """torch.compile the denoiser and the VAE's encoder, in place, when they first run with a batch of some size.

    options: of torch.compile.
    """
    networks = [value for value in vars(teacher.denoiser).values() if isinstance(value, nn.Module)]
    if isinstance(teacher.space, Latents):
        networks.append(teacher.space.vae.encoder)
    for network in networks:
        network.compile(dynamic=False, **options)
