"""Names of a run's files and folders, and what may be resumed or replaced."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from gscfd.config import Config, flat, load_run, merged, plain
from gscfd.distil.edits import last_settings
from gscfd.errors import UserError
from gscfd.export import FORMATS
from gscfd.files import UNFINISHED, remove_unfinished
from gscfd.gaussians import Gaussians
from gscfd.runs.checkpoint import NAME

RUN_FILES = {"splat.ply", "turntable.mp4", "turntable.png", "config.yaml", "stats.jsonl", "log.txt"}
START_FILE = "init.ply"
"""The splat that --init has made the run start from, as it was then: what a run without a checkpoint resumes from."""
RUN_FILES |= {START_FILE, "noise.mp4", "noise.png", "noise-correlation.png"} | {f"splat.{name}" for name in FORMATS}
"""What a run, `gscfd.show_noise` and `gscfd.export` write."""
FINISHED_FILE = "turntable.mp4"
"""What a run writes last: it is finished when this is there."""
FREE_SETTINGS = {"out", "overwrite", "resume", "dry_run", "list_words", "viewer", "device"}
"""Settings that --resume takes any value of: they change nothing in the splat, or are checked by what they mean."""


def slug(prompt: str) -> str:
    """The prompt as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "prompt"


def default_folder(prompt: str, seed: int) -> Path:
    return Path("outputs") / f"{slug(prompt)}-{seed}"


def folder_of(config: Config) -> Path:
    """Where the run writes."""
    return config.resume or config.out or default_folder(config.prompt, config.seed)


def foreign_files(folder: Path) -> list[str]:
    """Names in the folder that no run writes."""

    def finished_name(name: str) -> str:
        tmp = UNFINISHED.fullmatch(name)
        return tmp[1] if tmp else name

    checkpoints = folder / "checkpoints"
    names = [path.name for path in folder.iterdir() if path != checkpoints]
    foreign = [name for name in names if finished_name(name) not in RUN_FILES]
    inside = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return sorted(foreign + [f"checkpoints/{name}" for name in inside if not NAME.fullmatch(finished_name(name))])


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Raise UserError unless `path`, which exists, is a run that may be replaced."""
    if not overwrite:
        raise UserError(f"out: {path} exists; choose another --out, another --seed, or add --overwrite")
    if not path.is_dir():
        raise UserError(f"out: --overwrite replaces only a run of gscfd, and {path} is a file; choose another --out")
    foreign = foreign_files(path)
    if foreign or not (path / "config.yaml").is_file():
        what = f"holds {', '.join(foreign[:3])}" if foreign else "has no config.yaml"
        raise UserError(f"out: --overwrite replaces only a run of gscfd, and {path} {what}; choose another --out")


def check_resumable(config: Config, folder: Path) -> None:
    """Raise UserError unless `folder` holds a run with these settings that is not finished."""
    if config.overwrite or config.out not in (None, folder):
        raise UserError("resume: expected neither --out nor --overwrite beside it; the run stays in its folder")
    check_same_settings(config, plain(load_run(folder)))
    if (folder / FINISHED_FILE).exists():
        raise UserError(
            f"resume: expected a run that was stopped, got {folder}, which is finished: see {folder}/splat.ply; "
            "for another run choose another --out"
        )


def check_same_settings(config: Config, saved: dict[str, Any]) -> None:
    """Raise UserError when settings differ from `saved`, those that the run was started with, or edits are missing."""
    if changed := changed_settings(config, saved):
        raise UserError(
            f"resume: expected the settings that {config.resume} was started with: {changed}; leave these options "
            f"away, or start another run: --preset {config.resume}/config.yaml --out DIR"
        )


def changed_settings(config: Config, saved: dict[str, Any]) -> str:
    """Names and values, those saved and those of config, of the settings that make it another run; "" for none."""
    now, then = flat(plain(config)), flat(saved)
    if all(edit in now["edits"] for edit in then.get("edits", [])):
        then["edits"] = now["edits"]
    changed = [
        name for name in now | then if now.get(name) != then.get(name) and name.split(".")[0] not in FREE_SETTINGS
    ]
    return ", ".join(f"{name} = {then.get(name)!r} (got {now.get(name)!r})" for name in changed)


def next_config(config: Config) -> Config | None:
    """Settings that begin the run in `config.out`, or continue it where it was stopped; None when it is finished."""
    folder = config.out
    assert folder is not None
    if (folder / FINISHED_FILE).exists():
        return None
    if (folder / "config.yaml").is_file():
        return replace(config, out=None, resume=folder)
    if folder.is_dir():
        # Killed before the settings were written. What else is in it is in the way.
        remove_unfinished(folder)
        with suppress(OSError):
            folder.rmdir()
    return config


def read_run(folder: Path) -> tuple[Config, Gaussians]:
    """A finished run's settings, those of its end, and splat. Raises UserError naming what is missing."""
    for name in ("config.yaml", "splat.ply", FINISHED_FILE):
        if not (folder / name).is_file():
            raise UserError(f"runs: expected a finished run, but {folder} has no {name}")
    config = merged(Config(), yaml.safe_load((folder / "config.yaml").read_text()))
    return last_settings(config), Gaussians.load_ply(folder / "splat.ply")


def check_folder(config: Config) -> Path:
    """The folder of the run. Raises UserError when it is in the way, or is no run to resume."""
    folder = folder_of(config)
    if config.resume is not None:
        check_resumable(config, folder)
    elif folder.exists():
        check_replaceable(folder, config.overwrite)
    return folder
