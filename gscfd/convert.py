"""Converts MVDream, from any of its layouts, to a diffusers folder: `gscfd convert SRC DST`."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gscfd.cli import exit_code
from gscfd.errors import UserError


@dataclass(kw_only=True)
class Conversion:
    """Convert MVDream to a plain diffusers folder with each part in its own safetensors file."""

    src: Annotated[str, tyro.conf.Positional]
    """MVDream's .pt file (with SD2.1's tokenizer/ beside it), a folder, or OWNER/REPO on the Hugging Face Hub."""
    dst: Annotated[Path, tyro.conf.Positional]
    """Folder to write; it must not exist."""


def convert(src: str, dst: Path) -> None:
    """Writes `src` to the new folder `dst`, in the precision of its files: completely or not at all.

    Raises UserError if src cannot be read or is not MVDream, or if dst exists or cannot be written.
    """
    from gscfd.teachers.find import find_teacher
    from gscfd.teachers.kinds import kind_of, reading

    if dst.exists():
        raise UserError(f"dst: expected a new folder, got {dst}, which exists; choose another, or remove it")
    source = find_teacher(src)
    if kind_of(source) != "mvdream":
        raise UserError(f"src: expected MVDream, got another model in {source}; other models need no conversion")
    # These load the libraries of the teachers, for seconds, which then print warnings of their own.
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from gscfd.teachers.load import parts

    with reading(source):
        found = parts(source)
        tokenizer, text_encoder = found.text()
        pipeline = StableDiffusionPipeline(
            vae=found.vae(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=found.unet(),
            scheduler=DDIMScheduler.from_config(found.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    temporary = dst.with_name(f".{dst.name}.{os.getpid()}.tmp")
    try:
        pipeline.save_pretrained(temporary)
        os.replace(temporary, dst)
    except OSError as error:
        raise UserError(f"dst: cannot write {dst} ({error}); free some space, or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    def command() -> None:
        chosen = tyro.cli(Conversion, args=arguments, prog="gscfd convert")
        convert(chosen.src, chosen.dst)
        print(f"wrote {chosen.dst}; use it with --coarse.teacher {chosen.dst}")

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
