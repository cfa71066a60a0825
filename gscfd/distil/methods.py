"""The methods by name: each chooses the diffusion time of a step and a function of `guidance`."""

from __future__ import annotations

from functools import partial

import torch

from gscfd.config import CDS_LAST, MethodName, StageConfig
from gscfd.distil import guidance
from gscfd.distil.protocols import Guidance, Learner, Method
from gscfd.distil.schedule import anneal, piecewise, sqrt_anneal, time_index, uniform

DSD_GAP = 0.1
"""Largest distance of DSD's two times, as a share of t - t_min (its code)."""
LEARNING: frozenset[MethodName] = frozenset({"vsd"})
"""Methods that train a network beside the Gaussians."""


def method(name: MethodName, stage: StageConfig, timesteps: int, learner: Learner | None = None) -> Method:
    """Returns the method with the stage's settings (docs/methods.md has a table of all methods).

    timesteps: number of the teacher's times. learner: required by vsd; other methods have none.
    """
    if name == "cds":
        return partial(consistency, stage, timesteps)
    if name == "dsd":
        return partial(diverse, stage, timesteps)
    if name in LEARNING and learner is None:
        raise ValueError(f"{name}: expected a learner, got none")

    def of_step(done: float, generator: torch.Generator) -> tuple[float, Guidance]:
        way = guidance_of(name, stage, timesteps, learner, done)
        return draw_time(stage, done, generator), guidance.weighted(way, stage.weight)

    return of_step


def guidance_of(name: MethodName, stage: StageConfig, timesteps: int, learner: Learner | None, done: float) -> Guidance:
    """Returns the guidance of every method but cds and dsd, with the weight sigma / alpha. done: share of the stage's
    steps done, in [0, 1)."""
    if learner is not None:
        return partial(guidance.vsd, learner=learner)
    inversion = stage.inversion
    delta_t = inversion.delta_t * piecewise(done, inversion.delta_t_points)
    step, stride = (max(round(span * timesteps), 1) for span in (delta_t, inversion.xs_delta_t))
    ways: dict[MethodName, Guidance] = {
        "cfd": guidance.cfd,
        "sds": guidance.sds,
        "fsd": guidance.fsd,
        "ism": partial(guidance.ism, delta_t=step, xs_delta_t=stride, xs_inv_steps=inversion.xs_inv_steps),
        "sdi": partial(guidance.sdi, delta_t=step, xs_delta_t=stride, xs_inv_steps=inversion.xs_inv_steps),
    }
    return ways[name]


def draw_time(stage: StageConfig, done: float, generator: torch.Generator) -> float:
    """Returns the diffusion time of a step as a fraction of T. done: share of the stage's steps done, in [0, 1)."""
    if stage.t_schedule == "uniform":
        return uniform(stage.t_min, stage.t_max, generator)
    return anneal(done, stage.t_points, stage.t_min, stage.t_max)


def consistency(stage: StageConfig, timesteps: int, done: float, generator: torch.Generator) -> tuple[float, Guidance]:
    """Consistent3D: t2 follows its curve or is drawn every step (C3D Tab. 2a), t1 is drawn above t2 (C3D Eq. 12), and
    the guidance scale falls (C3D appendix B.1). The gradient has the weight and the clip of the authors' code."""
    if stage.t_schedule == "uniform":
        target = uniform(stage.cds.t_min, stage.cds.t_max, generator)
    else:
        target = sqrt_anneal(done, stage.cds.t_min, stage.cds.t_max)
    t = min(target + uniform(*stage.cds.gap, generator), CDS_LAST)
    cfg = stage.scale * (1 - (1 - stage.cds.cfg_end) * done)
    way = partial(guidance.cds, target=time_index(target, timesteps), cfg=cfg)
    low, high = stage.cds.clip
    return t, guidance.clipped(guidance.weighted(way, stage.cds.weight), low + (high - low) * done)


def diverse(stage: StageConfig, timesteps: int, done: float, generator: torch.Generator) -> tuple[float, Guidance]:
    """DSD: t as for other methods, and the time before it, drawn above t in every step (its code)."""
    t = draw_time(stage, done, generator)
    before = uniform(t, t + DSD_GAP * (t - stage.t_min), generator)
    return t, guidance.weighted(partial(guidance.dsd, before=time_index(before, timesteps)), stage.weight)
