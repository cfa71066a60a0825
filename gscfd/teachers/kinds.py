"""The kinds of teachers. The files determine the kind, not the name; no network is loaded for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from gscfd.errors import UserError
from gscfd.teachers.find import CHECKPOINTS, WEIGHT, Source, find_source, find_teacher, halves, wanted
from gscfd.teachers.weights import first_line, read_json
from gscfd.toybox.words import vocabulary

Kind = Literal["sd", "mvdream", "toybox", "sdxl", "sd3", "flux", "if"]
SUPPORTED = (
    "Stable Diffusion 1.x and 2.x, MVDream (a diffusers folder, or the single file), SDXL, Stable Diffusion 3 and 3.5, "
    "FLUX.1, DeepFloyd IF stage I, MV-Adapter on Stable Diffusion 2.1 or SDXL"
)
CAMERA_NUMBERS = 16
CLIP_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
TWO_ENCODERS = ("vae", "scheduler", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
PARTS_OF: dict[Kind, tuple[str, ...]] = {
    "sd": CLIP_PARTS,
    "mvdream": CLIP_PARTS,
    "toybox": CLIP_PARTS,
    "sdxl": ("unet", *TWO_ENCODERS),
    "sd3": ("transformer", *TWO_ENCODERS, "text_encoder_3", "tokenizer_3"),
    "flux": ("transformer", *TWO_ENCODERS),
    "if": ("unet", "scheduler", "text_encoder", "tokenizer"),
}
"""Folders that each kind has."""
T5_PARTS = {("sd3", "tokenizer_3"), ("flux", "tokenizer_2"), ("if", "tokenizer")}
"""Tokenizers that are T5's; the others are CLIP's."""


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Converts errors while reading `source`, such as a config that fits no network, into UserError."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # diffusers checks no config, so a damaged one may fail in any way
        raise UserError(
            f"teacher: expected a readable teacher, got {type(error).__name__} in {source}: {first_line(error)}"
            "; download it again"
        ) from error


def is_here(path_or_repo: str) -> bool:
    """Returns whether the teacher can be loaded offline: every folder it reads exists, with weights in those that hold
    a network."""
    try:
        found = weight_bytes(find_source(path_or_repo, local_files_only=True))
    except UserError:
        return False
    return all(count > 0 for part, count in found.items() if not part.startswith(("scheduler", "tokenizer")))


def weight_bytes(found: Source) -> dict[str, int]:
    """Returns the bytes of the weight files read for each part of a teacher, 0 for a part without weights. Raises
    UserError if `found` is not a teacher."""
    source = found.path
    if found.adapter is not None:
        return {**weight_bytes(Source(source)), found.adapter.name: found.adapter.stat().st_size}
    if source.is_file():
        return {source.name: source.stat().st_size, "tokenizer": 0}
    files = wanted([path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()])
    weights = [file for file in files if WEIGHT.fullmatch(Path(file).name)]
    return {
        part: sum((source / file).stat().st_size for file in weights if file.startswith(part + "/"))
        for part in PARTS_OF[kind_of(source)]
    }


def known_words(path_or_repo: str) -> frozenset[str] | None:
    """Returns the words that a teacher was trained on; None for free text and for a teacher that is not on this
    machine."""
    try:
        kind = kind_of(find_teacher(halves(path_or_repo)[0], local_files_only=True))
    except UserError:
        return None
    return frozenset(vocabulary()) if kind == "toybox" else None


def check_teacher(path_or_repo: str) -> None:
    """Raises UserError if there are no files of a supported kind; files on the hub are fetched now."""
    found = find_source(path_or_repo)
    kind = kind_of(found.path)
    if found.adapter is not None:
        check_adapted(kind, found.path)


def kind_of(source: Path) -> Kind:
    """Returns the kind of the files in `source`. Raises UserError if it is not a teacher, or of an unknown kind."""
    if source.is_file():
        if source.suffix not in CHECKPOINTS:
            raise UserError(f"teacher: expected {', '.join(CHECKPOINTS)} or a folder, got {source}; give one of these")
        return "mvdream"
    with reading(source):
        if (source / "transformer").is_dir():
            return checked(transformer_kind(source, read_json(source / "transformer" / "config.json")), source)
        if (source / "unet").is_dir():
            return checked(unet_kind(source, read_json(source / "unet" / "config.json")), source)
    files = sorted(path.name for path in source.iterdir() if path.suffix in CHECKPOINTS)
    hint = f"give one of its checkpoint files: {', '.join(files)}" if files else "give a diffusers folder"
    raise UserError(f"teacher: expected a unet or transformer folder in {source}, got neither; {hint}")


def transformer_kind(source: Path, config: dict[str, Any]) -> Kind:
    """Returns the kind of a transformer, determined by its class."""
    known: dict[str, Kind] = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}
    name = config.get("_class_name")
    if name in known:
        return known[name]
    raise unsupported(source, f"transformer of class {name}")


def unet_kind(source: Path, config: dict[str, Any]) -> Kind:
    """Returns the kind of a UNet, determined by its inputs besides the noisy image."""
    if "model_channels" in config:  # latent-diffusion's names under diffusers' layout
        return "mvdream"
    added, classes = config.get("addition_embed_type"), config.get("class_embed_type")
    if config.get("encoder_hid_dim_type") == "text_proj" and added == "text" and not (source / "vae").is_dir():
        if config.get("in_channels") != 3:
            raise unsupported(source, "later stage of DeepFloyd IF")
        return "if"
    if classes == "projection" and config.get("projection_class_embeddings_input_dim") == CAMERA_NUMBERS:
        return "toybox" if added == "text" else "mvdream"
    if classes is not None:
        raise unsupported(source, f"UNet with class_embed_type {classes}")
    if config.get("time_cond_proj_dim") is not None:
        raise unsupported(source, "distilled UNet that reads its guidance scale (LCM, time_cond_proj_dim)")
    if added == "text_time" and (source / "text_encoder_2").is_dir() and not (source / "text_encoder").is_dir():
        raise unsupported(source, "refiner of SDXL, which only finishes another model's pictures")
    known: dict[str | None, Kind] = {None: "sd", "text": "toybox", "text_time": "sdxl"}
    if added in known:
        return known[added]
    raise unsupported(source, f"UNet with addition_embed_type {added}")


def unsupported(source: Path, got: str) -> UserError:
    return UserError(f"teacher: expected {SUPPORTED}, got a {got} in {source}; choose one of these")


def checked(kind: Kind, source: Path) -> Kind:
    """Returns the kind if the folders that it reads exist. Raises UserError that lists missing ones."""
    missing = [part for part in PARTS_OF[kind] if not (source / part).is_dir()]
    if missing:
        raise UserError(
            f"teacher: expected a diffusers folder with {', '.join(PARTS_OF[kind])}, but {source} has no "
            f"{', '.join(missing)}; download the whole folder"
        )
    return kind


def check_adapted(kind: Kind, source: Path) -> None:
    """Raises UserError unless an adapter may be added to a model of this kind."""
    if kind not in ("sd", "sdxl"):
        raise UserError(
            f"teacher: expected Stable Diffusion 2.1 or SDXL before the adapter, got another model in {source}; an "
            "MV-Adapter belongs to the model that it was trained on"
        )
