"""The noise field: settings shared by all kinds of noise."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

BACKGROUNDS = ("screen", "fresh", "direction")
DEPTHS = ("expected", "median")


class NoiseField:
    """Settings of a run's noise, and its clock.

    Injection of fresh noise (the clean flow SDE, CFD Eq. 10-11): step i multiplies every value by sqrt(1 - gamma_i) and
    adds sqrt(gamma_i) of fresh noise, so that steps s < t correlate by prod sqrt(1 - gamma_i) over s < i <= t. gamma =
    0 keeps the noise bitwise constant; gamma = 1 renews it each step.
    """

    def __init__(
        self,
        seed: int,
        channels: int,
        height: int,
        width: int,
        *,
        gamma: float | Sequence[float] = 1e-4,
        beta: float = 1.0,
        background: str = "screen",
        depth: str = "expected",
        footprint: float | None = None,
        span: int = 4096,
        opacity_threshold: float = 0.5,
        normal_radius: int = 1,
        smoothing: int = 2,
        theta: float = 180.0,
    ) -> None:
        """A field of latents with `channels` x `height` x `width`.

        seed: in [0, 2^64). gamma: in [0, 1], one value or one per step 1, 2, ... (the last one continues). beta: in [0,
        1], share of the variance that is consistent; the rest is fresh each step (FSD). background: noise where there
        is no surface: "screen" (one image fixed to the screen, aging with gamma), "direction" (fixed to the viewing
        direction, aging with gamma), or "fresh" (new in every view and step). depth: depth of the render used as the
        surface, "expected" or "median". On rendered Gaussians, views agree better with the expected depth
        (docs/noise.md): the median is the depth of a splat's center, constant per splat. footprint: size of a latent
        pixel on the object, world units; 2 / height by default, so that the unit ball fills the latents. Cells have
        pitch footprint / 4 and depth 8 footprint. span: expected number of steps; it belongs to the seed (another span
        gives other noise) and sets the cost: about 2 + log2(span) draws per cell, and one more for every further span.
        opacity_threshold: in [0, 1); samples at or below it show no surface. normal_radius: number of render samples on
        each side that contribute to a normal. smoothing: rounds of depth smoothing before the normals are computed;
        planes are unchanged. theta: in (0, 360], degrees of camera azimuth over which `world_map` moves by one latent
        width (FSD's Theta).

        Raises ValueError for a value out of range.
        """
        _check(0 <= seed < 2**64, "seed", "an integer in [0, 2^64)", seed)
        _check(min(channels, height, width) >= 1, "channels, height, width", "at least 1", (channels, height, width))
        gammas = tuple(gamma) if isinstance(gamma, Sequence) else (float(gamma),)
        _check(len(gammas) > 0 and all(0 <= g <= 1 for g in gammas), "gamma", "numbers in [0, 1]", gamma)
        _check(0 <= beta <= 1, "beta", "a number in [0, 1]", beta)
        _check(background in BACKGROUNDS, "background", f"one of {BACKGROUNDS}", background)
        _check(depth in DEPTHS, "depth", f"one of {DEPTHS}", depth)
        _check(footprint is None or footprint > 0, "footprint", "a positive length, or None for 2 / height", footprint)
        _check(span >= 1, "span", "at least 1 step", span)
        _check(0 <= opacity_threshold < 1, "opacity_threshold", "a number in [0, 1)", opacity_threshold)
        _check(normal_radius >= 1, "normal_radius", "at least 1 sample", normal_radius)
        _check(smoothing >= 0, "smoothing", "at least 0 rounds", smoothing)
        _check(0 < theta <= 360, "theta", "degrees in (0, 360]", theta)
        self.seed, self.channels, self.height, self.width = seed, channels, height, width
        self.gammas, self.beta, self.background, self.span = gammas, beta, background, span
        self.depth, self.theta = depth, theta
        self.footprint = 2 / height if footprint is None else footprint
        self.opacity_threshold, self.normal_radius, self.smoothing = opacity_threshold, normal_radius, smoothing
        rates = [-0.5 * math.log(max(1 - g, 1e-300)) for g in gammas]
        self._last_rate, self._clock = rates[-1], list(accumulate(rates, initial=0.0))

    def state_dict(self) -> dict[str, Any]:
        """Returns everything the noise depends on, as plain numbers and strings."""
        return {
            "seed": self.seed,
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "gamma": list(self.gammas),
            "beta": self.beta,
            "background": self.background,
            "depth": self.depth,
            "footprint": self.footprint,
            "span": self.span,
            "opacity_threshold": self.opacity_threshold,
            "normal_radius": self.normal_radius,
            "smoothing": self.smoothing,
            "theta": self.theta,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the field described by state_dict(). Raises ValueError if the shape of the latents differs."""
        saved = tuple(state[name] for name in ("channels", "height", "width"))
        shape = (self.channels, self.height, self.width)
        _check(saved == shape, "state", f"noise of channels, height, width {shape}, as this run's teacher has", saved)
        vars(self).update(vars(NoiseField(**state)))

    def clock(self, step: int) -> float:
        """Returns Lambda(step) = -1/2 sum of log(1 - gamma_i), i <= step: s < t correlate by exp(Lambda(s) -
        Lambda(t))."""
        known = min(step, len(self._clock) - 1)
        return self._clock[known] + (step - known) * self._last_rate

    def nodes(self, step: int) -> list[tuple[int, float]]:
        """Returns a value at `step` as a weighted sum of independent draws, [(draw, weight)]; the squared weights sum
        to 1.

        Samples an Ornstein-Uhlenbeck path in the time Lambda, exactly in law: the ends of the spans one after another,
        then the span is halved by the bridge
        W_m = [r1 (1 - r2^2) W_a + r2 (1 - r1^2) W_b] / q + sqrt((1 - r1^2) (1 - r2^2) / q) Z_m,
        r1 = exp(Lambda_a - Lambda_m), r2 = exp(Lambda_m - Lambda_b), q = 1 - r1^2 r2^2.
        """
        # Steps without injection count as the same time.
        step = bisect.bisect_left(range(step + 1), self.clock(step), key=self.clock)
        a, value_a = 0, {0: 1.0}
        b, value_b = a, value_a
        while b < step:
            a, value_a = b, value_b
            b = a + self.span
            lost = -math.expm1(2 * (self.clock(a) - self.clock(b)))
            value_b = _combine(math.sqrt(1 - lost), value_a, 0.0, value_a, b, math.sqrt(lost))
        while b > step:
            m = (a + b) // 2
            to_m, to_b = self.clock(m) - self.clock(a), self.clock(b) - self.clock(m)
            lost_a, lost_b, lost = -math.expm1(-2 * to_m), -math.expm1(-2 * to_b), -math.expm1(-2 * (to_m + to_b))
            value_m = _combine(
                math.exp(-to_m) * lost_b / lost,
                value_a,
                math.exp(-to_b) * lost_a / lost,
                value_b,
                m,
                math.sqrt(lost_a * lost_b / lost),
            )
            if step < m:
                b, value_b = m, value_m
            else:
                a, value_a = m, value_m
                if step == m:
                    b, value_b = m, value_m
        return sorted(value_b.items())


def _combine(
    weight_a: float, a: dict[int, float], weight_b: float, b: dict[int, float], node: int, weight: float
) -> dict[int, float]:
    """Returns weight_a a + weight_b b + weight Z(node), as weights of draws."""
    total = {n: weight_a * a.get(n, 0.0) + weight_b * b.get(n, 0.0) for n in a | b}
    return total | {node: weight}


def _check(valid: bool, name: str, expected: str, got: object) -> None:
    if not valid:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
