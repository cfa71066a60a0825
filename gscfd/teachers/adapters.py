"""MV-Adapter (Huang et al. 2024): attention and a camera encoder that make Stable Diffusion 2.1 or SDXL a multi-view
teacher, read from its published text-to-multi-view files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import T2IAdapter, UNet2DConditionModel

from gscfd.errors import UserError
from gscfd.teachers.multiview import add_rows
from gscfd.teachers.weights import build, fill, read_state

ENCODER = "adapter."
"""Prefix of the camera encoder's weights; the others belong to the UNet's processors."""
CAMERA_CHANNELS = 6
SHIFT = 8.0
"""Factor of `schedules.shifted` that the models were trained with."""


def adapt(unet: UNet2DConditionModel, file: Path, *, large: bool) -> T2IAdapter:
    """Adds an adapter's attention to a UNet and returns its camera encoder, both with the weights in the file.

    large: whether the UNet is SDXL's. Raises UserError if the file is of another kind or of another base model.
    """
    check_kind(file)
    state = read_state(file)
    if any("_ref." in key for key in state):
        raise UserError(
            f"teacher: expected a text-to-multi-view adapter, got {file}, which needs an input image; use "
            "mvadapter_t2mv_sd21 or mvadapter_t2mv_sdxl"
        )
    encoder = build(T2IAdapter, encoder_config(unet, large=large))
    with torch.device("meta"):
        add_rows(unet)
    theirs = {key: value for key, value in state.items() if not key.startswith(ENCODER)}
    ours = {key: value for key, value in unet.state_dict().items() if "_mv." in key}
    if theirs.keys() != ours.keys() or any(theirs[key].shape != ours[key].shape for key in ours):
        raise UserError(
            f"teacher: expected an MV-Adapter of {'SDXL' if large else 'Stable Diffusion 2.1'}, got {file}, whose "
            "attention does not fit this UNet; it belongs to another base model, or is damaged"
        )
    fill(encoder, {key: value for key, value in state.items() if key.startswith(ENCODER)}, file)
    unet.load_state_dict(theirs, strict=False, assign=True)
    return encoder


def check_kind(file: Path) -> None:
    """Raises UserError for adapters that are told apart by their names alone: those guided by geometry."""
    if "tg2mv" in file.name or "ig2mv" in file.name:
        raise UserError(
            f"teacher: expected a text-to-multi-view adapter, got {file.name}, which needs the geometry; use "
            "mvadapter_t2mv_sd21 or mvadapter_t2mv_sdxl"
        )


def encoder_config(unet: UNet2DConditionModel, *, large: bool) -> dict[str, Any]:
    """Returns the config of the camera encoder: one feature per level of the UNet, and for SDXL, whose first level has
    no attention, one for the middle."""
    widths = list(unet.config["block_out_channels"])
    return {
        "in_channels": CAMERA_CHANNELS,
        "channels": [*widths, widths[-1]] if large else widths,
        "num_res_blocks": 2,
        "downscale_factor": 16 if large else 8,
        "adapter_type": "full_adapter_xl" if large else "full_adapter",
    }
