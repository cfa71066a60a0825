"""The toybox networks with random weights, in the classes and folder layout of diffusers and transformers."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.modeling_clip import CLIPVisionConfig

from gscfd.toybox.words import vocabulary

TEXT_WIDTH = 128
TEXT_LENGTH = 24
LATENT_CHANNELS = 4
VAE_FACTOR = 4
VIEWS = 4
MULTIVIEW_SIZE = 64
SINGLEVIEW_SIZE = 128
CLIP_SIZE = 64


def byte_characters() -> list[str]:
    """Returns the 256 printable stand-ins for bytes with which every CLIP vocabulary starts (GPT-2's byte-level
    BPE)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def word_merges(words: list[str]) -> list[tuple[str, str]]:
    """Returns byte-pair merges that turn every word into one token.

    Each word is split with the merges found so far, and the remaining pieces are joined from left to right. Later
    merges have a lower rank, so they never change how an earlier word is split.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pairs = list(zip(pieces, pieces[1:], strict=False))
            best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            ranks.setdefault(best, len(ranks))
            at = pairs.index(best)
            pieces[at : at + 2] = ["".join(best)]
    return list(ranks)


def build_tokenizer() -> CLIPTokenizer:
    """Returns a CLIP tokenizer that encodes every word of the toybox grammar as one token."""
    characters = byte_characters()
    merges = word_merges(vocabulary())
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(m) for m in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        pad_token="<|endoftext|>",
        model_max_length=TEXT_LENGTH,
    )


def text_config(tokenizer: CLIPTokenizer, width: int = TEXT_WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """[B, L] tokens to [B, L, 128] features."""
    return CLIPTextModel(text_config(tokenizer))


def build_vae() -> AutoencoderKL:
    """Builds the VAE: images [B, 3, 4h, 4w] in [-1, 1] to latents [B, 4, h, w]. It starts with little posterior noise:
    with the usual unit noise, small networks stay in a gray, collapsed state for a long time."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SINGLEVIEW_SIZE,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.quant_conv.weight[LATENT_CHANNELS:] = 0
        vae.quant_conv.bias[LATENT_CHANNELS:] = -5
    return vae


def build_unet(
    multiview: bool,
    channels: tuple[int, ...] = (48, 96, 192),
    layers: int = 1,
    latent_channels: int = LATENT_CHANNELS,
) -> UNet2DConditionModel:
    """Builds the denoiser; multiview adds the camera (16 numbers) to the time embedding, as MVDream does.

    The pooled text also enters the time embedding: with cross-attention alone, a short training run ignores the text.
    channels: at each resolution, from the finest, which has no attention. layers: residual blocks at each resolution.
    """
    size = MULTIVIEW_SIZE if multiview else SINGLEVIEW_SIZE
    attended = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=size // VAE_FACTOR,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * attended),
        up_block_types=(*("CrossAttnUpBlock2D",) * attended, "UpBlock2D"),
        layers_per_block=layers,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        class_embed_type="projection" if multiview else None,
        projection_class_embeddings_input_dim=16 if multiview else None,
    )


def build_scheduler() -> DDIMScheduler:
    """Builds Stable Diffusion's schedule with v-prediction, because a small network's errors in eps explode near t =
    T."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Builds a small CLIP over 64 x 64 images, which scores how well an image fits a caption."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=CLIP_SIZE,
        patch_size=8,
        projection_dim=128,
    )
    return CLIPModel(
        CLIPConfig(text_config=text_config(tokenizer).to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    )
