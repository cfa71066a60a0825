"""Metrics by name: title, direction, format, meaning and range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Name = Literal[
    "fid",
    "is",
    "clip",
    "r_precision",
    "similarity",
    "aesthetic",
    "pickscore",
    "diversity",
    "janus",
    "view_error",
    "holes",
    "haze",
    "nearest",
    "nearest_true",
    "speckle",
    "variance_means",
    "variance_sh0",
    "variance_means_paper",
    "variance_sh0_paper",
    "gaussians",
    "seconds",
    "memory",
]


@dataclass(frozen=True)
class Metric:
    """Presentation of a metric in the report."""

    title: str
    better: Literal["higher", "lower", ""]
    form: str
    """Format of a value."""
    meaning: str
    needs: str = "runs that recorded it; make the runs again"
    """Requirement, shown if no run has the metric."""
    bounds: tuple[float, float] = (0.0, math.inf)
    """Smallest and largest value."""


CLIP_NEEDED = "--clip DIR, a CLIP model in transformers' layout, such as the folder of openai/clip-vit-base-patch32"
TRUTH_NEEDED = "prompts of which there are true objects: one kind, in the toybox's words"
METRICS: dict[str, Metric] = {
    "fid": Metric(
        "3D-FID",
        "lower",
        ".3f",
        "Fréchet distance between 60 views of every splat and the reference pictures of the same prompts (CFD App. B)",
        "--teacher NAME, whose samples are the reference, for prompts that have no true toybox objects; "
        f"and {CLIP_NEEDED}; add --inception FILE for the papers' features",
    ),
    "is": Metric(
        "3D-IS",
        "higher",
        ".3f",
        "inception score of the front views over the seeds of a prompt, 2 splits, mean over prompts (CFD App. B)",
        "at least 4 seeds of a prompt; for prompts outside the toybox also --clip DIR with --inception FILE, "
        "pt_inception-2015-12-05-6726825d.pth of the releases of toshas/torch-fidelity",
        bounds=(1.0, math.inf),
    ),
    "clip": Metric(
        "3D-CLIP",
        "higher",
        ".2f",
        "100 x the largest cosine similarity with the prompt over 120 views, mean over CLIP backbones (CFD App. B)",
        CLIP_NEEDED,
        bounds=(-100.0, 100.0),
    ),
    "r_precision": Metric(
        "R-precision",
        "higher",
        ".1%",
        "share of 120 views whose most similar prompt, among all, is the run's own (Consistent3D)",
        f"at least 2 prompts; and {CLIP_NEEDED}",
        bounds=(0.0, 1.0),
    ),
    "similarity": Metric(
        "similarity",
        "higher",
        ".3f",
        "mean cosine similarity of 120 views with the prompt",
        CLIP_NEEDED,
        bounds=(-1.0, 1.0),
    ),
    "aesthetic": Metric(
        "aesthetic score",
        "higher",
        ".2f",
        "LAION's aesthetic predictor, mean over 120 views",
        "--aesthetic FILE, sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor, and "
        "--clip with the folder of openai/clip-vit-large-patch14",
        bounds=(-math.inf, math.inf),
    ),
    "pickscore": Metric(
        "PickScore",
        "higher",
        ".2f",
        "PickScore of the prompt, mean over 120 views",
        "--pickscore DIR, the folder of yuvalkirstain/PickScore_v1 with the tokenizer of "
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        bounds=(-math.inf, math.inf),
    ),
    "diversity": Metric(
        "diversity",
        "higher",
        ".4f",
        "mean of 1 - cosine similarity over pairs of seeds from 12 equal sides, mean over prompts",
        f"at least 2 seeds of a prompt; and {CLIP_NEEDED}",
        bounds=(0.0, 2.0),
    ),
    "janus": Metric(
        "Janus score",
        "lower",
        ".1%",
        "share of the views from behind (105 degrees and more) whose most similar reference picture shows the "
        "front (up to 75 degrees)",
        "--teacher NAME, whose samples are the reference, for prompts that have no true toybox objects; and "
        + CLIP_NEEDED,
        bounds=(0.0, 1.0),
    ),
    "view_error": Metric(
        "reprojection error",
        "lower",
        ".4f",
        "mean color difference in [0, 1] between a view and its neighbor 15 degrees away, reprojected by "
        "the rendered depth",
        bounds=(0.0, 1.0),
    ),
    "holes": Metric(
        "holes",
        "lower",
        ".2%",
        "share of the object's pixels in narrow places that can be seen through (FSD)",
        bounds=(0.0, 1.0),
    ),
    "haze": Metric(
        "haze",
        "lower",
        ".1%",
        "sum of o (1 - o) over sum of o, over the opacities o of all pixels: distance from a solid object",
        bounds=(0.0, 1.0),
    ),
    "nearest": Metric(
        "nearest true object, dB",
        "higher",
        ".2f",
        "PSNR of 8 views against the nearest of up to 100 true objects of the prompt",
        TRUTH_NEEDED,
        bounds=(-math.inf, math.inf),
    ),
    "nearest_true": Metric(
        "nearest of true objects, dB",
        "",
        ".2f",
        "what 8 fresh true objects of the prompt reach by it",
        TRUTH_NEEDED,
        bounds=(-math.inf, math.inf),
    ),
    "speckle": Metric(
        "speckle",
        "lower",
        ".2f",
        "median distance of the object's inner pixels from the mean of the 5 x 5 around them, in multiples of that of "
        "true objects",
        TRUTH_NEEDED,
    ),
    "variance_means": Metric(
        "gradient variance, positions",
        "lower",
        ".4f",
        "sqrt(sum(v - m^2) / sum(v)) of Adam's bias-corrected moments, mean over every tenth step (CFD Eq. 15)",
        bounds=(0.0, 1.0),
    ),
    "variance_sh0": Metric("gradient variance, colors", "lower", ".4f", "the same for the colors", bounds=(0.0, 1.0)),
    "variance_means_paper": Metric(
        "gradient variance in the paper's form, positions",
        "lower",
        ".3g",
        "sqrt(sum(v - m^2)) / sum(v) of the same moments, as the paper's values above 1 suggest; it depends on the "
        "gradient's scale",
    ),
    "variance_sh0_paper": Metric(
        "gradient variance in the paper's form, colors", "lower", ".3g", "the same for the colors"
    ),
    "gaussians": Metric("Gaussians", "", ".0f", "in the splat"),
    "seconds": Metric("time, s", "lower", ".1f", "of all steps"),
    "memory": Metric("peak memory, MiB", "lower", ".0f", "of the GPU, or of the process that made the run"),
}
NAMES: tuple[Name, ...] = get_args(Name)
