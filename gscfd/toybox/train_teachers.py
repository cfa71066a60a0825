"""Train the toybox teachers: `python -m gscfd.toybox.train_teachers --out DIR`.

Six parts in order: the VAE; the text encoder; the multi-view teacher; the single-view teacher, initialized from it; the
scorer; and the export in diffusers' folder layout. Every part saves its progress; the same command resumes an
interrupted training.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import tyro
from diffusers import AutoencoderKL, StableDiffusionPipeline

from gscfd.cli import exit_code
from gscfd.devices import choose_device
from gscfd.toybox import models
from gscfd.toybox.training.denoiser import Denoiser, train_denoiser
from gscfd.toybox.training.fit import TrainingOptions
from gscfd.toybox.training.scorer import train_scorer
from gscfd.toybox.training.text import train_text
from gscfd.toybox.training.vae import train_vae

# ------------------------------------------------------------------------------------------------------------- export


def export_teacher(denoiser: Denoiser, vae: AutoencoderKL, folder: Path) -> None:
    """Writes one teacher as a diffusers folder in float16."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=copy.deepcopy(denoiser.text_encoder).half(),
        tokenizer=denoiser.tokenizer,
        unet=copy.deepcopy(denoiser.unet).half(),
        scheduler=models.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def main(settings: TrainingOptions) -> None:
    settings = replace(settings, device=str(choose_device(settings.device)))
    print(f"training {', '.join(settings.parts)} on {settings.device} into {settings.out}")
    parts, folder = set(settings.parts), settings.out / "export"
    if parts - {"scorer", "text"}:
        vae = train_vae(settings).eval().requires_grad_(False)
    if parts - {"vae"}:
        text_encoder = train_text(settings)
    if parts & {"multiview", "singleview", "export"}:
        multiview = train_denoiser(settings, vae, text_encoder, None)
        export_teacher(multiview, vae, folder / "multiview")
    if parts & {"singleview", "export"}:
        export_teacher(train_denoiser(settings, vae, text_encoder, multiview), vae, folder / "singleview")
    if parts & {"scorer", "export"}:
        scorer = train_scorer(settings, text_encoder)
        copy.deepcopy(scorer.clip).half().save_pretrained(folder / "scorer")
        scorer.tokenizer.save_pretrained(folder / "scorer")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(tyro.cli(TrainingOptions, prog="python -m gscfd.toybox.train_teachers"))))
