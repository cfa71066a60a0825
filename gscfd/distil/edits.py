"""Edits made in the viewer during a run: the settings of each step, and passing them to the teachers.

An edit takes effect at its place in the run, (stage, rollbacks, step), which only increases. The settings of a step are
therefore a function of the config and the place: a run that resumes from any checkpoint, or restarts with its own
config.yaml, applies the same edits before the same steps.
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
from gscfd.teachers.base import Prompt, Teacher, stage_prompt

STAGES: tuple[StageName, ...] = get_args(StageName)
Place = tuple[int, int, int]
"""Position in a run, before a step: index of the stage, rollbacks in the stage, step of the stage."""


def place(stage: StageName, rollbacks: int, step: int) -> Place:
    return STAGES.index(stage), rollbacks, step


def place_of(edit: Edit) -> Place:
    return place(edit.stage, edit.rollbacks, edit.step)


def changes(edit: Edit) -> dict[str, Any]:
    """Returns the changed values by name."""
    values = {"prompt": edit.prompt, "cfg": edit.cfg, "t_range": edit.t_range}
    return {name: value for name, value in values.items() if value is not None}


def time_range(config: Config, stage: StageName) -> tuple[float, float]:
    """Returns (t_min, t_max) of a stage for the run's method."""
    settings = config.stage(stage)
    if config.guidance == "cds" and isinstance(settings, StageConfig):
        return settings.cds.t_min, settings.cds.t_max
    return settings.t_min, settings.t_max


def edited(config: Config, edit: Edit) -> Config:
    """Returns the settings with one edit applied. Raises UserError for times out of range."""
    stage: dict[str, Any] = {} if edit.cfg is None else {"cfg": edit.cfg}
    if edit.t_range is not None:
        times = dict(zip(("t_min", "t_max"), edit.t_range, strict=True))
        has_own = config.guidance == "cds" and isinstance(config.stage(edit.stage), StageConfig)
        stage |= {"cds": times} if has_own else times
    prompt = config.prompt if edit.prompt is None else edit.prompt
    return merged(config, {"prompt": prompt, edit.stage: stage})


def settings_at(config: Config, where: Place) -> Config:
    """Returns the run's settings with all edits up to and including the place."""
    return reduce(edited, [edit for edit in config.edits if place_of(edit) <= where], config)


def last_settings(config: Config) -> Config:
    """Returns the run's settings with all edits."""
    return reduce(edited, config.edits, config)


def with_edit(config: Config, edit: Edit) -> Config:
    """Returns the config with this edit added, after any others at the same place."""
    return replace(config, edits=tuple(sorted([*config.edits, edit], key=place_of)))


def asked_for(settings: Config, name: StageName, where: Place) -> Prompt:
    """Returns what the teacher of a stage is asked at a place of the run: in its own stage, with the guidance that its
    curve has there."""
    stage = settings.stage(name)
    prompt = stage_prompt(settings.prompt, stage)
    if STAGES.index(name) != where[0] or not isinstance(stage, StageConfig):
        return prompt
    return replace(prompt, cfg=stage.scale * piecewise(where[2] / stage.steps, stage.cfg_points))


class LiveSettings:
    """The settings of a run's next step, kept in sync with its teachers' prompts."""

    def __init__(self, config: Config, teachers: Mapping[StageName, Teacher]):
        """teachers: teachers of the stages, already set to the prompt in config."""
        self.config, self.teachers = config, teachers
        self.now = config
        self.where: Place = (0, 0, 0)
        self.told = {name: stage_prompt(config.prompt, config.stage(name)) for name in teachers}

    def move_to(self, where: Place) -> None:
        """Switches to the settings of the step at the place. Raises UserError if a teacher rejects them."""
        self.tell(settings_at(self.config, where), where)

    def tell(self, settings: Config, where: Place) -> None:
        self.now, self.where = settings, where
        for name, teacher in self.teachers.items():
            asked = asked_for(settings, name, where)
            if asked != self.told[name]:
                self.told[name] = asked
                teacher.set_prompt(asked)

    def edit(self, edit: Edit, save: Callable[[Config], None]) -> None:
        """Applies an edit before the next step, which must be at the edit's place.

        save: stores the config with the edit, for a resume. Raises UserError, leaving everything unchanged, if a
        teacher rejects the edit or it cannot be saved.
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
        """Returns the run's method, which uses the stage's settings at each step. learner: as for `methods.method`."""

        def of_now(done: float, generator: torch.Generator) -> tuple[float, Guidance]:
            now = self.now.distillations()[stage]
            return method(self.now.guidance, now, self.teachers[stage].timesteps, learner)(done, generator)

        return of_now

    def time(self, stage: StageName) -> Callable[[float], float]:
        """Returns t, as a fraction of T, by the share of the steps done: t falls linearly from t_max to t_min."""

        def of_now(done: float) -> float:
            low, high = time_range(self.now, stage)
            return high + (low - high) * done

        return of_now


def refusal(error: Exception) -> UserError:
    """Returns the reason that an edit was rejected, for display on the page."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return UserError(f"the edit could not be saved: {error.strerror}; free some space and try again")
    return UserError("prompt: not enough GPU memory left to encode another prompt")
