"""Options of the evaluation commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from gscfd.config import NoiseKind, check
from gscfd.lab.catalogue import NAMES, Name
from gscfd.sweeps.options import Workers


@dataclass(kw_only=True)
class BenchOptions(Workers):
    """Test the papers' claims on the toybox and report which orderings are reproduced."""

    out: Path
    """Folder for the runs, the pictures and report.html, report.md, report.json and runs.csv. The same command
    resumes."""
    size: Literal["smoke", "full"] = "smoke"
    """smoke: a test that everything works, in minutes, too small for most verdicts. full: hours on a CPU."""
    seeds: int | None = None
    """Seeds of the splats; repeat the command with a larger number to add seeds. Unset: the default of the size."""
    first_seed: int = 0
    """The smallest of the seeds. Fresh seeds test anew what earlier ones left undecided."""
    variants: tuple[str, ...] = ()
    """Names of the variants, as in the tables, and with them the claims among them. Unset: all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.seeds is None or self.seeds >= 1, "seeds", "at least 1", self.seeds)
        check(self.first_seed >= 0, "first_seed", "at least 0", self.first_seed)


@dataclass(kw_only=True)
class PipelineOptions:
    """Measure the pipeline without a teacher's errors, with an ideal teacher that knows its assets exactly."""

    out: Path
    """Folder for the splats and report.html, report.md and report.json. The same command resumes."""
    assets: tuple[str, ...] = ("a yellow duck", "a red teapot")
    """What to make: captions of single toybox objects, or .ply files."""
    variants: tuple[str, ...] = ()
    """Names of the variants, as in the table. Unset: all of them."""
    known: int = 1
    """Objects of each caption that the teacher knows. 1 measures convergence; with more, methods differ."""
    seed: int = 0
    """Seed of the variants' runs."""


@dataclass(kw_only=True)
class CoverageOptions:
    """Count which of the objects that an ideal teacher knows the seeds of each method end at."""

    out: Path
    """Folder for runs.csv, report.html, report.md and report.json. The same command resumes."""
    seeds: int = 64
    """Seeds of each method; repeat the command with a larger number to add seeds."""
    methods: tuple[str, ...] = ()
    """Names of the methods, as in the table. Unset: all of them."""

    def __post_init__(self) -> None:
        check(self.seeds >= 1, "seeds", "at least 1", self.seeds)


@dataclass(kw_only=True)
class FullSizeOptions:
    """Measure presets for large teachers without weights, with ideal teachers of the published models' sizes."""

    out: Path
    """Folder for the runs and report.html, report.md and report.json. The same command resumes."""
    presets: tuple[str, ...] = ("mvdream-sd21", "fast", "paper")
    """What to measure: names of presets, or .yaml files."""
    assets: tuple[str, ...] = ("mug", "cage", "gate")
    """What to make: the textured mug, cage and gate, captions of single toybox objects, .ply files or meshes."""
    known: int = 1
    """Variants of each asset that the teacher knows, which differ in detail only: 1 to 4 for the textured ones."""
    spacing: float = 0.012
    """Distance between neighboring discs of a procedural asset, in world units."""
    count: int = 50_000
    """Gaussians of an asset that is a mesh."""
    seed: int = 0
    """Seed of the runs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the runs. auto: CUDA if torch finds a CUDA device."""
    vae: Path | None = None
    """Folder of a VAE in diffusers' layout, such as Stable Diffusion's. Unset: a fixed linear encoder."""
    degrade: bool = False
    """Start from the asset itself, blurred, speckled and decimated, instead of the ball: for --presets refine-splat."""
    timing: bool = False
    """Measure single steps of the first asset alone, and estimate the hours of each stage."""


Bench: TypeAlias = (
    Annotated[BenchOptions, tyro.conf.subcommand("papers")]
    | Annotated[PipelineOptions, tyro.conf.subcommand("pipeline")]
    | Annotated[CoverageOptions, tyro.conf.subcommand("coverage")]
    | Annotated[FullSizeOptions, tyro.conf.subcommand("full-size")]
)
"""The benches by name."""


@dataclass(kw_only=True)
class EvaluateOptions:
    """Score finished runs by the metrics of the papers."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished runs; prompts are retrieved among the prompts of all runs. Runs whose settings besides prompt
    and seed differ are compared."""
    report: Path | None = None
    """Folder for report.html, runs.csv, report.json, scores.md and sheet.png. Requires the extra `eval`."""
    metrics: tuple[Name, ...] = NAMES
    """Metrics to show."""
    teacher: str | None = None
    """Teacher whose samples are the reference of 3D-FID and the Janus score: a folder, OWNER/REPO of the hub, or
    toybox/multiview. Unset: true toybox objects, for toybox prompts."""
    samples: int = 120
    """Reference pictures per prompt (the papers: 5000)."""
    clip: tuple[Path, ...] = ()
    """Folders of CLIP models in transformers' layout. Unset: the toybox scorer, for toybox prompts."""
    inception: Path | None = None
    """Weights of FID's Inception network, pt_inception-2015-12-05-6726825d.pth. Unset: the first CLIP's features."""
    aesthetic: Path | None = None
    """Weights of LAION's aesthetic predictor, sac+logos+ava1-l14-linearMSE.pth; --clip must include its ViT-L/14."""
    pickscore: Path | None = None
    """Folder of PickScore_v1, including its tokenizer."""


@dataclass(kw_only=True)
class ShowNoiseOptions:
    """Paint the noise on a finished run's splat and rotate it: a still frame is white noise; in motion, the noise
    sticks to the object. Also writes a sheet of frames, and a map of how much of one view's noise another view
    predicts."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    out: Path | None = None
    """Output video; unset: noise.mp4 in the run folder, which is replaced. Images are written next to it: noise.png,
    noise-correlation.png."""
    frames: int = 96
    """Number of frames in one turn."""
    size: int = 256
    """Width and height of a frame in pixels; a noise pixel is 4 x 4 of them."""
    noise: NoiseKind | None = None
    """Kind of noise; unset: the run's own."""


@dataclass(kw_only=True)
class MeasureOptions:
    """Measure a toybox teacher; every figure goes to the screen and into a .json file."""

    teacher: Annotated[str, tyro.conf.Positional]
    """A teacher, as gscfd.train names it."""
    out: Path | None = None
    """A .json file for all figures; a .png of the samples is written beside it."""
    objects: int = 512
    """Over which the ideal denoiser averages."""
    draws: int = 8
    """Noisy views per caption and time."""
    captions: tuple[str, ...] = ("a red teapot", "a blue robot", "a white airplane", "a yellow duck")
    """Over which denoising is measured."""
    prompts: tuple[str, ...] | None = None
    """Prompts of the samples; R-precision is among them. Unset: the twenty of the results. Empty: no samples."""
    groups: int = 4
    """Samples of each prompt, of four views each."""
    nearest: int = 100
    """True objects of a prompt that each sample is compared with."""
    cfg: float | None = None
    """Guidance scale of the samples. Unset: 2 and 4 for the multi-view and the single-view teacher."""
    cfg_rescale: float = 0.5
    steps: int = 30
    """Of the sampler."""
    seed: int = 0
