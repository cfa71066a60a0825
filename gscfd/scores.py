"""From finished runs to figures: what one run scores, and what a set of them does, with its interval."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import yaml
from torch import Tensor

from gscfd.cameras import RADIUS, turntable
from gscfd.config import Config, flat, merged, plain
from gscfd.edits import last_settings
from gscfd.errors import UserError
from gscfd.export.ply import read_ply
from gscfd.export.turntable import turntable_frames
from gscfd.gaussians import Gaussians
from gscfd.intervals import DRAWS, Estimate, Statistic, bootstrap
from gscfd.judges import Judges
from gscfd.metrics import (
    diversity,
    frechet_distance,
    haze,
    hole_share,
    inception_score,
    janus,
    moments,
    r_precision,
    reprojection_error,
    win_rate,
)
from gscfd.references import BACKGROUND, Reference
from gscfd.runs import FREE, LAST
from gscfd.types import Render

VIEWS = 120
FID_EVERY = 2
"""Every how many of the 120 views go into FID: 60."""
SIDES = 12
"""Views that two objects are compared from."""
SHEET_VIEWS = 6
DEPTH_VIEWS = 24
"""Views for what needs depth, 15 degrees apart."""
SPLITS = 2
"""Of the inception score."""
FID_DRAWS = 200
"""Bootstrap draws where each costs an eigenvalue problem."""

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
    "variance_means",
    "variance_sh0",
    "gaussians",
    "seconds",
    "memory",
]


@dataclass(frozen=True)
class Metric:
    """What the report says of a figure."""

    title: str
    better: Literal["higher", "lower", ""]
    form: str
    """Format of a value."""
    meaning: str
    needs: str = "runs that recorded it: make them again"
    """Where no run has it: what it takes."""


CLIP_NEEDED = "--clip DIR, a CLIP model in transformers' layout, such as the folder of openai/clip-vit-base-patch32"
METRICS: dict[str, Metric] = {
    "fid": Metric(
        "3D-FID",
        "lower",
        ".3f",
        "Fréchet distance between 60 views of every splat and the reference pictures of the same prompts (CFD App. B)",
        "--teacher NAME, whose samples are the reference, for prompts of which there are no true toybox objects; "
        f"and {CLIP_NEEDED}; --inception FILE besides gives the papers' features",
    ),
    "is": Metric(
        "3D-IS",
        "higher",
        ".3f",
        "inception score of the front views over the seeds of a prompt, 2 splits, mean over prompts (CFD App. B)",
        "at least 4 seeds of a prompt; and for prompts that are not the toybox's --clip DIR with --inception FILE, "
        "pt_inception-2015-12-05-6726825d.pth of the releases of toshas/torch-fidelity",
    ),
    "clip": Metric(
        "3D-CLIP",
        "higher",
        ".2f",
        "100 x the largest cosine similarity with the prompt over 120 views, mean over CLIP backbones (CFD App. B)",
        CLIP_NEEDED,
    ),
    "r_precision": Metric(
        "R-precision",
        "higher",
        ".1%",
        "share of 120 views whose most similar prompt, among all, is the run's own (Consistent3D)",
        f"at least 2 prompts; and {CLIP_NEEDED}",
    ),
    "similarity": Metric(
        "similarity", "higher", ".3f", "mean cosine similarity of 120 views with the prompt", CLIP_NEEDED
    ),
    "aesthetic": Metric(
        "aesthetic score",
        "higher",
        ".2f",
        "LAION's aesthetic predictor, mean over 120 views",
        "--aesthetic FILE, sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor, and "
        "--clip with the folder of openai/clip-vit-large-patch14",
    ),
    "pickscore": Metric(
        "PickScore",
        "higher",
        ".2f",
        "PickScore of the prompt, mean over 120 views",
        "--pickscore DIR, the folder of yuvalkirstain/PickScore_v1 with the tokenizer of "
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ),
    "diversity": Metric(
        "diversity",
        "higher",
        ".4f",
        "mean of 1 - cosine similarity over pairs of seeds from 12 equal sides, mean over prompts",
        f"at least 2 seeds of a prompt; and {CLIP_NEEDED}",
    ),
    "janus": Metric(
        "Janus score",
        "lower",
        ".1%",
        "share of the views from behind (105 degrees and more) whose most similar reference picture is one of the "
        "front (up to 75 degrees)",
        "--teacher NAME, whose samples are the reference, for prompts of which there are no true toybox objects; and "
        + CLIP_NEEDED,
    ),
    "view_error": Metric(
        "reprojection error",
        "lower",
        ".4f",
        "mean difference of colour in [0, 1] between a view and its neighbour, 15 degrees on, by the rendered depth",
    ),
    "holes": Metric(
        "holes",
        "lower",
        ".2%",
        "share of the object's pixels in narrow places where one sees through the surface (FSD)",
    ),
    "haze": Metric(
        "haze",
        "lower",
        ".1%",
        "sum of o (1 - o) over sum of o, of the opacities o of all pixels: how far it is from solid",
    ),
    "variance_means": Metric(
        "gradient variance, positions",
        "lower",
        ".4f",
        "sqrt(sum(v - m^2) / sum(v)) of Adam's bias-corrected moments, mean over every tenth step (CFD Eq. 15)",
    ),
    "variance_sh0": Metric("gradient variance, colours", "lower", ".4f", "the same of the colours"),
    "gaussians": Metric("Gaussians", "", ".0f", "in the splat"),
    "seconds": Metric("time", "lower", ".1f", "seconds of all steps"),
    "memory": Metric("peak memory", "lower", ".0f", "MiB: of the GPU, or of the process that made the run"),
}
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(kw_only=True)
class Examined:
    """What is known of one run."""

    run: str
    prompt: str
    seed: int
    label: str = ""
    """Which of the compared settings it has."""
    values: dict[str, float]
    """The figures of this run alone."""
    pictures: Tensor | None = None
    """[60, D] features for FID."""
    sides: Tensor | None = None
    """[12, D] features of unit length, from the front round the object."""
    front: Tensor | None = None
    """[classes] probabilities of the front view."""
    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))
    """[6, H, W, 3] uint8, for the sheet."""


def read_run(folder: Path) -> tuple[Config, Gaussians]:
    """A finished run's settings, those of its end, and splat. Raises UserError naming what is missing."""
    for name in ("config.yaml", "splat.ply", LAST):
        if not (folder / name).is_file():
            raise UserError(f"runs: expected a finished run, but {folder} has no {name}")
    config = merged(Config(), yaml.safe_load((folder / "config.yaml").read_text()))
    return last_settings(config), read_ply(folder / "splat.ply")


def examine(
    folder: Path, judges: Judges, prompts: list[str], *, size: int = 128, references: dict[str, Reference] | None = None
) -> Examined:
    """Look at a finished run from all sides, as the papers do (CFD App. B).

    prompts: what its own is retrieved among. size: pixels of the views, both ways. references: by prompt. Raises
    UserError when the run is not finished.
    """
    config, gaussians = read_run(folder)
    views = turntable_frames(gaussians, VIEWS, size=size, background=BACKGROUND, radius=RADIUS)
    images = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255
    found = Examined(
        run=str(folder),
        prompt=config.prompt,
        seed=config.seed,
        values={"gaussians": len(gaussians), **recorded(folder), **shape_values(gaussians, size)},
        frames=turntable_frames(gaussians, SHEET_VIEWS, size=size, background=BACKGROUND),
    )
    if judges.scorers:
        judge_pictures(found, images, judges, prompts, (references or {}).get(config.prompt))
    if judges.aesthetic:
        found.values["aesthetic"] = judges.aesthetic.scores(images).mean().item()
    if judges.pickscore:
        fit = judges.pickscore.similarity(images, [config.prompt])
        found.values["pickscore"] = (judges.pickscore.scale * fit).mean().item()
    return found


def judge_pictures(
    found: Examined, images: Tensor, judges: Judges, prompts: list[str], reference: Reference | None
) -> None:
    """Fill in what CLIP, Inception and the reference say of the 120 views [120, 3, H, W]."""
    features = [scorer.image_features(images) for scorer in judges.scorers]
    fits = [seen @ scorer.text_features(prompts).T for seen, scorer in zip(features, judges.scorers, strict=True)]
    truth = prompts.index(found.prompt)
    found.values["clip"] = 100 * sum(fit[:, truth].max().item() for fit in fits) / len(fits)
    found.values["similarity"] = fits[0][:, truth].mean().item()
    if len(prompts) > 1:
        found.values["r_precision"] = r_precision(fits[0], truth)
    found.sides = features[0][:: VIEWS // SIDES]
    found.pictures = judges.inception.look(images[::FID_EVERY])[0] if judges.inception else features[0][::FID_EVERY]
    if judges.inception or judges.toybox:
        found.front = judges.classes(images[:1])[0]
    if reference is not None:
        azimuths = torch.arange(VIEWS) * (360.0 / VIEWS)
        found.values["janus"] = janus(features[0], azimuths, reference.features, reference.azimuths)


def shape_values(gaussians: Gaussians, size: int) -> dict[str, float]:
    """What the depth says."""
    cameras = turntable(DEPTH_VIEWS, size=size)
    chunks = [gaussians.render(cameras[i : i + 8]) for i in range(0, DEPTH_VIEWS, 8)]
    rgb, depth, opacity = (torch.cat([getattr(c, name) for c in chunks]) for name in ("rgb", "depth", "opacity"))
    render = Render(rgb, depth, opacity)
    error = reprojection_error(render, cameras, background=BACKGROUND)
    return {"view_error": error, "holes": hole_share(render), "haze": haze(opacity)}


def recorded(folder: Path) -> dict[str, float]:
    """What stats.jsonl says, as far as the run has recorded it."""
    path = folder / "stats.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    rows = [row for row in rows if "trouble" not in row]
    if not rows:
        return {}
    values: dict[str, float] = {"seconds": sum(sum(row["seconds"].values()) for row in rows)}
    if "memory" in rows[0]:
        values["memory"] = max(row["memory"] for row in rows) / 2**20
    variances = [row["gradient_variance"] for row in rows if "gradient_variance" in row]
    for name, key in (("variance_means", "means"), ("variance_sh0", "sh0")):
        known = [variance[key] for variance in variances if key in variance]
        if known:
            values[name] = mean(known)
    return values


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def labels_of(configs: list[Config]) -> list[str]:
    """A name for each run by what differs between them, besides prompt and seed; the guidance where nothing does."""
    settings = [chosen_settings(config) for config in configs]
    differing = [k for k in dict.fromkeys(k for s in settings for k in s) if len({str(s.get(k)) for s in settings}) > 1]
    told = [k for k in differing if k != "guidance"]
    return [
        ", ".join([config.guidance, *(f"{k}={s[k]}" for k in told if s.get(k) is not None)])
        for config, s in zip(configs, settings, strict=True)
    ]


def chosen_settings(config: Config) -> dict[str, object]:
    """All settings that make a difference, flat; the guidance's own kind of noise is None."""
    ignored = FREE | {"prompt", "seed", "preset"}
    settings = {k: v for k, v in flat(plain(config)).items() if k.split(".")[0] not in ignored}
    kind = None if config.noise_kind == Config(guidance=config.guidance).noise_kind else config.noise_kind
    return settings | {"noise.kind": kind}


# ------------------------------------------------------------------------------------------------------ sets of runs


def by_prompt(runs: list[Examined]) -> dict[str, list[int]]:
    """Positions of the runs of each prompt."""
    places: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        places.setdefault(run.prompt, []).append(i)
    return places


def usable(name: str, runs: list[Examined], references: dict[str, Reference]) -> list[Examined]:
    """The runs that have what the metric needs."""
    if name == "fid":
        return [run for run in runs if run.pictures is not None and run.prompt in references]
    if name in ("is", "diversity"):
        kept = [run for run in runs if (run.front if name == "is" else run.sides) is not None]
        least = 2 * SPLITS if name == "is" else 2
        return [run for run in kept if len(by_prompt(kept)[run.prompt]) >= least]
    return [run for run in runs if not math.isnan(run.values.get(name, math.nan))]


def statistic(name: str, runs: list[Examined], references: dict[str, Reference]) -> Statistic:
    """The metric as a function of which of these runs count, by their positions. runs: of `usable`."""
    if name == "fid":
        target = moments(torch.cat([references[prompt].pictures for prompt in by_prompt(runs)]))
        pictures = [run.pictures for run in runs if run.pictures is not None]
        return lambda chosen: frechet_distance(moments(torch.cat([pictures[i] for i in chosen])), target)
    groups = by_prompt(runs)
    if name == "is":
        fronts = torch.stack([run.front for run in runs if run.front is not None])
        return lambda chosen: mean(
            inception_score(fronts[mine], SPLITS)
            for places in groups.values()
            if len(mine := chosen[np.isin(chosen, places)]) >= SPLITS
        )
    if name == "diversity":
        sides = torch.stack([run.sides for run in runs if run.sides is not None])

        def spread(chosen: np.ndarray) -> float:
            counts = torch.from_numpy(np.bincount(chosen, minlength=len(runs)))
            return mean(diversity(sides[p], counts[p]) for p in groups.values() if counts[p].any())

        return spread
    values = np.array([run.values[name] for run in runs])
    return lambda chosen: float(values[chosen].mean())


def draws_of(name: str) -> int:
    return FID_DRAWS if name == "fid" else DRAWS


def estimate(name: str, runs: list[Examined], references: dict[str, Reference]) -> Estimate | None:
    """The metric of the runs with its interval; None where none of them has what it needs."""
    runs = usable(name, runs, references)
    if not runs:
        return None
    return bootstrapped(name, statistic(name, runs, references), [run.prompt for run in runs])


def bootstrapped(name: str, figure: Statistic, prompts: list[str]) -> Estimate:
    """The figure of runs of these prompts with its interval: over the runs, or over the prompts, of the spread between
    seeds where there are too few of them to draw from."""
    found = bootstrap(figure, prompts, draws=draws_of(name))
    if name != "diversity" or not math.isnan(found.low):
        return found
    each = [figure(np.flatnonzero(np.array(prompts) == prompt)) for prompt in dict.fromkeys(prompts)]
    over = bootstrap(lambda chosen: float(np.array(each)[chosen].mean()), range(len(each)))
    return replace(over, count=len(prompts))


def difference(
    name: str, first: list[Examined], second: list[Examined], references: dict[str, Reference]
) -> Estimate | None:
    """The first set's metric minus the second's, with its interval over pairs of equal prompt and seed.

    None: there are no pairs.
    """
    ones, others = ({pair(run): run for run in runs} for runs in (first, second))
    pairs: list[tuple[str, int]] = []
    while not list(ones) == list(others) == pairs:  # a prompt that loses pairs may have too few runs for the metric
        pairs = [key for key in ones if key in others]
        ones, others = (
            {pair(run): run for run in usable(name, [runs[key] for key in pairs], references)}
            for runs in (ones, others)
        )
    if not pairs:
        return None
    one, other = (statistic(name, list(runs.values()), references) for runs in (ones, others))
    return bootstrapped(name, lambda chosen: one(chosen) - other(chosen), [prompt for prompt, _ in pairs])


def pair(run: Examined) -> tuple[str, int]:
    return run.prompt, run.seed


def wins(name: str, ours: list[Examined], theirs: list[Examined]) -> Estimate | None:
    """Share of pairs of equal prompt and seed in which ours scores higher (CFD Tab. 3); None: no pairs."""
    other = {pair(run): run.values.get(name) for run in theirs}
    scored = [(run, run.values.get(name), other.get(pair(run))) for run in ours]
    both = [(run, a, b) for run, a, b in scored if a is not None and b is not None]
    if not both:
        return None
    mine, yours = (torch.tensor([row[i] for row in both], dtype=torch.float64) for i in (1, 2))
    share: Callable[[np.ndarray], float] = lambda chosen: win_rate(mine[chosen], yours[chosen])  # noqa: E731
    found = bootstrap(share, [run.prompt for run, _, _ in both])
    # All won, or all lost: the draws are all alike, which says nothing of how sure that is.
    return found if found.low < found.high else replace(found, low=math.nan, high=math.nan)
