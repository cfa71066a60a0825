"""Reference pictures: the teacher's own samples of a prompt, or true objects of the toybox."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gscfd.cameras import azimuth_elevation, sample_group, turntable
from gscfd.config import TeacherStage
from gscfd.distil.sampling import for_sampling, sample
from gscfd.lab.judges import Judges
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.toybox.data import render_object
from gscfd.toybox.truth import true_objects
from gscfd.types import Cameras

BACKGROUND = 0.75
"""Gray level of the background of everything that is judged."""
VIEWS = 4
"""Views per teacher sample, 90 degrees apart."""
SAMPLER_STEPS = 30
TURN_VIEWS = 12
"""Views per true object, from all sides."""


@dataclass(frozen=True)
class Reference:
    """Features of the reference pictures of one prompt."""

    pictures: Tensor
    """[N, D] features for FID."""
    features: Tensor
    """[N, D] unit-length features of the first scorer."""
    azimuths: Tensor
    """[N] degrees from the front."""


def seen(images: Tensor, azimuths: Tensor, judges: Judges) -> Reference:
    """Returns the reference for images [N, 3, H, W] in [0, 1] and azimuths [N]."""
    return Reference(judges.features(images), judges.scorers[0].image_features(images), azimuths)


def true_reference(prompt: str, count: int, size: int, judges: Judges) -> Reference | None:
    """Returns at least `count` views of true toybox objects of the prompt on the runs' gray background; None if there
    are none.

    size: width and height in pixels.
    """
    cameras = turntable(TURN_VIEWS, size=size)
    things = true_objects(prompt, -(-count // TURN_VIEWS))
    images = [render_object(thing, cameras, torch.full((3,), BACKGROUND)) for thing in things]
    if not images:
        return None
    return seen(torch.cat(images), azimuth_elevation(cameras)[0].repeat(len(images)), judges)


def sampled_views(size: int, generator: torch.Generator) -> Cameras:
    """Returns the cameras of one sample of a teacher: VIEWS from a random azimuth, at the runs' elevation."""
    return sample_group(
        VIEWS, elevation=(15.0, 15.0), fov=(40.0, 40.0), radius=(1.05, 1.05), size=size, generator=generator
    )


def teacher_reference(
    prompt: str, count: int, teacher: GuidedTeacher, stage: TeacherStage, device: torch.device, judges: Judges
) -> Reference:
    """Returns at least `count` pictures sampled by the teacher for the prompt (CFD App. B), with DDIM or along the flow
    and guidance for sampling: four views 90 degrees apart from a random azimuth, at the runs' elevation.

    device: the teacher's.
    """
    teacher.set_prompt(stage_prompt(prompt, replace(for_sampling(stage, teacher), perp_neg=False)))
    generator = torch.Generator().manual_seed(0)
    images, azimuths = [], []
    for _ in range(-(-count // VIEWS)):
        cameras = sampled_views(teacher.image_size, generator)
        images.append(sample(teacher, cameras.to(device), steps=SAMPLER_STEPS, generator=generator).cpu())
        azimuths.append(azimuth_elevation(cameras)[0])
    return seen(torch.cat(images), torch.cat(azimuths), judges)
