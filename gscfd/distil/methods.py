"""The methods by their names: when each asks the teacher, and in which of the ways of `guidance`."""

from __future__ import annotations

from functools import partial

import torch

from gscfd.config import MethodName, StageConfig
from gscfd.distil import guidance
from gscfd.distil.lora import Lora, unet_of
from gscfd.distil.protocols import Guidance, Learner, Method
from gscfd.distil.schedule import anneal, sqrt_anneal, time_index, uniform
from gscfd.teachers.guided import GuidedTeacher

LEARNERS = {"vsd": Lora}
"""What a method trains beside the Gaussians, by the method's name."""


def make_learner(name: MethodName, teacher: GuidedTeacher, stage: StageConfig, *, seed: int) -> Lora | None:
    """Returns what the method trains, None for most methods. seed: of its first weights. Raises UserError as
    `check_learner`."""
    return LEARNERS[name](teacher, stage.vsd, seed=seed) if name in LEARNERS else None


def check_learner(name: MethodName, teacher: GuidedTeacher, argument: str) -> None:
    """Raises UserError if the method trains something that the teacher has no place for. argument: that chose the
    teacher."""
    if name in LEARNERS:
        unet_of(teacher, argument)


def method(name: MethodName, stage: StageConfig, timesteps: int, learner: Learner | None = None) -> Method:
    """The method with the stage's settings, for a teacher with this many times. docs/methods.md is their table.

    learner: of vsd; the others have none.
    """
    if name == "cds":
        return partial(consistency, stage, timesteps)
    if name in LEARNERS:
        if learner is None:
            raise ValueError(f"{name}: expected a learner, got none")
        way = partial(guidance.vsd, learner=learner)
        return lambda done, generator: (draw_time(stage, done, generator), way)
    delta_t = max(round(stage.inversion.delta_t * timesteps), 1)
    stride, steps = max(round(stage.inversion.xs_delta_t * timesteps), 1), stage.inversion.xs_inv_steps
    ways: dict[MethodName, Guidance] = {
        "cfd": guidance.cfd,
        "sds": guidance.sds,
        "fsd": guidance.fsd,
        "ism": partial(guidance.ism, delta_t=delta_t, xs_delta_t=stride, xs_inv_steps=steps),
        "sdi": partial(guidance.sdi, delta_t=delta_t, xs_delta_t=stride, xs_inv_steps=steps),
    }
    return lambda done, generator: (draw_time(stage, done, generator), ways[name])


def draw_time(stage: StageConfig, done: float, generator: torch.Generator) -> float:
    """Diffusion time of a step as a fraction of T."""
    if stage.t_schedule == "uniform":
        return uniform(stage.t_min, stage.t_max, generator)
    return anneal(done, stage.t_points, stage.t_min, stage.t_max)


def consistency(stage: StageConfig, timesteps: int, done: float, generator: torch.Generator) -> tuple[float, Guidance]:
    """Consistent3D: t2 on its curve, or drawn every step (C3D Tab. 2a), t1 drawn above it (C3D Eq. 12), and a guidance
    that falls (C3D appendix B.1)."""
    if stage.t_schedule == "uniform":
        target = uniform(stage.cds.t_min, stage.cds.t_max, generator)
    else:
        target = sqrt_anneal(done, stage.cds.t_min, stage.cds.t_max)
    t = target + uniform(*stage.cds.gap, generator)
    cfg = stage.cfg * (1 - (1 - stage.cds.cfg_end) * done)
    return t, partial(guidance.cds, target=time_index(target, timesteps), cfg=cfg)
