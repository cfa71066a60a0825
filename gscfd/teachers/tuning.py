"""Speed and memory settings of a loaded teacher's networks; results are unchanged up to rounding."""

from __future__ import annotations

from typing import Any

from torch import nn

from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.spaces import Latents


def checkpoint_encoder(teacher: GuidedTeacher) -> None:
    """Enables `Latents.checkpointing`. A pixel-space teacher has no encoder and is left unchanged."""
    if isinstance(teacher.space, Latents):
        teacher.space.checkpointing = True


def compile_networks(teacher: GuidedTeacher, **options: Any) -> None:
    """Compiles the denoiser and the VAE's encoder in place, on the first run with each batch size.

    Not with mode="reduce-overhead": the denoiser runs between the encoder's forward and backward pass, and while a
    backward pass is pending, torch records no CUDA graphs.

    options: of torch.compile.
    """
    networks = [value for value in vars(teacher.denoiser).values() if isinstance(value, nn.Module)]
    if isinstance(teacher.space, Latents):
        networks.append(teacher.space.vae.encoder)
    for network in networks:
        network.compile(dynamic=False, **options)
