"""The optimization loop. It follows the paper's Algorithm 1 and receives every part that it uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import SupportsFloat

import torch
from torch import Tensor

from gscfd.cameras import sample_group
from gscfd.config import StageConfig, StageName, WatchdogConfig
from gscfd.deferred import Clock, Deferred, moved
from gscfd.distil.guidance import distillation_loss
from gscfd.distil.protocols import Learner, Method, Noise, Rasterize
from gscfd.distil.regularizers import regularizers
from gscfd.distil.schedule import render_size, time_index
from gscfd.distil.state import StageState, StateDict
from gscfd.distil.watchdog import Trouble, find_trouble
from gscfd.gaussians import Gaussians
from gscfd.geometry import normal_map
from gscfd.pictures import random_background
from gscfd.teachers.base import Teacher
from gscfd.types import Cameras, Render

PARTS = ("render", "encode", "noise", "teacher", "encode_backward", "render_backward", "optimize", "densify", "watch")
"""The parts of a step, in order."""
TEACHER_PARTS = ("encode", "teacher", "encode_backward")
"""The parts that run the teacher's networks."""


@dataclass
class StepReport:
    """Results of a step. Callbacks may read them but must not change anything."""

    stage: StageName
    step: int
    """Index of the step, from 0."""
    steps: int
    """Number of steps of the stage."""
    t: float
    """Diffusion time as a fraction of T."""
    loss: SupportsFloat
    """Half the squared length of dL/dz, per view; in the polish, the loss of its last fit. float() reads the value; on
    CUDA, reading this, `regularizer` or `seconds` waits until the device has computed it."""
    regularizer: SupportsFloat
    """Weighted sum of the regularizers, times the loss."""
    count: int
    """Number of Gaussians after the step."""
    seconds: Mapping[str, float]
    """Seconds per part, by the names in PARTS; on CUDA, measured on the device."""
    gaussians: Gaussians
    """The run's Gaussians after the step, not a copy."""
    cameras: Cameras
    """Cameras of the step's views."""
    images: Tensor
    """[V, H, W, 3] images shown to the teacher, detached."""
    noise: Tensor
    """[V, C, h, w] noise added to the images for the teacher."""
    target: Tensor
    """[V, C, h, w] target of the guidance; for cfd, sds and fsd with the weight ratio, the denoised images z0_hat (CFD
    Eq. 9)."""
    state: StageState
    """State of the stage after the step, or after the rollback."""
    trouble: str = ""
    """Reason that the step was rolled back; empty if it was not."""


class StageError(RuntimeError):
    """The run cannot continue. The message says why and suggests settings to try."""


def run_stage(
    gaussians: Gaussians,
    config: StageConfig,
    *,
    name: StageName,
    teacher: Teacher,
    rasterize: Rasterize,
    noise: Noise,
    method: Method,
    seed: int,
    watchdog: WatchdogConfig,
    keep_every: int,
    on_step: Callable[[StepReport], None],
    learner: Learner | None = None,
    resume: StateDict | None = None,
) -> None:
    """Distills the teacher into the Gaussians, in place.

    name: stage, for messages and reports. seed: for the views and densification. keep_every: steps between two good
    states. learner: network that the method trains, if any. resume: state to continue from.

    Raises StageError after too many rollbacks; the Gaussians are then those of the last good state. Exceptions from
    `on_step` end the stage.

    On CUDA, only gsplat, for the number of tiles and in rounds of densification, and the watchdog's checks wait for the
    device.
    """
    state = StageState(gaussians, config, seed=seed, keep_every=keep_every, learner=learner)
    if resume is not None:
        state.load_state_dict(resume)
    optimizers, densifier, generator = state.optimizers, state.densifier, state.generator
    while state.step < config.steps:
        step, done = state.step, state.step / config.steps
        state.set_step_sizes()
        clock = Clock(gaussians.device)

        # Render the views of one group over one background.
        group = sample_group(
            config.views,
            elevation=config.elevation,
            fov=config.fov,
            radius=config.radius,
            size=render_size(done, config.render_sizes, teacher.image_size),
            generator=generator,
        )
        cameras = group.to(gaussians.device)
        render = rasterize(gaussians, cameras, depth_variance=config.depth_reg > 0)
        images = pictures(render, cameras, config, generator)
        clock.lap("render")

        # Encode them for the teacher.
        shown = images.detach().requires_grad_()
        z = teacher.encode(shown.permute(0, 3, 1, 2))
        clock.lap("encode")

        # Draw the noise on the current surface.
        eps = noise(cameras, detached(render), step)
        clock.lap("noise")

        # Query the guidance, then train the method's learner on the same images.
        t, guidance = method(done, generator)
        grad = guidance(teacher, z.detach(), eps, time_index(t, teacher.timesteps), group)
        if learner is not None:
            learner.learn(z.detach(), group, generator)
        clock.lap("teacher")

        # Backpropagate to the pixels, and from there to the Gaussians.
        loss = distillation_loss(z, grad)
        (pixel_grad,) = torch.autograd.grad(loss, shown)
        clock.lap("encode_backward")
        regularizer = loss.detach() * regularizers(gaussians, render, cameras, config)
        densifier.before_backward(gaussians, optimizers, step, render.info)
        torch.autograd.backward([images, regularizer], [pixel_grad, torch.ones_like(regularizer)])
        clock.lap("render_backward")

        # Update the Gaussians, then grow and prune.
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        gaussians.clip_colors()
        clock.lap("optimize")
        densifier.after_backward(gaussians, optimizers, step, render.info, seed=seed + step)
        clock.lap("densify")

        trouble = find_trouble(state, render.opacity, loss, name=name, limits=watchdog)
        report = StepReport(
            stage=name,
            step=step,
            steps=config.steps,
            t=t,
            loss=Deferred(loss),
            regularizer=Deferred(regularizer),
            count=len(gaussians),
            seconds=clock,
            gaussians=gaussians,
            cameras=cameras,
            images=images.detach(),
            noise=eps,
            target=z.detach() - grad,
            state=state,
        )
        close_step(report, clock, trouble, on_step, watchdog)


def close_step(
    report: StepReport,
    clock: Clock,
    trouble: Trouble | None,
    on_step: Callable[[StepReport], None],
    watchdog: WatchdogConfig,
) -> None:
    """Go on from a sound splat, back from any other, and report it. Raises StageError as `run_stage` does."""
    state = report.state
    if trouble:
        state.roll_back()
        report.count = len(report.gaussians)
        report.trouble = f"{trouble.what} at step {report.step}"
    else:
        state.advance()
    clock.lap("watch")
    on_step(report)
    if trouble and state.rollbacks > watchdog.rollbacks:
        raise StageError(
            f"{report.stage}: {report.trouble}; {trouble.advice} "
            f"(went back {watchdog.rollbacks} times, each time with half the step size)"
        )


def pictures(render: Render, cameras: Cameras, config: StageConfig, generator: torch.Generator) -> Tensor:
    """Returns the images [V, H, W, 3] for the teacher: the views over one random background or, with probability
    normal_prob, their normal maps."""
    background = random_background(generator)
    if config.normal_prob and torch.rand((), generator=generator).item() < config.normal_prob:
        return normal_map(render, cameras)
    return straight_through_clamp(render.over(moved(background, render.rgb.device)))


def straight_through_clamp(images: Tensor) -> Tensor:
    """Clamps images to [0, 1] but passes the gradient through, which brings colors outside that range back into it."""
    return images + (images.clamp(0, 1) - images).detach()


def detached(render: Render) -> Render:
    return Render(render.rgb.detach(), render.depth.detach(), render.opacity.detach(), render.median_depth)
