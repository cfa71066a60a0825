"""What runs are compared with: the teacher's own samples of a prompt, or true objects of the toybox."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gscfd.cameras import azimuth_elevation, sample_group, turntable
from gscfd.config import TeacherStage
from gscfd.distil.sampling import MOST_CFG, sample
from gscfd.lab.judges import Judges
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.toybox.data import render_object
from gscfd.toybox.truth import true_objects

BACKGROUND = 0.75
"""The gray behind everything that is judged."""
VIEWS = 4
"""Of a teacher's sample, 90 degrees apart."""
SAMPLER_STEPS = 30
TURN_VIEWS = 12
"""Views of a true object, from all sides."""


@dataclass(frozen=True)
class Reference:
    """Pictures of one prompt, as the judges see them."""

    pictures: Tensor
    """[N, D] for FID."""
    features: Tensor
    """[N, D] of the first scorer, of unit length."""
    azimuths: Tensor
    """[N] degrees from the front."""


def seen(images: Tensor, azimuths: Tensor, judges: Judges) -> Reference:
    """images [N, 3, H, W] in [0, 1], azimuths [N]."""
    return Reference(judges.features(images), judges.scorers[0].image_features(images), azimuths)


def true_reference(prompt: str, count: int, size: int, judges: Judges) -> Reference | None:
    """At least `count` views of true toybox objects of the prompt, over the same gray as runs; None: there are none.

    size: pixels, both ways.
    """
    cameras = turntable(TURN_VIEWS, size=size)
    things = true_objects(prompt, -(-count // TURN_VIEWS))
    images = [render_object(thing, cameras, torch.full((3,), BACKGROUND)) for thing in things]
    if not images:
        return None
    return seen(torch.cat(images), azimuth_elevation(cameras)[0].repeat(len(images)), judges)


def teacher_reference(
    prompt: str, count: int, teacher: GuidedTeacher, stage: TeacherStage, device: torch.device, judges: Judges
) -> Reference:
    """At least `count` pictures that the teacher samples of the prompt (CFD App. B), by DDIM or along the flow, with
    the stage's guidance up to a sampler's most: four views 90 degrees apart from a random start, as high as the runs'.

    device: the teacher's.
    """
    teacher.set_prompt(stage_prompt(prompt, replace(stage, cfg=min(stage.cfg, MOST_CFG), perp_neg=False)))
    generator = torch.Generator().manual_seed(0)
    images, azimuths = [], []
    for _ in range(-(-count // VIEWS)):
        cameras = sample_group(
            VIEWS,
            elevation=(15.0, 15.0),
            fov=(40.0, 40.0),
            radius=(1.05, 1.05),
            size=teacher.image_size,
            generator=generator,
        )
        images.append(sample(teacher, cameras.to(device), steps=SAMPLER_STEPS, generator=generator).cpu())
        azimuths.append(azimuth_elevation(cameras)[0])
    return seen(torch.cat(images), torch.cat(azimuths), judges)
