"""The noise of a run: of its stages, and painted for display."""

from __future__ import annotations

from torch import Tensor

from gscfd.config import Config, StageName
from gscfd.distil.protocols import Noise
from gscfd.distil.schedule import piecewise
from gscfd.noise.field import NoiseField
from gscfd.noise.kinds import NOISES
from gscfd.teachers.base import Teacher
from gscfd.types import Cameras, Render


def stage_noise(config: Config, stage: StageName, teacher: Teacher, seed: int) -> Noise:
    """Returns the noise of one stage, which keeps its own state.

    The noise is drawn on the render's device or, with config.noise.device "cpu", on the CPU; the render is then copied
    to the CPU and the noise back. teacher: of the stage. seed: of the noise field.
    """
    channels, height, width = teacher.latent_shape
    field = NoiseField(
        seed,
        channels,
        height,
        width,
        gamma=gammas(config, stage),
        beta=config.noise.beta,
        background=config.noise_background(teacher.multiview),
        theta=config.noise.theta,
        span=config.stage(stage).steps,
    )
    kind = NOISES[config.noise_kind_for(teacher.multiview)]

    def draw(cameras: Cameras, render: Render, step: int) -> Tensor:
        if config.noise.device == "render":
            return kind(field, cameras, render, step)
        return kind(field, cameras.to("cpu"), render.to("cpu"), step).to(render.rgb.device)

    return draw


def gammas(config: Config, stage: StageName) -> float | list[float]:
    """Returns the shares of fresh noise of a stage's steps: one, or one for each step if they follow a curve."""
    points, steps = config.noise.gamma_points, config.stage(stage).steps
    if {multiple for _, multiple in points} == {1.0}:
        return config.noise_gamma(stage)
    return [config.noise_gamma(stage, piecewise(step / steps, points)) for step in range(1, steps + 1)]


NOISE_SAMPLES = 4
"""Render pixels per pixel of the displayed noise, along each axis."""


def painted_noise(config: Config, cameras: Cameras, render: Render) -> Tensor:
    """Returns the run's kind of noise for any views as colors [V, 3, H / 4, W / 4], for display.

    cameras, render: with sizes that are multiples of NOISE_SAMPLES.
    """
    height, width = cameras.height // NOISE_SAMPLES, cameras.width // NOISE_SAMPLES
    field = NoiseField(
        config.seed, 3, height, width, gamma=0.0, beta=config.noise.beta, theta=config.noise.theta, span=1
    )
    return NOISES[config.noise_kind](field, cameras.to("cpu"), render.to("cpu"), 0)
