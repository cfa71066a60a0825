"""Bootstrap confidence intervals over runs."""

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
"""A figure of the runs with these indices, which may repeat."""


@dataclass(frozen=True)
class Estimate:
    """A figure of `count` runs and its 95 % interval, NaN if there are too few runs for one."""

    value: float
    low: float
    high: float
    count: int


def bootstrap(statistic: Statistic, groups: Sequence[Hashable], *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Returns the statistic of all runs, plus or minus t times its bootstrap standard error; for a mean this is the t
    interval (Hesterberg 2015, section 5).

    groups: the prompt of each run. Runs are resampled within their group, so that prompts are fixed and seeds are a
    sample; if any group has one run only, all runs are resampled together. No interval is given if more than a quarter
    of the draws are not finite.
    """
    everything = np.arange(len(groups))
    members = [everything[[g == group for g in groups]] for group in dict.fromkeys(groups)]
    if any(len(member) == 1 for member in members):
        members = [everything]
    value = statistic(everything)
    unsure = Estimate(value, math.nan, math.nan, len(groups))
    if len(groups) < 2 or math.isnan(value):
        return unsure
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(np.concatenate([rng.choice(m, len(m)) for m in members])) for _ in range(draws)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 0.75 * draws:
        return unsure
    each = len(groups) / len(members)
    half = stats.t.ppf((1 + LEVEL) / 2, len(groups) - len(members)) * drawn.std() * math.sqrt(each / (each - 1))
    return Estimate(value, float(value - half), float(value + half), len(groups))
