"""Teachers of every kind with a few channels and random weights, written to disk in their real layouts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from ldm_reference import MultiviewUNet, TextTower, Vae
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from gscfd.teachers.adapters import encoder_config
from gscfd.teachers.multiview import add_rows
from gscfd.toybox.models import byte_characters

Module = TypeVar("Module", bound=nn.Module)

LENGTH = 320
"""Tokens that the tiny text encoders read: their tokenizers have one token for each letter."""
WIDTH = 64


def randomized(module: Module, seed: int = 0) -> Module:
    """All weights redrawn, so that no zero initialization hides a path."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            start = 0 if parameter.ndim > 1 else parameter
            parameter.copy_(start + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def clip_tokenizer(pad: str = "!", length: int = LENGTH) -> CLIPTokenizer:
    tokens = [*byte_characters(), *(c + "</w>" for c in byte_characters()), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=length)


def clip_config(act: str = "gelu", width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=1,
    )


def save_clip(
    folder: Path,
    number: str = "",
    *,
    act: str = "gelu",
    pad: str | None = None,
    width: int = WIDTH,
    projected: bool = False,
) -> None:
    """act: gelu is OpenCLIP's, which pads with "!"; quick_gelu is OpenAI's, which pads with the end token."""
    pad = pad or ("!" if act == "gelu" else "<|endoftext|>")
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    randomized(cls(clip_config(act, width)), seed=len(number)).save_pretrained(folder / f"text_encoder{number}")
    clip_tokenizer(pad).save_pretrained(folder / f"tokenizer{number}")


def save_t5(folder: Path, number: str, width: int = WIDTH) -> None:
    letters = [(c, -1.0) for c in "abcdefghijklmnopqrstuvwxyz,"]
    tokens = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    T5Tokenizer(vocab=tokens, extra_ids=0, model_max_length=512).save_pretrained(folder / f"tokenizer{number}")
    config = T5Config(
        vocab_size=64,
        d_model=width,
        d_kv=8,
        d_ff=width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    randomized(T5EncoderModel(config)).save_pretrained(folder / f"text_encoder{number}")


def save_vae(folder: Path, latent: int = 4, **settings: Any) -> None:
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent,
        **settings,
    )
    randomized(vae).save_pretrained(folder / "vae")


def save_index(folder: Path, name: str, parts: Mapping[str, object]) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0.36.0", **parts}))


def unet(**settings: Any) -> UNet2DConditionModel:
    """Four levels in Stable Diffusion 2.1's order of blocks, over latents of 8 x 8."""
    values = {
        "sample_size": 8,
        "block_out_channels": [8, 8, 16, 16],
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "attention_head_dim": [1, 1, 2, 2],
        "cross_attention_dim": WIDTH,
        "use_linear_projection": True,
        **settings,
    }
    return randomized(UNet2DConditionModel(**values))


def stable_diffusion(folder: Path, *, act: str = "gelu", prediction: str = "epsilon", **unet_settings: Any) -> Path:
    """Stable Diffusion 2.1's layout; with act quick_gelu, 1.5's."""
    save_clip(folder, act=act)
    save_vae(folder)
    unet(**unet_settings).save_pretrained(folder / "unet")
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    ).save_pretrained(folder / "scheduler")
    return folder


def mvdream(folder: Path) -> Path:
    """MVDream's plain diffusers layout."""
    return stable_diffusion(folder, class_embed_type="projection", projection_class_embeddings_input_dim=16)


def sdxl(folder: Path, **unet_settings: Any) -> Path:
    save_clip(folder, act="quick_gelu", width=32)
    save_clip(folder, "_2", width=32, projected=True)
    save_vae(folder, scaling_factor=0.13025)
    unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        **unet_settings,
    ).save_pretrained(folder / "unet")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    parts = {
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    save_index(folder, "StableDiffusionXLPipeline", parts)
    return folder


SDXL_LEVELS: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 1, 2],
}
"""SDXL's order of blocks."""


def mv_adapter(file: Path, base: Path, *, large: bool) -> Path:
    """An adapter for the UNet of a tiny SDXL (large) or Stable Diffusion, in the layout of the published files."""
    network = UNet2DConditionModel.from_pretrained(base / "unet")
    before = set(network.state_dict())
    add_rows(network)
    state = {key: value for key, value in randomized(network, 3).state_dict().items() if key not in before}
    encoder = randomized(T2IAdapter(**encoder_config(network, large=large)), 4)
    save_file(state | encoder.state_dict(), file)
    return file


def sd3(folder: Path) -> Path:
    save_clip(folder, act="quick_gelu", width=16, projected=True)
    save_clip(folder, "_2", width=32, projected=True)
    save_t5(folder, "_3")
    save_vae(folder, 16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=48,
        pos_embed_max_size=8,
    )
    randomized(transformer).save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    parts = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    save_index(folder, "StableDiffusion3Pipeline", parts)
    return folder


def flux(folder: Path, guidance: bool = True) -> Path:
    save_clip(folder, act="quick_gelu", width=32)
    save_t5(folder, "_2")
    save_vae(folder, 16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    randomized(transformer).save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    parts = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    save_index(folder, "FluxPipeline", parts)
    return folder


def deepfloyd(folder: Path, channels: int = 3) -> Path:
    save_t5(folder, "")
    unet(
        in_channels=channels,
        out_channels=6,
        sample_size=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        cross_attention_dim=16,
    ).save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range").save_pretrained(
        folder / "scheduler"
    )
    parts = {
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    save_index(folder, "IFPipeline", parts)
    return folder


class LdmMVDream:
    """MVDream's three reference networks, and its single file."""

    def __init__(self) -> None:
        self.unet = randomized(MultiviewUNet([64, 64, 128, 128], WIDTH, 64))
        self.vae = randomized(Vae([32, 64]), 1)
        self.text = randomized(TextTower(514, WIDTH, 3, 1, LENGTH), 2)

    def state(self) -> dict[str, Tensor]:
        """The flat dictionary of the published file, with some of its buffers."""
        state = {f"model.diffusion_model.{k}": v for k, v in self.unet.state_dict().items()}
        state |= {f"first_stage_model.{k}": v for k, v in self.vae.state_dict().items()}
        state |= {f"cond_stage_model.model.{k}": v for k, v in self.text.state_dict().items()}
        return state | {"betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2}

    def save(self, folder: Path) -> Path:
        torch.save(self.state(), folder / "mvdream.pt")
        clip_tokenizer().save_pretrained(folder / "tokenizer")
        return folder / "mvdream.pt"
