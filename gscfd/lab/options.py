"""Options of the laboratory's commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gscfd.config import NoiseKind, check
from gscfd.lab.catalogue import NAMES, Name
from gscfd.sweeps.options import Workers


@dataclass(kw_only=True)
class BenchOptions(Workers):
    """Measure the papers' claims on the toybox, and say which orderings are reproduced."""

    what: Annotated[Literal["papers"], tyro.conf.Positional]
    out: Path
    """Folder of the runs, pictures and report.html, report.md, report.json and runs.csv. The same command continues."""
    size: Literal["smoke", "full"] = "smoke"
    """smoke: whether it works, in minutes; too little for most verdicts. full: hours on a CPU."""
    seeds: int | None = None
    """Of the splats; the same command with more goes on. Unset: those of the size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.seeds is None or self.seeds >= 1, "seeds", "at least 1", self.seeds)


@dataclass(kw_only=True)
class EvaluateOptions:
    """Score finished runs by the metrics of the papers."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished runs; every prompt is retrieved among the prompts of all of them. Runs that differ in other
    settings than prompt and seed are compared."""
    report: Path | None = None
    """Folder for report.html, runs.csv, report.json, scores.md and sheet.png. Needs the extra `eval`."""
    metrics: tuple[Name, ...] = NAMES
    """Which figures to show."""
    teacher: str | None = None
    """Whose samples 3D-FID and the Janus score compare with: a folder, OWNER/REPO of the hub, or toybox/multiview.
    Unset: true objects of the toybox, for its prompts."""
    samples: int = 120
    """Pictures of each prompt to compare with (the papers: 5000)."""
    clip: tuple[Path, ...] = ()
    """Folders of CLIP models in transformers' layout. Unset: the toybox scorer, for the toybox's prompts."""
    inception: Path | None = None
    """Weights of FID's Inception network, pt_inception-2015-12-05-6726825d.pth. Unset: the first CLIP's features."""
    aesthetic: Path | None = None
    """Weights of LAION's aesthetic predictor, sac+logos+ava1-l14-linearMSE.pth; --clip must hold its ViT-L/14."""
    pickscore: Path | None = None
    """Folder of PickScore_v1 with its tokenizer."""


@dataclass(kw_only=True)
class ShowNoiseOptions:
    """Paint the noise on a finished run's splat and turn it: a still frame is white noise; moving, it sticks to the
    object. Beside the video: a sheet of frames, and a map of how much of one view's noise another view predicts."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    out: Path | None = None
    """The video; unset: noise.mp4 in the run's folder. Pictures stand beside it: noise.png, noise-correlation.png."""
    frames: int = 96
    """Frames of one turn."""
    size: int = 256
    """Pixels on each side of a frame; a noise pixel is 4 x 4 of them."""
    noise: NoiseKind | None = None
    """Another noise than the run's own."""
