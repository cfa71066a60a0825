"""Make and score the runs behind docs/results.md: 20 prompts, one seed, default settings.

    python scripts/toybox_results.py [--guidance cfd sds] [--seed 0] [--jobs 2] OUT [-- options of gscfd.train]

Ten prompts are (kind, color) pairs that the teachers never saw together. Finished runs are kept.
OUT/GUIDANCE/report gets the report of gscfd.evaluate (extra `eval`) and a gallery with one view of each run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from gscfd.cameras import turntable
from gscfd.config import MethodName
from gscfd.errors import UserError
from gscfd.export.turntable import turntable_frames
from gscfd.gaussians import Gaussians
from gscfd.lab.evaluation import evaluate
from gscfd.lab.judges import SCORER, Scorer
from gscfd.lab.metrics import r_precision
from gscfd.lab.options import EvaluateOptions
from gscfd.lab.references import BACKGROUND
from gscfd.lab.report import check_report
from gscfd.pictures import write_contact_sheet
from gscfd.runs.names import FINISHED_FILE, default_folder
from gscfd.toybox.data import render_object
from gscfd.toybox.truth import KNOWN_PROMPTS, WITHHELD_PROMPTS, true_objects

PROMPTS = KNOWN_PROMPTS + WITHHELD_PROMPTS


def make_run(prompt: str, run: Path, options: list[str], threads: int) -> None:
    """One run of the command line, unless it is there already."""
    if (run / FINISHED_FILE).exists():
        return
    command = [sys.executable, "-m", "gscfd.train", "--prompt", prompt, "--out", str(run), "--overwrite", *options]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})


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
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    for guidance in arguments.guidance:
        folders = [default_folder(prompt, arguments.seed).name for prompt in PROMPTS]
        runs = [arguments.out / guidance / folder for folder in folders]
        options = ["--guidance", guidance, "--seed", str(arguments.seed), *arguments.rest]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            made = [
                pool.submit(make_run, prompt, run, options, threads) for prompt, run in zip(PROMPTS, runs, strict=True)
            ]
            for run_made in made:
                run_made.result()
        report = arguments.out / guidance / "report"
        evaluate(EvaluateOptions(runs=tuple(runs), report=report))
        splats = [
            turntable_frames(Gaussians.load_ply(run / "splat.ply"), 8, size=128, background=BACKGROUND)[-1]
            for run in runs
        ]
        write_contact_sheet(np.stack(splats), report / "gallery.png", columns=10)
    print(f"R-precision of true objects among these prompts: {ceiling():.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
