"""Load a teacher from a folder in diffusers' layout. Its kind is read from the files, not from the name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from gscfd.errors import UserError
from gscfd.teachers.latent import LatentTeacher
from gscfd.teachers.multiview import join_views

TOYBOX = "toybox/"
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


def teacher_folder(name: str) -> Path:
    """The folder a teacher's name stands for; "toybox/NAME" is shipped inside the package.

    Raises UserError, naming what is missing.
    """
    if name.startswith(TOYBOX):
        folder = Path(str(resources.files("gscfd.toybox"))) / "weights" / name.removeprefix(TOYBOX)
    else:
        folder = Path(name).expanduser()
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise UserError(
            f"teacher: expected {name!r} to be a diffusers folder, but {folder} has no {', '.join(missing)}; "
            f"give a folder with {', '.join(PARTS)}, or toybox/multiview, toybox/singleview"
        )
    return folder


def load_teacher(
    name: str, *, views: int, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> LatentTeacher:
    """Load the teacher in `name` (see `teacher_folder`) for groups of `views` views; nothing is fetched or executed.

    A UNet whose class embedding is a projection of 16 numbers is a multi-view teacher (MVDream). Raises UserError when
    a part is missing or cannot be read.
    """
    folder = teacher_folder(name)
    try:
        return read_teacher(folder, views, device, dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"teacher: {folder} cannot be read: {' '.join(str(error).split())}") from error


def read_teacher(folder: Path, views: int, device: torch.device | str, dtype: torch.dtype) -> LatentTeacher:
    transformers_logging.disable_progress_bar()
    local = {"local_files_only": True}
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype, **local)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype, **local)
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype, **local)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", **local)
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", **local)
    multiview = unet.config["class_embed_type"] == "projection"
    if multiview:
        join_views(unet, views)
    for network in (unet, vae, text_encoder):
        network.to(device).eval().requires_grad_(False)
    return LatentTeacher(
        vae=vae.to(memory_format=torch.channels_last),
        unet=unet.to(memory_format=torch.channels_last),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        alphas_cumprod=scheduler.alphas_cumprod,
        prediction=scheduler.config["prediction_type"],
        multiview=multiview,
    )
