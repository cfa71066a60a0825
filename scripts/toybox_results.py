"""Make and score the runs behind docs/results.md: 20 prompts, one seed, default settings.

    python scripts/toybox_results.py [--guidance cfd sds] [--seed 0] [--jobs 2] OUT [-- options of gscfd.train]

Ten prompts are (kind, color) pairs that the teachers never saw together. The runs are a sweep (extra `sweep`); finished
ones are kept. OUT/GUIDANCE/report gets the report of gscfd.evaluate (extra `eval`) and a gallery of their thumbnails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image

from gscfd.cameras import turntable
from gscfd.config import MethodName
from gscfd.errors import UserError
from gscfd.lab.evaluation import evaluate
from gscfd.lab.judges import SCORER, Scorer
from gscfd.lab.metrics import r_precision
from gscfd.lab.options import EvaluateOptions
from gscfd.lab.references import BACKGROUND
from gscfd.lab.report import check_report
from gscfd.pictures import write_contact_sheet
from gscfd.runs.names import default_folder
from gscfd.runs.options import parse
from gscfd.sweeps.make import Run, make_runs
from gscfd.sweeps.options import Workers
from gscfd.toybox.data import render_object
from gscfd.toybox.truth import KNOWN_PROMPTS, WITHHELD_PROMPTS, true_objects

PROMPTS = KNOWN_PROMPTS + WITHHELD_PROMPTS
GALLERY_SIZE = 200
"""Pixels of a picture in the gallery, both ways."""


def planned(folder: Path, seed: int, options: list[str]) -> list[Run]:
    """Returns a run of every prompt. options: of gscfd.train."""
    runs = []
    for prompt in PROMPTS:
        out = folder / default_folder(prompt, seed).name
        runs.append(
            Run(out, parse([*options, "--prompt", prompt, "--seed", str(seed), "--out", str(out), "--no-viewer"]))
        )
    return runs


def ceiling() -> float:
    """R-precision of the true objects among all prompts: more than this no splat should score. The one scene of two
    objects is a choice among the prompts, but none of its true objects is drawn."""
    scorer, prompts = Scorer(SCORER), list(PROMPTS)
    cameras, found = turntable(24, size=128), []
    for truth, prompt in enumerate(prompts):
        for thing in true_objects(prompt, 4):
            images = render_object(thing, cameras, torch.full((3,), BACKGROUND))
            found.append(r_precision(scorer.similarity(images, prompts), truth))
    return sum(found) / len(found)


def thumbnail(run: Path) -> np.ndarray:
    """Returns the picture of a finished run, [GALLERY_SIZE, GALLERY_SIZE, 3] uint8."""
    with Image.open(run / "thumbnail.png") as picture:
        return np.asarray(picture.convert("RGB").resize((GALLERY_SIZE, GALLERY_SIZE), Image.Resampling.LANCZOS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--guidance", nargs="+", default=["cfd"], choices=get_args(MethodName))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("rest", nargs="*", help="further options of gscfd.train, after --")
    arguments = parser.parse_args()
    try:
        check_report(arguments.out, "out")
    except UserError as error:
        parser.error(str(error))
    for guidance in arguments.guidance:
        runs = planned(arguments.out / guidance, arguments.seed, ["--guidance", guidance, *arguments.rest])
        progress = make_runs(arguments.out / guidance, runs, Workers(workers=arguments.jobs))
        if progress.failed:
            print(f"{guidance}: {len(progress.failed)} runs failed; see {arguments.out / guidance}", file=sys.stderr)
            return 1
        report = arguments.out / guidance / "report"
        evaluate(EvaluateOptions(runs=tuple(run.folder for run in runs), report=report))
        write_contact_sheet(np.stack([thumbnail(run.folder) for run in runs]), report / "gallery.png", columns=10)
    print(f"R-precision of true objects among these prompts: {ceiling():.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
