"""Comparison of sets of runs: statistics, intervals, differences and win rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from gscfd.lab.catalogue import METRICS
from gscfd.lab.examine import Examined, mean
from gscfd.lab.intervals import DRAWS, FEWEST, Estimate, Statistic, bootstrap, swap_test
from gscfd.lab.metrics import diversity, frechet_distance, inception_score, moments, win_rate
from gscfd.lab.references import Reference

SPLITS = 2
"""Number of splits of the inception score."""
FID_DRAWS = 200
"""Number of bootstrap draws if each requires solving an eigenvalue problem."""
SWAPS, FID_SWAPS = 4999, 999
"""Number of exchanges of a permutation test, and of one for FID."""
SETS = ("fid", "is", "diversity")
"""Metrics of a set of runs, which a single run does not have."""


# ------------------------------------------------------------------------------------------------------ sets of runs


def by_prompt(runs: list[Examined]) -> dict[str, list[int]]:
    """Returns the indices of the runs of each prompt."""
    places: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        places.setdefault(run.prompt, []).append(i)
    return places


def usable(name: str, runs: list[Examined], references: dict[str, Reference]) -> list[Examined]:
    """Returns the runs that have the data the metric needs."""
    if name == "fid":
        return [run for run in runs if run.pictures is not None and run.prompt in references]
    if name in ("is", "diversity"):
        kept = [run for run in runs if (run.front if name == "is" else run.sides) is not None]
        least = 2 * SPLITS if name == "is" else 2
        return [run for run in kept if len(by_prompt(kept)[run.prompt]) >= least]
    return [run for run in runs if not math.isnan(run.values.get(name, math.nan))]


def statistic(name: str, runs: list[Examined], references: dict[str, Reference]) -> Statistic:
    """Returns the metric as a function of the indices of the runs that count. runs: from `usable`."""
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
    """Returns the metric of the runs with its interval; None if no run has the required data."""
    runs = usable(name, runs, references)
    if not runs:
        return None
    return bootstrapped(name, statistic(name, runs, references), [run.prompt for run in runs], METRICS[name].bounds)


def bootstrapped(name: str, figure: Statistic, prompts: list[str], bounds: tuple[float, float]) -> Estimate:
    """Returns the figure with its interval over the runs. For the diversity over too few seeds to resample, the
    interval is over the prompts. Two seeds are enough for FID: its reference is of these prompts, so without any of
    them it would be another figure. bounds: range of the figure."""
    within = 2 if name == "fid" else FEWEST
    found = bootstrap(figure, prompts, bounds=bounds, within=within, draws=draws_of(name))
    if not math.isnan(found.low):
        return found
    if name == "diversity":
        each = [figure(np.flatnonzero(np.array(prompts) == prompt)) for prompt in dict.fromkeys(prompts)]
        over = bootstrap(lambda chosen: float(np.array(each)[chosen].mean()), range(len(each)), bounds=bounds)
        return replace(over, count=len(prompts))
    if name in SETS or len(prompts) >= FEWEST:
        return found
    return replace(found, runs=tuple(figure(np.array([i])) for i in range(len(prompts))))


def paired(
    name: str, first: list[Examined], second: list[Examined], references: dict[str, Reference]
) -> tuple[list[Examined], list[Examined]]:
    """Returns the runs of both sets that have the metric's data and a partner of equal prompt and seed, in the same
    order."""
    ones, others = ({pair(run): run for run in runs} for runs in (first, second))
    pairs: list[tuple[str, int]] = []
    while (
        not list(ones) == list(others) == pairs
    ):  # a prompt that loses pairs may then have too few runs for the metric
        pairs = [key for key in ones if key in others]
        ones, others = (
            {pair(run): run for run in usable(name, [runs[key] for key in pairs], references)}
            for runs in (ones, others)
        )
    return list(ones.values()), list(others.values())


def difference(
    name: str, first: list[Examined], second: list[Examined], references: dict[str, Reference]
) -> Estimate | None:
    """Returns the first set's metric minus the second's, with its interval over pairs of equal prompt and seed.

    None: there are no pairs.
    """
    ones, others = paired(name, first, second, references)
    if not ones:
        return None
    one, other = (statistic(name, runs, references) for runs in (ones, others))
    low, high = METRICS[name].bounds
    prompts = [run.prompt for run in ones]
    return bootstrapped(name, lambda chosen: one(chosen) - other(chosen), prompts, (low - high, high - low))


def difference_p(name: str, first: list[Examined], second: list[Examined], references: dict[str, Reference]) -> float:
    """Returns the p-value of the difference by `swap_test` over pairs of equal prompt and seed; NaN if there are fewer
    than 5."""
    ones, others = paired(name, first, second, references)
    if not ones:
        return math.nan
    figure, places = statistic(name, ones + others, references), np.arange(len(ones))

    def apart(swapped: np.ndarray) -> float:
        one = places + len(ones) * swapped
        return figure(one) - figure((one + len(ones)) % (2 * len(ones)))

    return swap_test(apart, len(ones), draws=FID_SWAPS if name == "fid" else SWAPS)


def pair(run: Examined) -> tuple[str, int]:
    return run.prompt, run.seed


def wins(name: str, ours: list[Examined], theirs: list[Examined]) -> Estimate | None:
    """Returns the share of pairs of equal prompt and seed in which ours scores higher (CFD Tab. 3); None if there are
    no pairs."""
    other = {pair(run): run.values.get(name) for run in theirs}
    scored = [(run, run.values.get(name), other.get(pair(run))) for run in ours]
    both = [(run, a, b) for run, a, b in scored if a is not None and b is not None]
    if not both:
        return None
    mine, yours = (torch.tensor([row[i] for row in both], dtype=torch.float64) for i in (1, 2))
    share: Callable[[np.ndarray], float] = lambda chosen: win_rate(mine[chosen], yours[chosen])  # noqa: E731
    found = bootstrap(share, [run.prompt for run, _, _ in both], bounds=(0, 1))
    # If all pairs are won or all are lost, the draws are identical and say nothing about the uncertainty.
    return found if found.low < found.high else replace(found, low=math.nan, high=math.nan)
