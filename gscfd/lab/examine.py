"""Scores of a finished run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gscfd.cameras import RADIUS, turntable
from gscfd.config import Config, flat, plain
from gscfd.errors import UserError
from gscfd.export.turntable import turntable_frames
from gscfd.files import json_rows
from gscfd.gaussians import Gaussians
from gscfd.lab.judges import Judges
from gscfd.lab.metrics import haze, hole_share, janus, r_precision, reprojection_error, speckle
from gscfd.lab.references import BACKGROUND, Reference
from gscfd.lab.truths import SIZE as TRUE_SIZE
from gscfd.lab.truths import VIEWS as TRUE_VIEWS
from gscfd.lab.truths import truths_of
from gscfd.runs.names import FREE_SETTINGS, read_run
from gscfd.types import Render

VIEWS = 120
FID_EVERY = 2
"""Step between the views used for FID: 60 of the 120 views."""
SIDES = 12
"""Number of views from which two objects are compared."""
SHEET_VIEWS = 6
DEPTH_VIEWS = 24
"""Number of views for depth metrics, 15 degrees apart."""


@dataclass(kw_only=True)
class Examined:
    """Data and scores of one run."""

    run: str
    prompt: str
    seed: int
    label: str = ""
    """Its setting among those compared."""
    values: dict[str, float]
    """Metrics of this run alone."""
    pictures: Tensor | None = None
    """[60, D] features for FID."""
    sides: Tensor | None = None
    """[12, D] unit-length features of views around the object, starting at the front."""
    front: Tensor | None = None
    """[classes] class probabilities of the front view."""
    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))
    """[6, H, W, 3] uint8 frames of the contact sheet."""


def examine(
    folder: Path,
    judges: Judges,
    prompts: list[str],
    *,
    size: int = 128,
    references: dict[str, Reference] | None = None,
    truths: bool = False,
) -> Examined:
    """Scores a finished run from views on all sides, as the papers do (CFD App. B).

    prompts: candidates of the prompt retrieval; a run with another is not judged. size: width and height of the views
    in pixels. references: by prompt. truths: whether to compare with true objects, which takes seconds per prompt.
    Raises UserError if the run is not finished.
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
    if judges.scorers and config.prompt in prompts:
        judge_pictures(found, images, judges, prompts, (references or {}).get(config.prompt))
    if truths:
        found.values |= truth_values(gaussians, config.prompt, min(size, TRUE_SIZE))
    if judges.aesthetic:
        found.values["aesthetic"] = judges.aesthetic.scores(images).mean().item()
    if judges.pickscore:
        fit = judges.pickscore.similarity(images, [config.prompt])
        found.values["pickscore"] = (judges.pickscore.scale * fit).mean().item()
    return found


def judge_pictures(
    found: Examined, images: Tensor, judges: Judges, prompts: list[str], reference: Reference | None
) -> None:
    """Adds the scores from CLIP, Inception and the reference for the 120 views [120, 3, H, W]."""
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


def truth_values(gaussians: Gaussians, prompt: str, size: int) -> dict[str, float]:
    """What true objects of the prompt say in views of `size` pixels, if there are any."""
    truths = truths_of(prompt, size)
    if truths is None:
        return {}
    render = gaussians.render(turntable(TRUE_VIEWS, size=size)).to("cpu")
    views = render.over(torch.tensor(BACKGROUND)).clamp(0, 1).permute(0, 3, 1, 2)
    ratio = speckle(views, background=BACKGROUND) / truths.speckle
    return {"nearest": truths.nearest(views), "nearest_true": truths.ceiling, "speckle": ratio}


def shape_values(gaussians: Gaussians, size: int) -> dict[str, float]:
    """Returns the metrics computed from depth and opacity."""
    cameras = turntable(DEPTH_VIEWS, size=size)
    chunks = [gaussians.render(cameras[i : i + 8]) for i in range(0, DEPTH_VIEWS, 8)]
    rgb, depth, opacity = (torch.cat([getattr(c, name) for c in chunks]) for name in ("rgb", "depth", "opacity"))
    render = Render(rgb, depth, opacity)
    error = reprojection_error(render, cameras, background=BACKGROUND)
    return {"view_error": error, "holes": hole_share(render), "haze": haze(opacity)}


def recorded(folder: Path) -> dict[str, float]:
    """Returns the metrics recorded in stats.jsonl. Raises UserError for rows that no run writes."""
    path = folder / "stats.jsonl"
    rows = [row for row in json_rows(path) if "trouble" not in row]
    if not rows:
        return {}
    try:
        return recorded_in(rows)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"runs: expected the rows of a run in {path}, got damaged ones ({error!r:.80})") from None


def recorded_in(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the metrics recorded in these rows, of which there is at least one."""
    values: dict[str, float] = {"seconds": sum(sum(row["seconds"].values()) for row in rows)}
    if "memory" in rows[0]:
        values["memory"] = max(row["memory"] for row in rows) / 2**20
    variances = [row["gradient_variance"] for row in rows if "gradient_variance" in row]
    for key in ("means", "sh0", "means_paper", "sh0_paper"):
        known = [variance[key] for variance in variances if key in variance]
        if known:
            values[f"variance_{key}"] = mean(known)
    return values


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def labels_of(configs: list[Config]) -> list[str]:
    """Returns a label for each run: its guidance, and the settings besides prompt and seed that differ between the
    runs, by the last part of their name where that is unique."""
    settings = [chosen_settings(config) for config in configs]
    differing = [k for k in dict.fromkeys(k for s in settings for k in s) if len({str(s.get(k)) for s in settings}) > 1]
    told = [k for k in differing if k != "guidance"]
    last = Counter(k.split(".")[-1] for k in told)
    words = {k: (k.split(".")[-1] if last[k.split(".")[-1]] == 1 else k).replace(".", " ") for k in told}
    shown = {k: shown_values([s.get(k) for s in settings]) for k in told}
    return [
        ", ".join([config.guidance, *(f"{words[k]} {shown[k][str(s[k])]}" for k in told if s.get(k) is not None)])
        for config, s in zip(configs, settings, strict=True)
    ]


def shown_values(values: list[object]) -> dict[str, str]:
    """Returns the values as a label shows them: numbers with four digits, unless two would look alike."""
    exact = {str(value): value for value in values}
    short = {name: f"{value:.4g}" if isinstance(value, float) else name for name, value in exact.items()}
    return short if len(set(short.values())) == len(short) else {name: name for name in exact}


def chosen_settings(config: Config) -> dict[str, object]:
    """Returns all settings that affect the result, flat; noise.kind is None for the guidance's default kind, and edits
    are their number or None."""
    ignored = FREE_SETTINGS | {"prompt", "seed", "preset"}
    settings = {k: v for k, v in flat(plain(config)).items() if k.split(".")[0] not in ignored}
    default = Config(guidance=config.guidance)
    same = all(config.noise_kind_for(views) == default.noise_kind_for(views) for views in (False, True))
    return settings | {"noise.kind": None if same else config.noise.kind, "edits": len(config.edits) or None}
