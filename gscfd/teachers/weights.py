"""Reads weights from files: only tensors are read, and a network gets all of its weights or none."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gscfd.errors import UserError

if TYPE_CHECKING:
    from diffusers import ModelMixin

Network = TypeVar("Network", bound="ModelMixin")

STEM = "diffusion_pytorch_model"
DAMAGES = (
    *(SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile, struct.error, OSError, MemoryError),
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
)
"""Errors that torch's and safetensors' readers raise for a damaged file."""
LAYERS, MOST_LAYERS = re.compile("layers|blocks|depth"), 1000
"""Settings of a config that count layers, and how many there may be."""
OLD_VAE_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Old names still used in Stable Diffusion's VAE files."""


def is_zip_file(path: Path) -> bool:
    """Returns whether the file, complete or not, starts like an archive of torch.save."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def read_state(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file or of a file written by torch.save. No code in it is run.

    Raises UserError if the file is truncated, holds pickled Python objects, or is not a flat dictionary of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip_file(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: expected tensors alone, got pickled Python objects, which could run any code; not loaded. "
            "Ask for the same weights as .safetensors"
        ) from error
    except DAMAGES as error:
        raise UserError(
            f"{path}: expected a whole checkpoint, got a truncated or damaged one ({first_line(error)}); copy it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a flat dictionary of tensors, got {type(state).__name__} with other values")
    return state


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError if the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a JSON file, got {first_line(error)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def weight_files(folder: Path) -> list[Path]:
    """Returns the files of a network in diffusers' layout: one file, or the shards listed in an index; fp16 if only
    that exists."""
    for kind in ("safetensors", "bin"):
        for index in (f"{STEM}.{kind}.index.json", f"{STEM}.{kind}.index.fp16.json", f"{STEM}.{kind}.fp16.index.json"):
            if (folder / index).is_file():
                names = set(read_json(folder / index).get("weight_map", {}).values())
                return [folder / Path(name).name for name in sorted(names)]
        for name in (f"{STEM}.{kind}", f"{STEM}.fp16.{kind}"):
            if (folder / name).is_file():
                return [folder / name]
    raise UserError(f"{folder}: expected {STEM}.safetensors (or .bin), got none; download the whole folder")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Returns all tensors of a network in diffusers' layout. Raises UserError if a file is missing or damaged."""
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        if not file.is_file():
            raise UserError(f"{file}: expected a shard of the weights, got no such file; download the whole folder")
        state |= read_state(file)
    return state


def text_variant(folder: Path) -> str | None:
    """Returns "fp16" for a text encoder with half-precision weights only, else None."""
    names = {path.name for path in folder.iterdir()}
    plain = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"}
    return None if names & plain or not any(".fp16" in name for name in names) else "fp16"


def check_keys(missing: Iterable[str], unexpected: Iterable[str], reshaped: Iterable[str], where: Path) -> None:
    """Raises UserError that names the first tensors that do not fit the network."""
    for what, keys in (("lacks", missing), ("has unknown", unexpected), ("has a wrong shape for", reshaped)):
        found = sorted(keys)
        if found:
            raise UserError(
                f"{where}: expected exactly the network's weights, but it {what} {', '.join(found[:3])}"
                f"{f' and {len(found) - 3} more' if len(found) > 3 else ''}; it is damaged, or from another model"
            )


def fill(network: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """Loads weights into a network built on the meta device. Raises UserError unless they match exactly."""
    wanted = network.state_dict()
    reshaped = [
        f"{key} {list(state[key].shape)}, expected {list(wanted[key].shape)}"
        for key in wanted.keys() & state.keys()
        if wanted[key].shape != state[key].shape
    ]
    check_keys(wanted.keys() - state.keys(), state.keys() - wanted.keys(), reshaped, where)
    network.load_state_dict(state, strict=True, assign=True)


def check_layers(config: dict[str, Any]) -> None:
    """Raises UserError if a config counts more layers than any network has: building them would never end."""
    for name, value in config.items():
        if LAYERS.search(name) and any(isinstance(n, int | float) and not n <= MOST_LAYERS for n in numbers(value)):
            raise UserError(f"config.json: expected at most {MOST_LAYERS} layers as {name}, got {value}; it is damaged")


def numbers(value: object) -> Iterator[object]:
    """Yields what is in a list of lists, or the value itself."""
    if isinstance(value, list):
        for part in value:
            yield from numbers(part)
    else:
        yield value


def build(cls: type[Network], config: dict[str, Any]) -> Network:
    """Builds the network without memory for its weights; `fill` supplies them. Raises UserError for a config with too
    many layers."""
    from diffusers import AutoencoderTiny  # late: files are read without it, too

    check_layers(config)
    if cls is AutoencoderTiny:  # It writes this key itself, and warns of it when it reads it.
        config = {key: value for key, value in config.items() if key != "block_out_channels"}
    with torch.device("meta"):
        network: Network = cls.from_config(config)
    return network


def read_network(cls: type[Network], folder: Path) -> Network:
    """Loads a network in diffusers' layout, in the precision of its files. Raises UserError if a weight does not
    fit."""
    network = build(cls, read_json(folder / "config.json"))
    state = read_weights(folder)
    for old, new in OLD_VAE_ATTENTION.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    fill(network, state, folder)
    return network
