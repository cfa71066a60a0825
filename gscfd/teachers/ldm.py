"""Converts MVDream from latent-diffusion's names: its UNet, VAE and text encoder as diffusers' own networks.

The networks are standard: MVDream's UNet is `UNet2DConditionModel` with a camera projection in place of its class
embedding, plus joint attention (`multiview.join_views`) attached at run time. Only names change.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from gscfd.errors import UserError
from gscfd.teachers.kinds import CAMERA_NUMBERS
from gscfd.teachers.weights import build, fill, read_json, read_state, read_weights

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
HEAD_CHANNELS = 64
"""Channels per attention head in MVDream's UNet and text encoder."""
WIDTHS = [320, 640, 1280, 1280]
"""Channels of the levels of MVDream's UNet, all with heads of HEAD_CHANNELS."""
SD15_TEXT = "cond_stage_model.transformer."
"""Start of the names of the text encoder in MVDream for Stable Diffusion 1.5, which is OpenAI's CLIP."""
IMAGE_SIZE = 256
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
STEM_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "camera_embed.0": "class_embedding.linear_1",
    "camera_embed.2": "class_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
TEXT_NAMES = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
TEXT_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def unet_key(key: str) -> str:
    """Returns a tensor's name in diffusers' UNet with two resnets per level. Raises UserError for an unknown name."""
    for old, new in STEM_NAMES.items():
        if key.startswith(old + "."):
            return new + key.removeprefix(old)
    found = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(.+)", key)
    if not found:
        raise UserError(f"UNet: expected the names of MVDream's, got {key}; it is from another model")
    side, number, rest = found.groups()
    if side == "middle_block":
        return renamed_block("mid_block", MIDDLE.get(number, number), rest)
    place, rest = rest.split(".", 1)
    block, j = divmod(int(number) - (side == "input_blocks"), 3)
    prefix = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{block}"
    if rest.startswith("op."):
        return f"{prefix}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{prefix}.upsamplers.0.{rest}"
    return renamed_block(prefix, f"resnets.{j}" if place == "0" else f"attentions.{j}", rest)


def renamed_block(prefix: str, part: str, rest: str) -> str:
    """Renames tensors inside a resnet; those inside a transformer keep their names."""
    if part.startswith("resnets"):
        for old, new in RESNET.items():
            if rest.startswith(old + "."):
                rest = new + rest.removeprefix(old)
    return f"{prefix}.{part}.{rest}"


def unet_config(state: dict[str, Tensor], head_channels: int, sample_size: int) -> dict[str, Any]:
    """Returns the config of diffusers' UNet, inferred from the shapes of the ldm-named tensors.

    head_channels: cannot be inferred from shapes; a wrong number loads without an error and ruins the output.
    """
    levels = [b for b in range(8) if f"input_blocks.{1 + 3 * b}.0.in_layers.2.weight" in state]
    channels = [len(state[f"input_blocks.{1 + 3 * b}.0.in_layers.2.weight"]) for b in levels]
    if any(c % head_channels for c in channels):
        raise UserError(f"UNet: expected channels in multiples of the {head_channels} of a head, got {channels}")
    attends = [f"input_blocks.{1 + 3 * b}.1.proj_in.weight" in state for b in levels]
    cross = next(value for key, value in state.items() if key.endswith("attn2.to_k.weight"))
    return {
        "sample_size": sample_size,
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": len(state["out.2.weight"]),
        "block_out_channels": channels,
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": [c // head_channels for c in channels],
        "cross_attention_dim": cross.shape[1],
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": state["camera_embed.0.weight"].shape[1],
    }


def refuse_others(keys: set[str], where: Path) -> None:
    """Raises UserError for lookalikes of MVDream: ImageDream, or Stable Diffusion with ldm names."""
    image = sorted(key for key in keys if "_ip." in key or "_ip_" in key or key.startswith("image_embed."))
    if image:
        raise UserError(
            f"{where}: expected MVDream, got ImageDream ({image[0]}), which needs an input image; use MVDream's weights"
        )
    if not any(key.startswith("camera_embed.") for key in keys):
        raise UserError(
            f"{where}: expected MVDream with camera_embed weights, got a checkpoint without; it is truncated, or "
            "another model: Stable Diffusion loads from its diffusers folder"
        )


def build_unet(state: dict[str, Tensor], head_channels: int, sample_size: int, where: Path) -> UNet2DConditionModel:
    """Builds MVDream's UNet from ldm-named tensors without a prefix. Raises UserError for any other network."""
    refuse_others(set(state), where)
    try:
        config = unet_config(state, head_channels, sample_size)
    except (KeyError, StopIteration) as error:
        raise UserError(f"{where}: expected a whole MVDream UNet, got one without {error}; copy it again") from error
    if config["projection_class_embeddings_input_dim"] != CAMERA_NUMBERS:
        got = config["projection_class_embeddings_input_dim"]
        raise UserError(f"{where}: expected a camera of {CAMERA_NUMBERS} numbers, got {got}; it is another model")
    unet = build(UNet2DConditionModel, config)
    fill(unet, {unet_key(key): value for key, value in state.items()}, where)
    return unet


def read_unet_folder(folder: Path) -> UNet2DConditionModel:
    """Reads the `unet` of a folder of class MultiViewUNetModel: ldm names and config under diffusers' file names."""
    config = read_json(folder / "config.json")
    if config.get("ip_dim", 0) > 0:
        raise UserError(
            f"{folder}: expected MVDream, got ImageDream (ip_dim {config['ip_dim']}); use MVDream's weights"
        )
    for name in ("num_head_channels", "image_size"):
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise UserError(f"{folder / 'config.json'}: expected a positive {name}, got {config.get(name)}")
    return build_unet(read_weights(folder), config["num_head_channels"], config["image_size"], folder)


def part(state: dict[str, Tensor], prefix: str, where: Path) -> dict[str, Tensor]:
    """Returns the tensors under a prefix, with the prefix removed. Raises UserError if there are none."""
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        raise UserError(
            f"{where}: expected MVDream with {prefix}* weights, got none; it is truncated, or another model"
        )
    return found


def read_unet(path: Path) -> UNet2DConditionModel:
    """Reads the UNet of a single-file MVDream checkpoint."""
    state = read_state(path)
    if any(key.startswith(SD15_TEXT) for key in state):
        raise UserError(
            f"{path}: expected MVDream for Stable Diffusion 2.1, got the one for 1.5, which has another text encoder; "
            "use sd-v2.1-base-4view.pt"
        )
    unet = build_unet(part(state, UNET, path), HEAD_CHANNELS, IMAGE_SIZE // 8, path)
    if list(unet.config["block_out_channels"]) != WIDTHS:
        raise UserError(
            f"{path}: expected MVDream's UNet with {WIDTHS} channels in heads of {HEAD_CHANNELS}, got "
            f"{list(unet.config['block_out_channels'])} channels; a single file does not say how large its heads are: "
            "use a diffusers folder, whose config does"
        )
    return unet


def vae_key(key: str, levels: int) -> str:
    """Returns a tensor's name in diffusers' AutoencoderKL. levels: number of resolution levels."""
    key = key.replace("nin_shortcut", "conv_shortcut").replace(".norm_out.", ".conv_norm_out.")
    key = re.sub(r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets.", key)
    key = re.sub(r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0.", key)
    key = re.sub(r"\.up\.(\d+)\.block\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.resnets.", key)
    key = re.sub(r"\.up\.(\d+)\.upsample\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.upsamplers.0.", key)
    key = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", key)
    return re.sub(r"\.mid\.attn_1\.(\w+)\.", lambda m: f".mid_block.attentions.0.{VAE_ATTENTION[m[1]]}.", key)


def vae_config(state: dict[str, Tensor]) -> dict[str, Any]:
    """Returns the config of diffusers' AutoencoderKL, inferred from the shapes of the ldm-named tensors."""
    channels = [
        len(state[f"encoder.down.{i}.block.0.conv1.weight"])
        for i in range(8)
        if f"encoder.down.{i}.block.0.conv1.weight" in state
    ]
    layers = sum(f"encoder.down.0.block.{j}.conv1.weight" in state for j in range(8))
    return {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "layers_per_block": layers,
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "sample_size": IMAGE_SIZE,
        "scaling_factor": 0.18215,
    }


def read_vae(path: Path) -> AutoencoderKL:
    """Reads the VAE of a single-file MVDream checkpoint; 1 x 1 convolutions in its attention become linear layers."""
    state = part(read_state(path), VAE, path)
    try:
        config = vae_config(state)
    except KeyError as error:
        raise UserError(f"{path}: expected a whole VAE, got one without {error}; copy it again") from error
    renamed = {vae_key(key, len(config["block_out_channels"])): value for key, value in state.items()}
    linear = {
        key: value.flatten(1) if ".attentions.0.to_" in key and value.ndim > 1 else value
        for key, value in renamed.items()
    }
    vae = build(AutoencoderKL, config)
    fill(vae, linear, path)
    return vae


def text_state(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Returns OpenCLIP's text tensors under transformers' names, keeping the first `layers` layers."""
    renamed = {new: state[old] for old, new in TEXT_NAMES.items()}
    for key, value in state.items():
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", key)
        if not found or int(found[1]) >= layers:
            continue
        prefix, name, kind = f"encoder.layers.{found[1]}.", found[2], found[3]
        if name == "attn.in_proj":
            for letter, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{prefix}self_attn.{letter}_proj.{kind}"] = rows.clone()
        else:
            renamed[f"{prefix}{TEXT_LAYER[name]}.{kind}"] = value
    return renamed


def read_text_encoder(path: Path) -> CLIPTextModel:
    """Reads the text encoder of a single-file MVDream checkpoint: OpenCLIP's without its last layer, as SD2 uses it."""
    state = part(read_state(path), TEXT, path)
    try:
        vocabulary, width = state["token_embedding.weight"].shape
        layers = sum(re.fullmatch(r"transformer\.resblocks\.\d+\.ln_1\.weight", key) is not None for key in state) - 1
        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
            num_hidden_layers=layers,
            num_attention_heads=width // HEAD_CHANNELS,
            max_position_embeddings=len(state["positional_embedding"]),
            hidden_act="gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=0,
        )
        renamed = text_state(state, layers)
    except KeyError as error:
        raise UserError(
            f"{path}: expected a whole OpenCLIP text encoder, got one without {error}; copy it again"
        ) from error
    with torch.device("meta"):
        encoder = CLIPTextModel(config)
    fill(encoder, renamed, path)
    # The only tensor that is computed, never stored.
    encoder.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    return encoder
