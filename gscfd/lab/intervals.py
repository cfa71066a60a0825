"""Intervals, tests and power of figures of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
POWER = 0.8
"""Probability with which an experiment of sufficient size finds an effect."""
DRAWS = 1000
FEWEST = 5
"""Fewest runs that have an interval or a p-value, and fewest of each prompt for resampling within prompts."""
Statistic = Callable[[NDArray[np.int64]], float]
"""A figure of the runs with these indices, which may repeat."""


@dataclass(frozen=True)
class Estimate:
    """A figure of `count` runs and its 95 % interval, NaN if there are too few runs for one."""

    value: float
    low: float
    high: float
    count: int
    error: float = math.nan
    """Standard error, NaN without an interval."""
    runs: tuple[float, ...] = ()
    """The figure of each run, if they are too few for an interval and the figure exists for a single run."""

    @property
    def effect(self) -> float:
        """The value in standard deviations of a run, of its group if runs are resampled there: for a mean difference of
        pairs of one group, Cohen's d. NaN: no interval."""
        spread = self.error * math.sqrt(self.count)
        return self.value / spread if spread > 0 else math.nan


def bootstrap(
    statistic: Statistic,
    groups: Sequence[Hashable],
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    within: int = FEWEST,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Returns the statistic of all runs with its expanded percentile bootstrap interval (Hesterberg 2015, section 4.3):
    the percentiles are those at which the interval of a normal mean is the t interval. Draws are shifted so that their
    mean is the statistic, since resampling biases a Fréchet distance; the interval is clipped to `bounds`, the range of
    the figure.

    groups: the prompt of each run. Runs are resampled within their group, so that prompts are fixed and seeds are a
    sample; if any group has fewer than `within` runs, all runs are resampled together. There is no interval if there
    are fewer than 5 runs or if more than a quarter of the draws are not finite.
    """
    everything = np.arange(len(groups))
    members = [everything[[g == group for g in groups]] for group in dict.fromkeys(groups)]
    if any(len(member) < within for member in members):
        members = [everything]
    value = statistic(everything)
    unsure = Estimate(value, math.nan, math.nan, len(groups))
    if len(groups) < FEWEST or math.isnan(value):
        return unsure
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(np.concatenate([rng.choice(m, len(m)) for m in members])) for _ in range(draws)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 0.75 * draws:
        return unsure
    each = len(groups) / len(members)
    wider = math.sqrt(each / (each - 1))
    tail = stats.norm.cdf(wider * stats.t.ppf((1 - LEVEL) / 2, len(groups) - len(members)))
    low, high = np.clip(value + np.quantile(drawn - drawn.mean(), [tail, 1 - tail]), *bounds)
    return Estimate(value, float(low), float(high), len(groups), float(wider * drawn.std()))


def swap_test(difference: Callable[[NDArray[np.bool_]], float], pairs: int, *, draws: int, seed: int = 0) -> float:
    """Returns the two-sided p-value of a paired permutation test: the share of exchanges within pairs whose difference
    is at least as far from 0 as the one found. NaN for fewer than 5 pairs.

    difference: of two sets of runs, given which of the `pairs` are exchanged, [pairs]. All 2^pairs exchanges are tried
    if they are at most `draws`, otherwise that many at random, and p is at least 1 / (draws + 1).
    """
    if pairs < FEWEST:
        return math.nan
    found = abs(difference(np.zeros(pairs, bool)))
    every = 2**pairs <= draws
    if every:
        swaps = np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1 == 1
    else:
        swaps = np.random.default_rng(seed).random((draws, pairs)) < 0.5
    as_far = sum(abs(difference(swap)) >= found * (1 - 1e-9) for swap in swaps)
    return float(as_far / len(swaps) if every else (as_far + 1) / (draws + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values in [0, 1], adjusted for the number of them by Holm's method: each is true of the family with
    probability at least 1 - p that no true hypothesis is rejected."""
    order = np.argsort(p_values)
    steps = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(steps * np.asarray(p_values)[order]).clip(max=1)
    return [float(p) for p in adjusted]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Returns p-values in [0, 1], adjusted to bound the expected share of false discoveries instead."""
    return [float(p) for p in stats.false_discovery_control(p_values)]


def runs_needed(p: float, runs: int, tests: int) -> int | None:
    """Returns the number of runs of each variant with which the difference found is found again in 4 of 5 experiments
    at the level that Holm's method asks of the first of `tests`, by the normal approximation. None without a
    difference.

    p: two-sided p-value of the difference of `runs` runs of each. It knows the spread that the test sees: of all pairs,
    not within prompts alone.
    """
    deviations = float(stats.norm.isf(p / 2))
    if deviations < 1e-9:
        return None
    quantiles = float(stats.norm.isf((1 - LEVEL) / (2 * tests)) + stats.norm.ppf(POWER))
    return math.ceil(runs * (quantiles / deviations) ** 2)
