"""Names of a run's files and folders, and checks of which runs may be resumed or replaced."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gscfd.config import Config, flat, load_run, plain
from gscfd.distil.edits import last_settings
from gscfd.errors import UserError
from gscfd.export import FORMATS
from gscfd.files import UNFINISHED, is_writable, remove_unfinished
from gscfd.gaussians import Gaussians
from gscfd.runs.checkpoint import NAME

VIDEO_FILE = "turntable.mp4"
"""Written only where there is ffmpeg."""
FINISHED_FILE = "turntable.png"
"""Last file that a run writes; a run is finished if it exists."""
RUN_FILES = {"splat.ply", VIDEO_FILE, FINISHED_FILE, "config.yaml", "stats.jsonl", "log.txt"}
START_FILE = "init.ply"
"""Copy of the splat given by --init, from which a run without checkpoints resumes."""
RUN_FILES |= {START_FILE, "noise.mp4", "noise.png", "noise-correlation.png"} | {f"splat.{name}" for name in FORMATS}
RUN_FILES |= {"thumbnail.png", "splat.mtl", "splat.texture.png", "splat.mesh.texture.png"}
"""Files that a run, `gscfd show-noise` and `gscfd export` write."""
FREE_SETTINGS = {"out", "overwrite", "resume", "dry_run", "list_words", "viewer", "device"}
"""Settings that may change on --resume: they do not affect the splat, or are checked separately."""


SLUG_LETTERS = 60
"""Most letters of a slug."""


def slug(prompt: str) -> str:
    """Returns the prompt in a form suitable for file names."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:SLUG_LETTERS] or "prompt"


def default_folder(prompt: str, seed: int) -> Path:
    return Path("outputs") / f"{slug(prompt)}-{seed}"


def folder_of(config: Config) -> Path:
    """Returns the run's folder."""
    return config.resume or config.out or default_folder(config.prompt, config.seed)


def foreign_files(folder: Path) -> list[str]:
    """Returns the names in the folder that do not belong to a run."""

    def finished_name(name: str) -> str:
        tmp = UNFINISHED.fullmatch(name)
        return tmp[1] if tmp else name

    checkpoints = folder / "checkpoints"
    names = [path.name for path in folder.iterdir() if path != checkpoints]
    foreign = [name for name in names if finished_name(name) not in RUN_FILES]
    inside = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return sorted(foreign + [f"checkpoints/{name}" for name in inside if not NAME.fullmatch(finished_name(name))])


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Raises UserError unless `path`, which exists, is an empty folder or a run that may be replaced."""
    if path.is_dir() and is_empty(path):
        return
    foreign = foreign_files(path) if path.is_dir() else []
    if foreign or not (path / "config.yaml").is_file():
        what = f"holds {', '.join(foreign[:3])}" if foreign else "has no config.yaml" if path.is_dir() else "is a file"
        raise UserError(
            f"out: expected a new or empty folder, or a run of gscfd to --overwrite, but {path} {what}; "
            "choose another --out"
        )
    if not overwrite:
        others = "choose another --out, another --seed, or add --overwrite"
        if (path / FINISHED_FILE).exists():
            raise UserError(f"out: {path} exists; {others}")
        raise UserError(f"out: {path} holds an unfinished run; continue it with --resume {path}, {others}")


def is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def check_resumable(config: Config, folder: Path) -> None:
    """Raises UserError unless `folder` holds an unfinished run with these settings."""
    if config.overwrite or config.out not in (None, folder):
        raise UserError("resume: expected no --out or --overwrite with --resume; the run stays in its folder")
    check_same_settings(config, plain(load_run(folder)))
    if (folder / FINISHED_FILE).exists():
        raise UserError(
            f"resume: expected a stopped run, got {folder}, which is finished: see {folder}/splat.ply; "
            "for another run choose another --out"
        )


def check_same_settings(config: Config, saved: dict[str, Any]) -> None:
    """Raises UserError if settings differ from `saved`, the run's original settings, or if edits are missing."""
    if changed := changed_settings(config, saved):
        raise UserError(
            f"resume: expected the settings that {config.resume} was started with: {changed}; drop these options, or "
            f"start another run: --preset {config.resume}/config.yaml --out DIR"
        )


def changed_settings(config: Config, saved: dict[str, Any]) -> str:
    """Returns the names of the settings that make config a different run, with their saved and new values; "" if there
    are none. A setting that `saved` lacks, since an earlier version wrote it, has its default."""
    now, then = flat(plain(config)), flat(plain(Config())) | flat(saved)
    if all(edit in now["edits"] for edit in then.get("edits", [])):
        then["edits"] = now["edits"]
    changed = [
        name for name in now | then if now.get(name) != then.get(name) and name.split(".")[0] not in FREE_SETTINGS
    ]
    return ", ".join(f"{name} = {then.get(name)!r} (got {now.get(name)!r})" for name in changed)


def next_config(config: Config) -> Config | None:
    """Returns the settings that start or resume the run in `config.out`, or None if it is finished."""
    folder = config.out
    assert folder is not None
    if (folder / FINISHED_FILE).exists():
        return None
    if (folder / "config.yaml").is_file():
        return replace(config, out=None, resume=folder)
    if folder.is_dir():
        # The run was killed before its settings were written. A folder with other files is kept.
        remove_unfinished(folder)
        if [path.name for path in folder.iterdir()] == [START_FILE]:
            (folder / START_FILE).unlink()
        with suppress(OSError):
            folder.rmdir()
    return config


def read_run(folder: Path) -> tuple[Config, Gaussians]:
    """Returns a finished run's settings, with all edits, and its splat. Raises UserError, naming what is missing."""
    for name in ("config.yaml", "splat.ply", FINISHED_FILE):
        if not (folder / name).is_file():
            raise UserError(f"runs: expected a finished run, but {folder} has no {name}")
    return last_settings(load_run(folder)), Gaussians.load_ply(folder / "splat.ply")


def check_folder(config: Config) -> Path:
    """Returns the run's folder. Raises UserError if it exists and may not be replaced, or cannot be resumed."""
    folder = folder_of(config)
    if not is_writable(folder):
        raise UserError(f"out: expected a folder that can be written, got {folder}; choose another --out")
    if config.resume is not None:
        check_resumable(config, folder)
    elif folder.exists():
        check_replaceable(folder, config.overwrite)
    return folder
