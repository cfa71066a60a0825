"""Loads a teacher from a folder, a checkpoint file or the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FluxTransformer2DModel,
    ModelMixin,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, T5Tokenizer

from gscfd import prompts
from gscfd.errors import UserError
from gscfd.teachers import adapters, ldm, texts
from gscfd.teachers.denoisers import AdaptedDenoiser, FluxDenoiser, MultiviewDenoiser, SD3Denoiser, UNetDenoiser
from gscfd.teachers.find import SD21_MIRROR, find_source
from gscfd.teachers.guided import MOST_CFG, GuidedTeacher
from gscfd.teachers.kinds import PARTS_OF, T5_PARTS, Kind, check_adapted, kind_of, reading
from gscfd.teachers.schedules import diffusion, flow, shifted
from gscfd.teachers.spaces import Latents, Pixels
from gscfd.teachers.weights import read_json, read_network

TOYBOX_CFG = {True: 2.0, False: 4.0}
"""Guidance scale of samples of the toybox's multi-view and single-view teacher; weights/README.md has the figures."""
FLUX_LATENT_SIZE = 64
"""FLUX supports any size; 512 pixels cost a quarter of 1024."""

Vae: TypeAlias = AutoencoderKL | AutoencoderTiny
Loader = Callable[[Path, torch.device | str, torch.dtype], GuidedTeacher]


@dataclass(frozen=True)
class StableDiffusion:
    """Readers of the parts of a Stable Diffusion or MVDream model, each in the precision of its files."""

    unet: Callable[[], UNet2DConditionModel]
    vae: Callable[[], Vae]
    text: Callable[[], texts.Clip]
    scheduler: dict[str, Any]


def load_teacher(
    path_or_repo: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    local_files_only: bool = False,
) -> GuidedTeacher:
    """Loads the teacher that `path_or_repo` names (see `find_teacher`), of any SUPPORTED kind. No code in it is run.

    dtype: of the networks; a VAE that overflows in float16 stays in float32. Raises UserError if a part is missing,
    damaged or of another model. `set_prompt` reads the text encoders.
    """
    found = find_source(path_or_repo, local_files_only=local_files_only)
    source, kind = found.path, kind_of(found.path)
    with reading(source):
        check_tokenizers(source, kind)
        if found.adapter is not None:
            return load_adapted(kind, source, found.adapter, device, dtype)
        return LOADERS[kind](source, device, dtype)


def check_tokenizers(source: Path, kind: Kind) -> None:
    """Reads the teacher's tokenizers, which are small, before its large parts. Raises UserError if one cannot be
    read. A single file's is checked by `single_file_parts`."""
    if source.is_dir():
        for part in PARTS_OF[kind]:
            if part.startswith("tokenizer"):
                texts.read_tokenizer(source / part, T5Tokenizer if (kind, part) in T5_PARTS else CLIPTokenizer)


def placed(network: ModelMixin, device: torch.device | str, dtype: torch.dtype) -> ModelMixin:
    """Returns the network on its device, frozen, in the faster memory format: channels last, except for half precision
    on the CPU, whose group norm is several times slower with it."""
    # network.to would warn of layers to keep in float32, although these networks have none.
    nn.Module.to(network, device=device, dtype=dtype)
    half_on_cpu = torch.device(device).type == "cpu" and dtype in (torch.bfloat16, torch.float16)
    layout = torch.contiguous_format if half_on_cpu else torch.channels_last
    return network.eval().requires_grad_(False).to(memory_format=layout)


def placed_vae(vae: Vae, device: torch.device | str, dtype: torch.dtype) -> Vae:
    """Places a VAE. One whose config says that it overflows in float16 (SDXL's stock VAE) stays in float32."""
    half = dtype == torch.float16 and vae.config["force_upcast"]
    return placed(vae, device, torch.float32 if half else dtype)


def latents(vae: Vae, size: int, channels: int, device: torch.device | str, dtype: torch.dtype) -> Latents:
    """Returns the latent space of a VAE.

    size: width and height in latent cells. channels: read by the denoiser. Raises UserError if the VAE has a different
    number.
    """
    if vae.config["latent_channels"] != channels:
        raise UserError(
            f"in_channels: expected the VAE's {vae.config['latent_channels']}, got {channels}; inpainting, depth and "
            "upscaling models are not teachers"
        )
    return Latents(placed_vae(vae, device, dtype), size)


def read_vae(folder: Path) -> Vae:
    tiny = read_json(folder / "config.json").get("_class_name") == "AutoencoderTiny"
    return read_network(AutoencoderTiny if tiny else AutoencoderKL, folder)


# ------------------------------------------------------------------------------------- Stable Diffusion and MVDream


def clip_folder(source: Path) -> texts.Clip:
    encoder = texts.read_text_model(CLIPTextModel, source / "text_encoder")
    return texts.read_tokenizer(source / "tokenizer"), encoder


def single_file_parts(file: Path) -> StableDiffusion:
    """Returns the readers of a single-file checkpoint. Its tokenizer, Stable Diffusion 2.1's, is expected in
    `tokenizer/` next to it. Raises UserError if that is missing."""
    tokenizer = file.parent / "tokenizer"
    if not tokenizer.is_dir():
        raise UserError(
            f"teacher: expected the folder {tokenizer} next to {file.name}, which has no tokenizer, got none; fetch "
            f"it with: hf download {SD21_MIRROR} --include 'tokenizer/*' --local-dir {file.parent}"
        )
    texts.read_tokenizer(tokenizer)
    return StableDiffusion(
        unet=lambda: ldm.read_unet(file),
        vae=lambda: ldm.read_vae(file),
        text=lambda: (texts.read_tokenizer(tokenizer), ldm.read_text_encoder(file)),
        scheduler=ldm.SCHEDULER,
    )


def parts(source: Path) -> StableDiffusion:
    """Returns the readers of a Stable Diffusion or MVDream model in any of its layouts."""
    if source.is_file():
        return single_file_parts(source)
    ldm_names = "model_channels" in read_json(source / "unet" / "config.json")
    return StableDiffusion(
        unet=lambda: (
            ldm.read_unet_folder(source / "unet") if ldm_names else read_network(UNet2DConditionModel, source / "unet")
        ),
        vae=lambda: read_vae(source / "vae"),
        text=lambda: clip_folder(source),
        scheduler=read_json(source / "scheduler" / "scheduler_config.json"),
    )


def load_latent_unet(
    source: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    multiview: bool,
    wording: prompts.Wording,
    sampling_cfg: float = MOST_CFG,
) -> GuidedTeacher:
    found = parts(source)
    unet = placed(found.unet(), device, dtype)
    return GuidedTeacher(
        space=latents(found.vae(), unet.config["sample_size"], unet.config["in_channels"], device, dtype),
        denoiser=MultiviewDenoiser(unet) if multiview else UNetDenoiser(unet),
        schedule=diffusion(found.scheduler),
        encode_texts=partial(texts.encode_clip, found.text, device=device, dtype=dtype),
        wording=wording,
        multiview=multiview,
        sampling_cfg=sampling_cfg,
    )


def load_sd(source: Path, device: torch.device | str, dtype: torch.dtype) -> GuidedTeacher:
    return load_latent_unet(source, device, dtype, multiview=False, wording=prompts.SINGLE_VIEW)


def load_mvdream(source: Path, device: torch.device | str, dtype: torch.dtype) -> GuidedTeacher:
    return load_latent_unet(source, device, dtype, multiview=True, wording=prompts.MVDREAM)


def load_toybox(source: Path, device: torch.device | str, dtype: torch.dtype) -> GuidedTeacher:
    """Loads a toybox teacher, which also reads the pooled text and only knows the toybox's words."""
    multiview = read_json(source / "unet" / "config.json").get("class_embed_type") is not None
    wording = prompts.TOYBOX_MULTIVIEW if multiview else prompts.TOYBOX_SINGLEVIEW
    scale = TOYBOX_CFG[multiview]
    return load_latent_unet(source, device, dtype, multiview=multiview, wording=wording, sampling_cfg=scale)


# --------------------------------------------------------------------------------------------------- larger families


def load_sdxl(source: Path, device: torch.device | str, dtype: torch.dtype) -> GuidedTeacher:
    unet = placed(read_network(UNet2DConditionModel, source / "unet"), device, dtype)
    vae = read_vae(source / "vae")
    space = latents(vae, unet.config["sample_size"], unet.config["in_channels"], device, dtype)
    return GuidedTeacher(
        space=space,
        denoiser=UNetDenoiser(unet, image_size=space.image_size),
        schedule=diffusion(read_json(source / "scheduler" / "scheduler_config.json")),
        encode_texts=partial(texts.encode_sdxl, source, device=device, dtype=dtype),
        wording=prompts.SINGLE_VIEW,
        multiview=False,
    )


def load_sd3(source: Path, device: torch.device | str, dtype: torch.dtype) -> GuidedTeacher:
    transformer = placed(read_network(SD3Transformer2DModel, source / "transformer"), device, dtype)
    vae = read_vae(source / "vae")
    return GuidedTeacher(
        space=latents(vae, transformer.config["sample_size"], transformer.config["in_channels"], device, dtype),
        denoiser=SD3Denoiser(transformer),
        schedule=flow(read_json(source / "scheduler" / "scheduler_config.json")),
        encode_texts=partial(texts.encode_sd3, source, device=device, dtype=dtype),
        wording=prompts.SINGLE_VIEW,
        multiview=False,
    )


def load_flux(source: Path, device: torch.device | str, dtype: torch.dtype) -> GuidedTeacher:
    transformer = placed(read_network(FluxTransformer2DModel, source / "transformer"), device, dtype)
    vae = read_vae(source / "vae")
    schedule = flow(read_json(source / "scheduler" / "scheduler_config.json"))
    length = texts.FLUX_DEV_LENGTH if transformer.config["guidance_embeds"] else texts.FLUX_SCHNELL_LENGTH
    return GuidedTeacher(
        space=latents(vae, FLUX_LATENT_SIZE, transformer.config["in_channels"] // 4, device, dtype),
        denoiser=FluxDenoiser(transformer, schedule.timesteps),
        schedule=schedule,
        encode_texts=partial(texts.encode_flux, source, length=length, device=device, dtype=dtype),
        wording=prompts.SINGLE_VIEW,
        multiview=False,
    )


def load_if(source: Path, device: torch.device | str, dtype: torch.dtype) -> GuidedTeacher:
    unet = placed(read_network(UNet2DConditionModel, source / "unet"), device, dtype)
    return GuidedTeacher(
        space=Pixels(unet.config["sample_size"]),
        denoiser=UNetDenoiser(unet),
        schedule=diffusion(read_json(source / "scheduler" / "scheduler_config.json")),
        encode_texts=partial(texts.encode_if, source, device=device, dtype=dtype),
        wording=prompts.SINGLE_VIEW,
        multiview=False,
    )


def load_adapted(
    kind: Kind, source: Path, adapter: Path, device: torch.device | str, dtype: torch.dtype
) -> GuidedTeacher:
    """Loads Stable Diffusion or SDXL with an MV-Adapter, as a multi-view teacher. kind: of the model alone.

    The space has MV-Adapter's size, the schedule its shift. Raises UserError if the adapter is of another model.
    """
    check_adapted(kind, source)
    large = kind == "sdxl"
    unet = read_network(UNet2DConditionModel, source / "unet")
    encoder = placed(adapters.adapt(unet, adapter, large=large), device, dtype)
    unet = placed(unet, device, dtype)
    cells = unet.config["sample_size"] * 3 // 4 if large else unet.config["sample_size"]
    space = latents(read_vae(source / "vae"), cells, unet.config["in_channels"], device, dtype)
    encode = partial(texts.encode_sdxl, source) if large else partial(texts.encode_clip, partial(clip_folder, source))
    schedule = diffusion(read_json(source / "scheduler" / "scheduler_config.json"))
    return GuidedTeacher(
        space=space,
        denoiser=AdaptedDenoiser(unet, encoder, image_size=space.image_size if large else None),
        schedule=shifted(schedule, adapters.SHIFT),
        encode_texts=partial(encode, device=device, dtype=dtype),
        wording=prompts.MV_ADAPTER,
        multiview=True,
    )


LOADERS: dict[Kind, Loader] = {
    "sd": load_sd,
    "mvdream": load_mvdream,
    "toybox": load_toybox,
    "sdxl": load_sdxl,
    "sd3": load_sd3,
    "flux": load_flux,
    "if": load_if,
}
