"""Score finished runs: `python -m gscfd.evaluate RUNS...`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
import yaml
from torch import Tensor

from gscfd.config import Config, merged
from gscfd.errors import UserError
from gscfd.export.ply import read_ply
from gscfd.export.turntable import turntable_frames, write_contact_sheet
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians
from gscfd.metrics import Scorer, r_precision

SCORER = Path(str(resources.files("gscfd.toybox"))) / "weights" / "scorer"
VIEWS = 120
SHEET_VIEWS = 6
BACKGROUND = 0.75


@dataclass(kw_only=True)
class Score:
    """One run's figures."""

    run: str
    prompt: str
    guidance: str
    r_precision: float | None
    """Share of 120 views whose most similar prompt, among those of all runs given, is the run's own; None when that is
    the only prompt."""
    similarity: float
    """Mean cosine similarity of the views and the prompt."""
    gaussians: int


def read_run(folder: Path) -> tuple[Config, Gaussians]:
    """A finished run's settings and splat. Raises UserError naming what is missing."""
    for name in ("config.yaml", "splat.ply", "turntable.mp4"):
        if not (folder / name).is_file():
            raise UserError(f"runs: expected a finished run, but {folder} has no {name}")
    return merged(Config(), yaml.safe_load((folder / "config.yaml").read_text())), read_ply(folder / "splat.ply")


def evaluate(folders: list[Path], scorer: Scorer) -> tuple[list[Score], np.ndarray]:
    """The scores of the runs and a contact sheet's frames [runs * 6, 128, 128, 3]."""
    runs = [read_run(folder) for folder in folders]
    prompts = list(dict.fromkeys(config.prompt for config, _ in runs))
    scores, frames = [], []
    for folder, (config, gaussians) in zip(folders, runs, strict=True):
        views = turntable_frames(gaussians, VIEWS, size=128, background=BACKGROUND)
        images = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255
        similarity: Tensor = scorer.similarity(images, prompts)
        truth = prompts.index(config.prompt)
        scores.append(
            Score(
                run=folder.name,
                prompt=config.prompt,
                guidance=config.guidance,
                r_precision=r_precision(similarity, truth) if len(prompts) > 1 else None,
                similarity=similarity[:, truth].mean().item(),
                gaussians=len(gaussians),
            )
        )
        frames.append(views[:: VIEWS // SHEET_VIEWS])
    return scores, np.concatenate(frames)


def percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.1%}"


def table(scores: list[Score]) -> str:
    """The scores as a Markdown table, with the mean last."""
    lines = ["| prompt | guidance | R-precision | similarity | Gaussians |", "|---|---|---|---|---|"]
    for s in scores:
        lines.append(f"| {s.prompt} | {s.guidance} | {percent(s.r_precision)} | {s.similarity:.3f} | {s.gaussians} |")
    known = [s.r_precision for s in scores if s.r_precision is not None]
    mean = sum(known) / len(known) if known else None
    lines.append(f"| **mean of {len(scores)}** | | **{percent(mean)}** | | |")
    return "\n".join(lines) + "\n"


@dataclass(kw_only=True)
class Settings:
    """Score finished runs with the toybox's image-text scorer."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished runs; every prompt is retrieved among the prompts of all of them."""
    report: Path | None = None
    """Folder for scores.json, scores.md and sheet.png (a row of views for each run)."""


def main(settings: Settings) -> int:
    try:
        if not settings.runs:
            raise UserError("runs: expected at least one folder of a finished run, got none")
        scorer = Scorer(SCORER)
        scores, frames = evaluate(list(settings.runs), scorer)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(scores), end="")
    if settings.report is not None:
        settings.report.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("scores.md", table(scores)),
            ("scores.json", json.dumps([vars(s) for s in scores], indent=1)),
        ):
            with atomic_write(settings.report / name) as file:
                file.write(text.encode())
        write_contact_sheet(frames, settings.report / "sheet.png", columns=2 * SHEET_VIEWS)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, prog="python -m gscfd.evaluate")))
