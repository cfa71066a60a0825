"""Mode coverage: which of the ideal teacher's assets a seed ends at, and whether that is in their proportions.

The clean flow of data with several modes ends at each in proportion to its probability. A method whose noise is fresh
at every step follows the mean over the noise instead, and ends at the same mode whatever the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.config import Config, merged
from gscfd.distil.pipeline import distil
from gscfd.distil.sampling import falling_times
from gscfd.lab.assets import Asset, find_assets
from gscfd.lab.flat import FLAT, Flat
from gscfd.lab.ideal import Cosines
from gscfd.lab.metrics import psnr
from gscfd.lab.options import PipelineOptions
from gscfd.lab.references import BACKGROUND
from gscfd.lab.trials import images_of, keep, kept, seen, settings_of, teachers_of
from gscfd.runs.names import slug
from gscfd.teachers.schedules import Flow
from gscfd.teachers.spaces import Space

DRAWS = 20_000
"""Simulated experiments behind a p-value."""
COVERAGE: dict[str, dict[str, Any]] = {
    "cfd, gamma 0": {"noise": {"gamma": 0.0, "beta": 1.0}},
    "cfd, as the default": {},
    "sds": {"guidance": "sds"},
}
"""Methods whose modes are counted, as changes of `coverage_config`."""
SHARES = {"equal": (1.0,) * 8, "unequal": (4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0)}
"""Proportions of the known assets."""
COVERAGE_SIZE, COVERAGE_SPACING, COVERAGE_STEPS = 32, 0.1, 60
SCHEDULE = Flow(1000)
"""Leaves so little of the image at t = .98 (alpha = .02) that the flow can start from noise alone. Stable Diffusion's
schedule has alpha = .08 there, and its flow from noise alone prefers the modes nearest to 0."""

# ----------------------------------------------------------------------------------------------------------- statistics


def pearson(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Returns Pearson's chi-square of counts [..., K]."""
    statistic: np.ndarray = ((counts - expected) ** 2 / expected).sum(-1)
    return statistic


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Returns Pearson's chi-square of the counts [K] against the shares [K], which are positive, up to a factor."""
    seen, wanted = np.array(counts, float), np.array(shares, float)
    return float(pearson(seen, seen.sum() * wanted / wanted.sum()))


def coverage_p(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Returns the probability that draws in proportion to the shares give a chi-square at least that of the counts.

    It is simulated, because the chi-square distribution is wrong for modes with few expected draws; it is at least
    1 / (DRAWS + 1). counts, shares: as for `chi_square`.
    """
    seen, wanted = np.array(counts), np.array(shares, float)
    expected = seen.sum() * wanted / wanted.sum()
    drawn = np.random.default_rng(0).multinomial(seen.sum(), wanted / wanted.sum(), DRAWS)
    as_far = (pearson(drawn, expected) >= pearson(seen, expected) - 1e-9).sum()
    return float((1 + as_far) / (1 + DRAWS))


def picked(views: Tensor, known: Tensor) -> tuple[int, float, float]:
    """Returns the known asset that the views are nearest to, its PSNR, and that of the second nearest; NaN if there is
    only one.

    views: [V, 3, H, W] in [0, 1]. known: [K, V, 3, H, W] in [0, 1].
    """
    scores = torch.tensor([psnr(views, asset) for asset in known])
    best = int(scores.argmax())
    others = torch.cat([scores[:best], scores[best + 1 :]])
    return best, scores[best].item(), others.max().item() if len(others) else float("nan")


# ---------------------------------------------------------------------------------------------------------------- picks


def coverage_config(changes: dict[str, Any], prompt: str, seed: int) -> Config:
    """Returns the small setting in which modes are counted: the coarse stage alone, few steps and Gaussians."""
    small = {"init": {"count": 400}, "coarse": {"steps": COVERAGE_STEPS, "densify": {"max_count": 400}}}
    base = merged(Config(prompt=prompt, seed=seed), {**small, "polish": {"steps": 0}, "refine": {"steps": 0}})
    return merged(base, changes)


def coverage_space() -> Space:
    """Returns the linear space in which modes are counted: 3 x 16 x 16."""
    return Cosines(COVERAGE_SIZE, patch=2, channels=3)


def picks_of_splats(
    assets: Sequence[Asset], changes: dict[str, Any], shares: Sequence[float], seed: int
) -> tuple[int, float, float]:
    """Returns the asset that a seed's splat is nearest to, and the PSNRs of `picked`."""
    config = coverage_config(changes, assets[0].name, seed)
    gaussians = distil(
        config, teachers_of(config, assets, {"coarse": coverage_space()}, SCHEDULE, shares), lambda report: None
    )
    known = torch.stack([images_of(seen(asset.gaussians, size=COVERAGE_SIZE)) for asset in assets])
    return picked(images_of(seen(gaussians, size=COVERAGE_SIZE)), known)


def picks_of_flat(assets: Sequence[Asset], flat: Flat, shares: Sequence[float], seed: int) -> tuple[int, float, float]:
    """The same for four views that a method of `gscfd.lab.flat` makes, without a splat and noise between the views."""
    config = coverage_config({}, assets[0].name, seed)
    teacher = teachers_of(config, assets, {"coarse": coverage_space()}, SCHEDULE, shares)["coarse"]
    cameras, gray = turntable(4, size=COVERAGE_SIZE), torch.full((4, 3, COVERAGE_SIZE, COVERAGE_SIZE), BACKGROUND)
    teacher.encode(gray)
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, 4, *teacher.latent_shape, generator=generator)
    times = falling_times(COVERAGE_STEPS, teacher.timesteps)
    z = flat(teacher, draw(), lambda step: draw(), times, cameras)
    over = [asset.gaussians.render(cameras).over(torch.tensor(BACKGROUND)).clamp(0, 1) for asset in assets]
    known = torch.stack([teacher.decode(teacher.encode(images.permute(0, 3, 1, 2))) for images in over])
    return picked(teacher.decode(z), known)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Modes that the seeds of one method picked."""

    method: str
    proportions: str
    """Name in SHARES."""
    counts: list[int]
    psnr: float
    """Mean over the seeds, of the asset picked, dB."""
    lead: float
    """Mean over the seeds of its PSNR minus that of the second, dB."""

    @property
    def shares(self) -> tuple[float, ...]:
        return SHARES[self.proportions][: len(self.counts)]

    @property
    def p(self) -> float:
        """See `coverage_p`."""
        return coverage_p(self.counts, self.shares)


def covered(method: str, proportions: str, options: PipelineOptions) -> Coverage:
    """Counts the modes over the seeds. Seeds of an earlier call are kept."""
    changes = COVERAGE.get(method, {})
    shares = SHARES[proportions][: options.modes]
    path = options.out / "coverage" / f"{slug(method)}-{proportions}.json"
    assets = find_assets(options.caption, options.modes, spacing=COVERAGE_SPACING)
    settings = settings_of(coverage_config(changes, options.caption, 0), assets, shares=shares, size=COVERAGE_SIZE)
    picks: list[tuple[int, float, float]] = [(int(k), a, b) for k, a, b in kept(path, settings) or ()]
    for seed in range(len(picks), options.seeds):
        if method in FLAT:
            picks.append(picks_of_flat(assets, FLAT[method], shares, seed))
        else:
            picks.append(picks_of_splats(assets, changes, shares, seed))
        keep(path, settings, picks)
    picks = picks[: options.seeds]
    return Coverage(
        method=method,
        proportions=proportions,
        counts=np.bincount([k for k, _, _ in picks], minlength=options.modes).tolist(),
        psnr=fmean(best for _, best, _ in picks),
        lead=fmean(best - second for _, best, second in picks),
    )
