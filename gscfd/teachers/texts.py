"""Text features for denoisers. Encoders are loaded, run and released in one call, once per prompt."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ftfy
import torch
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.utils import logging as transformers_logging

from gscfd.errors import UserError
from gscfd.teachers.weights import check_keys, check_layers, first_line, read_json, text_variant

IF_LENGTH, SD3_LENGTH, FLUX_SCHNELL_LENGTH, FLUX_DEV_LENGTH = 77, 256, 256, 512
"""Number of T5 tokens that each family was trained with."""

Clip = tuple[CLIPTokenizer, CLIPTextModel]


@dataclass(frozen=True)
class TextFeatures:
    """One text, or a batch of B with a leading axis."""

    tokens: Tensor
    """[L, D] or [B, L, D]."""
    pooled: Tensor | None = None
    """[P] or [B, P]: the text as one vector, if the network reads it."""


def stacked(texts: list[TextFeatures]) -> TextFeatures:
    """Stacks texts into a batch."""
    tokens = torch.stack([text.tokens for text in texts])
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return TextFeatures(tokens, torch.stack(pooled) if pooled else None)


def mixed(parts: list[tuple[TextFeatures, float]]) -> TextFeatures:
    """Returns the weighted sum of texts, [(text, share)]."""
    if len(parts) == 1:
        return parts[0][0]
    tokens = sum((share * text.tokens for text, share in parts[1:]), parts[0][1] * parts[0][0].tokens)
    pooled = [share * text.pooled for text, share in parts if text.pooled is not None]
    return TextFeatures(tokens, torch.stack(pooled).sum(0) if pooled else None)


def split(tokens: Tensor, pooled: Tensor | None = None) -> list[TextFeatures]:
    """Splits a batch into single texts."""
    return [TextFeatures(row, None if pooled is None else pooled[i]) for i, row in enumerate(tokens)]


def repaired(text: str) -> str:
    """Returns the text as OpenCLIP's tokenizer reads it: broken encodings, ligatures and curly quotes mended by ftfy,
    and HTML entities replaced, even if escaped twice."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int, *, cut: bool = False) -> Any:
    """Returns the texts padded to `length`: input_ids and attention_mask [B, length]. cut: shorten those that are
    longer. Raises UserError for them otherwise."""
    longest, text = max((len(tokenizer(text).input_ids), text) for text in texts)
    if longest > length and not cut:
        raise UserError(f"prompt: expected at most {length} tokens, got {longest}; shorten {text!r}")
    return tokenizer(texts, padding="max_length", max_length=length, truncation=cut, return_tensors="pt")


def check_clip(tokenizer: CLIPTokenizer, encoder: PreTrainedModel) -> None:
    """Raises UserError if the tokenizer does not belong to the encoder.

    OpenCLIP's encoders (SD2, MVDream; activation gelu) expect padding with id 0, "!"; OpenAI's (quick_gelu) with the
    end token. The wrong one loads without an error and degrades every prompt.
    """
    open_clip = encoder.config.hidden_act == "gelu"
    expected = 0 if open_clip else tokenizer.eos_token_id
    if tokenizer.pad_token_id != expected:
        family = "OpenCLIP's" if open_clip else "OpenAI's CLIP's"
        raise UserError(
            f"tokenizer.pad_token: expected id {expected}, as {family} text encoder reads it, got id "
            f"{tokenizer.pad_token_id}; take the tokenizer of the same model"
        )
    if len(tokenizer) > encoder.config.vocab_size:
        raise UserError(
            f"tokenizer: expected at most the text encoder's {encoder.config.vocab_size} tokens, got {len(tokenizer)}; "
            "take the tokenizer of the same model"
        )


def from_folder(cls: Any, folder: Path, **options: Any) -> Any:
    """Loads a tokenizer or text encoder of transformers from its folder, offline. Raises UserError if it cannot be
    read."""
    transformers_logging.disable_progress_bar()
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # that of a damaged tokenizer.json has no type of its own
        raise UserError(
            f"{folder}: expected a {cls.__name__}, got one that cannot be read ({first_line(error)}); download the "
            "whole folder again"
        ) from error


def read_text_model(
    cls: type[PreTrainedModel], folder: Path, dtype: torch.dtype | Literal["auto"] = "auto"
) -> PreTrainedModel:
    """Loads a text encoder and requires every weight in its folder; "auto" is the precision of its files.

    Raises UserError if a weight is missing or has a different shape.
    """
    check_layers(read_json(folder / "config.json"))
    options = {"dtype": dtype, "variant": text_variant(folder), "output_loading_info": True}
    model, found = from_folder(cls, folder, ignore_mismatched_sizes=True, **options)
    check_keys(found["missing_keys"], (), [key for key, *_ in found["mismatched_keys"]], folder)
    return model


VOCABULARIES = {CLIPTokenizer: ("vocab.json",), T5Tokenizer: ("spiece.model",)}
"""Files of a tokenizer that has no tokenizer.json."""


def read_tokenizer(folder: Path, cls: Any = CLIPTokenizer) -> Any:
    """Loads a tokenizer of CLIP or T5. Raises UserError if its vocabulary is missing, or only for sentencepiece, which
    is not installed."""
    if not (folder / "tokenizer.json").is_file():
        missing = [name for name in VOCABULARIES[cls] if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"tokenizer: expected tokenizer.json or {', '.join(missing)} in {folder}, got neither; download the "
                "whole folder"
            )
        if cls is T5Tokenizer and importlib.util.find_spec("sentencepiece") is None:
            raise UserError(
                f"tokenizer: {folder} has a SentencePiece model (spiece.model) alone, which needs sentencepiece: pip "
                "install 'gscfd[sentencepiece]'"
            )
    return from_folder(cls, folder)


def ready(model: PreTrainedModel, device: torch.device | str, dtype: torch.dtype) -> PreTrainedModel:
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


@torch.no_grad()
def encode_clip(
    read: Callable[[], Clip], texts: list[str], *, device: torch.device | str, dtype: torch.dtype
) -> list[TextFeatures]:
    """Encodes texts for Stable Diffusion 1.x, 2.x and MVDream: the last hidden state. read: loads tokenizer and
    encoder."""
    tokenizer, encoder = read()
    check_clip(tokenizer, encoder)
    ids = token_ids(tokenizer, texts, encoder.config.max_position_embeddings).input_ids
    return split(ready(encoder, device, dtype)(ids.to(device)).last_hidden_state)


@torch.no_grad()
def clip_layers(
    folder: Path,
    number: str,
    texts: list[str],
    *,
    projected: bool,
    device: torch.device | str,
    dtype: torch.dtype,
    cut: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns the hidden states before the last layer [B, L, D], and the text as one vector [B, P]: the projected or
    the pooled state.

    number: "" or "_2", selects the encoder. cut: as for `token_ids`, for models whose T5 reads the whole text.
    """
    tokenizer = read_tokenizer(folder / f"tokenizer{number}")
    cls = CLIPTextModelWithProjection if projected else CLIPTextModel
    encoder = read_text_model(cls, folder / f"text_encoder{number}")
    check_clip(tokenizer, encoder)
    ids = token_ids(tokenizer, texts, encoder.config.max_position_embeddings, cut=cut).input_ids
    output = ready(encoder, device, dtype)(ids.to(device), output_hidden_states=True)
    return output.hidden_states[-2], output.text_embeds if projected else output.pooler_output


@torch.no_grad()
def t5(
    folder: Path,
    number: str,
    texts: list[str],
    length: int,
    *,
    masked: bool,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    """Returns T5's last hidden state, [B, length, D]. number: "", "_2" or "_3". masked: whether attention ignores
    padding.

    The encoder is read in `dtype` and not cast afterward: in float16 some of its layers must stay in float32.
    """
    tokenizer = read_tokenizer(folder / f"tokenizer{number}", T5Tokenizer)
    encoder = read_text_model(T5EncoderModel, folder / f"text_encoder{number}", dtype).to(device).eval()
    ids = token_ids(tokenizer, texts, length).to(device)
    mask = ids.attention_mask if masked else None
    hidden: Tensor = encoder(ids.input_ids, attention_mask=mask).last_hidden_state
    return hidden.to(dtype)


def encode_sdxl(
    folder: Path, texts: list[str], *, device: torch.device | str, dtype: torch.dtype
) -> list[TextFeatures]:
    """Encodes texts for SDXL: the tokens of both CLIPs side by side, and the pooled text of the second."""
    first, _ = clip_layers(folder, "", texts, projected=False, device=device, dtype=dtype)
    second, pooled = clip_layers(folder, "_2", texts, projected=True, device=device, dtype=dtype)
    return split(torch.cat([first, second], -1), pooled)


def encode_sd3(folder: Path, texts: list[str], *, device: torch.device | str, dtype: torch.dtype) -> list[TextFeatures]:
    """Encodes texts for SD3: both CLIPs side by side, zero-padded to T5's width, then T5's tokens (Esser et al. 2024,
    figure 2)."""
    first, first_whole = clip_layers(folder, "", texts, projected=True, device=device, dtype=dtype, cut=True)
    second, second_whole = clip_layers(folder, "_2", texts, projected=True, device=device, dtype=dtype, cut=True)
    long = t5(folder, "_3", texts, SD3_LENGTH, masked=False, device=device, dtype=dtype)
    both = torch.cat([first, second], -1)
    both = torch.nn.functional.pad(both, (0, long.shape[-1] - both.shape[-1]))
    return split(torch.cat([both, long], 1), torch.cat([first_whole, second_whole], -1))


def encode_flux(
    folder: Path, texts: list[str], *, length: int, device: torch.device | str, dtype: torch.dtype
) -> list[TextFeatures]:
    """Encodes texts for FLUX: T5's tokens, and CLIP's pooled state. length: number of T5 tokens."""
    _, pooled = clip_layers(folder, "", texts, projected=False, device=device, dtype=dtype, cut=True)
    return split(t5(folder, "_2", texts, length, masked=False, device=device, dtype=dtype), pooled)


def encode_if(folder: Path, texts: list[str], *, device: torch.device | str, dtype: torch.dtype) -> list[TextFeatures]:
    """Encodes texts for DeepFloyd IF: T5's tokens of the lowercase text, as in its training."""
    lowered = [text.lower().strip() for text in texts]
    return split(t5(folder, "", lowered, IF_LENGTH, masked=True, device=device, dtype=dtype))
