"""How sure is a figure? Bootstrap intervals over runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
DRAWS = 1000

Statistic = Callable[[NDArray[np.int64]], float]
"""A figure of the runs with these indices, in which copies are allowed."""


@dataclass(frozen=True)
class Estimate:
    """A figure of `count` runs and its 95 % interval, NaN where there are too few runs to say."""

    value: float
    low: float
    high: float
    count: int


def bootstrap(statistic: Statistic, groups: Sequence[Hashable], *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The statistic of all runs and its percentile interval when runs are drawn anew.

    groups: one for each run, its prompt. Runs are drawn within their group, so that prompts are taken as given and seeds
    as a sample; where a group has one run, all are drawn from all. Small samples are too narrow, and statistics such as
    FID are biased when runs repeat: the quantiles are the expanded ones for a mean (Hesterberg 2015, section 4.2), and
    the interval is moved by the bootstrap's own bias.
    """
    everything = np.arange(len(groups))
    members = [everything[[g == group for g in groups]] for group in dict.fromkeys(groups)]
    if any(len(member) == 1 for member in members):
        members = [everything]
    value = statistic(everything)
    if len(groups) < 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, len(groups))
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(np.concatenate([rng.choice(m, len(m)) for m in members])) for _ in range(draws)])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, math.nan, math.nan, len(groups))
    each = len(groups) / len(members)
    wide = math.sqrt(each / (each - 1)) * stats.t.ppf((1 + LEVEL) / 2, len(groups) - len(members))
    tail = stats.norm.cdf(-wide)
    low, high = np.quantile(drawn, [tail, 1 - tail]) + (value - drawn.mean())
    return Estimate(value, float(low), float(high), len(groups))
