"""Loads the teachers of a run."""

from __future__ import annotations

import copy

import torch

from gscfd.config import Config, StageName
from gscfd.distil.lora import check_learner
from gscfd.distil.preflight import KeptTeachers, TeacherKey, preflight, teacher_key
from gscfd.errors import UserError
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import load_teacher
from gscfd.teachers.tuning import checkpoint_encoder, compile_networks


def newly_loaded(config: Config, name: StageName) -> GuidedTeacher:
    """Returns the teacher of a stage, loaded from its files and tuned as the config says."""
    _, source, device, dtype, compiled, checkpointed = teacher_key(config, name)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every step has the same shapes: the fastest convolutions are found once
    teacher = load_teacher(source, device=device, dtype=dtype)
    if checkpointed:
        checkpoint_encoder(teacher)
    if compiled:
        compile_networks(teacher)
    return teacher


def sibling(kept: KeptTeachers, key: TeacherKey) -> GuidedTeacher | None:
    """Returns a teacher that shares the networks of another stage's teacher and has its own prompt; None if no stage
    has them."""
    same = [teacher for other, teacher in kept.items() if other[1:] == key[1:]]
    return copy.copy(same[0]) if same else None


def load_teachers(config: Config, kept: KeptTeachers | None = None) -> dict[StageName, GuidedTeacher]:
    """Returns the teachers of the stages that have steps, with their prompts set, so that errors occur before the first
    step.

    kept: teachers from earlier calls, which are reused; newly loaded teachers are added. Raises UserError if a check
    fails or a teacher cannot be loaded or does not fit in GPU memory.
    """
    kept = {} if kept is None else kept
    preflight(config, kept)
    teachers: dict[StageName, GuidedTeacher] = {}
    for name, stage in config.stages().items():
        key = teacher_key(config, name)
        try:
            if key not in kept:
                kept[key] = sibling(kept, key) or newly_loaded(config, name)
            if name in config.distillations():
                check_learner(config.guidance, kept[key], f"{name}.teacher")
            teachers[name] = kept[key]
            teachers[name].set_prompt(stage_prompt(config.prompt, stage))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{name}.teacher: expected one that fits in GPU memory, got {stage.teacher}; try --dtype bfloat16, a "
                "smaller teacher, or end other programs on the GPU (--dry-run estimates the memory needed)"
            ) from error
    return teachers
