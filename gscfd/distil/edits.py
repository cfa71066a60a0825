"""What is changed in the viewer while a run goes on: which settings a step has, and telling the teachers.

An edit counts from its place in the run on, (stage, rollbacks, step), which only grows. So the settings of a step are
a function of the config and that place: a run that is resumed from any checkpoint, or begun again with its own
config.yaml, makes the same edits before the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any, get_args

import torch

from gscfd.config import Config, Edit, StageConfig, StageName, merged
from gscfd.distil.methods import method
from gscfd.distil.protocols import Guidance, Learner, Method
from gscfd.distil.schedule import piecewise
from gscfd.errors import UserError
from gscfd.teachers import Teacher
from gscfd.teachers.base import Prompt, stage_prompt

STAGES: tuple[StageName, ...] = get_args(StageName)
Place = tuple[int, int, int]
"""Index of the stage, rollbacks in it, step of it: where a run is, before the step."""


def place(stage: StageName, rollbacks: int, step: int) -> Place:
    return STAGES.index(stage), rollbacks, step


def place_of(edit: Edit) -> Place:
    return place(edit.stage, edit.rollbacks, edit.step)


def changes(edit: Edit) -> dict[str, Any]:
    """What it changes, by name."""
    values = {"prompt": edit.prompt, "cfg": edit.cfg, "t_range": edit.t_range}
    return {name: value for name, value in values.items() if value is not None}


def time_range(config: Config, stage: StageName) -> tuple[float, float]:
    """(t_min, t_max) of a stage with the run's method."""
    settings = config.stage(stage)
    if config.guidance == "cds" and isinstance(settings, StageConfig):
        return settings.cds.t_min, settings.cds.t_max
    return settings.t_min, settings.t_max


def edited(config: Config, edit: Edit) -> Config:
    """The settings with one edit. Raises UserError for times out of range."""
    stage: dict[str, Any] = {} if edit.cfg is None else {"cfg": edit.cfg}
    if edit.t_range is not None:
        times = dict(zip(("t_min", "t_max"), edit.t_range, strict=True))
        has_own = config.guidance == "cds" and isinstance(config.stage(edit.stage), StageConfig)
        stage |= {"cds": times} if has_own else times
    prompt = config.prompt if edit.prompt is None else edit.prompt
    return merged(config, {"prompt": prompt, edit.stage: stage})


def settings_at(config: Config, where: Place) -> Config:
    """The run's settings with the edits made until then."""
    return reduce(edited, [edit for edit in config.edits if place_of(edit) <= where], config)


def last_settings(config: Config) -> Config:
    """The run's settings with all edits."""
    return reduce(edited, config.edits, config)


def with_edit(config: Config, edit: Edit) -> Config:
    """The config of a run in which this edit is made too, after those at the same place."""
    return replace(config, edits=tuple(sorted([*config.edits, edit], key=place_of)))


def asked_for(settings: Config, name: StageName, where: Place) -> Prompt:
    """Returns what the teacher of a stage is asked at a place of the run: in its own stage, with the guidance that its
    curve has there."""
    stage = settings.stage(name)
    prompt = stage_prompt(settings.prompt, stage)
    if STAGES.index(name) != where[0] or not isinstance(stage, StageConfig):
        return prompt
    return replace(prompt, cfg=stage.cfg * piecewise(where[2] / stage.steps, stage.cfg_points))


class LiveSettings:
    """The settings of the next step of a run, which its teachers have been told."""

    def __init__(self, config: Config, teachers: Mapping[StageName, Teacher]):
        """teachers: of the stages, told config's own prompt."""
        self.config, self.teachers = config, teachers
        self.now = config
        self.where: Place = (0, 0, 0)
        self.told = {name: stage_prompt(config.prompt, config.stage(name)) for name in teachers}

    def move_to(self, where: Place) -> None:
        """Take the settings of the step there. Raises UserError when a teacher does not take them."""
        self.tell(settings_at(self.config, where), where)

    def tell(self, settings: Config, where: Place) -> None:
        self.now, self.where = settings, where
        for name, teacher in self.teachers.items():
            asked = asked_for(settings, name, where)
            if asked != self.told[name]:
                self.told[name] = asked
                teacher.set_prompt(asked)

    def edit(self, edit: Edit, save: Callable[[Config], None]) -> None:
        """Make an edit before the next step, which is at its place. save: keeps the config with it, for a resume.

        Raises UserError, with everything as it was, when a teacher does not take it or it cannot be saved.
        """
        before, where, config = self.now, self.where, with_edit(self.config, edit)
        try:
            self.tell(settings_at(config, place_of(edit)), place_of(edit))
            save(config)
        except (UserError, torch.OutOfMemoryError, OSError) as error:
            self.tell(before, where)
            raise refusal(error) from None
        self.config = config

    def method(self, stage: StageName, learner: Learner | None = None) -> Method:
        """The run's method with the stage's settings of each step. learner: as `gscfd.distil.methods.method`."""

        def of_now(done: float, generator: torch.Generator) -> tuple[float, Guidance]:
            now = self.now.distillations()[stage]
            return method(self.now.guidance, now, self.teachers[stage].timesteps, learner)(done, generator)

        return of_now

    def time(self, stage: StageName) -> Callable[[float], float]:
        """t, as a fraction of T, by the share of the steps done: it falls linearly between the limits of each step."""

        def of_now(done: float) -> float:
            low, high = time_range(self.now, stage)
            return high + (low - high) * done

        return of_now


def refusal(error: Exception) -> UserError:
    """Why an edit was not made, for the page."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return UserError(f"the edit could not be saved: {error.strerror}; make room and try again")
    return UserError("prompt: there is no GPU memory left to read another one")
