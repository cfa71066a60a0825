"""A crowd: the splats of several seeds, optimized side by side with an ideal teacher, to count what seeds end at.

A run of a few hundred Gaussians spends its time between the kernels, not in them. Here one call renders the splats of
all seeds, which stand so far apart that no camera sees two of them, and one call denoises all their views. Every seed
has its own ball, views, backgrounds and noise. The steps are those of `gscfd.distil.stage`, without densification,
regularizers and the watchdog.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.config import Config, StageConfig
from gscfd.distil.methods import method
from gscfd.distil.noises import stage_noise
from gscfd.distil.schedule import time_index
from gscfd.distil.stage import detached, straight_through_clamp
from gscfd.distil.state import make_optimizers
from gscfd.gaussians import Gaussians, ball
from gscfd.lab.ideal import posterior_mean
from gscfd.pictures import random_background
from gscfd.rasterize import degree_zero, rasterization
from gscfd.teachers.base import Prompt
from gscfd.teachers.schedules import Schedule
from gscfd.teachers.spaces import Space
from gscfd.types import Cameras, Render

APART = 8.0
"""Distance between two splats of a crowd, world units. A camera stands about 3 from the center of its own."""
FAR = 6.0
"""Depth beyond which a camera sees nothing, world units."""


def groups_around(count: int, views: int, *, size: int) -> list[Cameras]:
    """Returns `count` groups of views at equal azimuth steps, each turned a little against the one before.

    size: pixels, both ways.
    """
    ring = turntable(count * views, size=size)
    return [Cameras(ring.viewmats[i::count], ring.Ks[i::count], size, size) for i in range(count)]


class CrowdTeacher:
    """The ideal teacher of `gscfd.lab.ideal` for a crowd, which is asked about a few groups of views alone.

    z and x have the views of all members, one member after another, [M V, C, h, w]; before a call, `look` says what
    every member looks at. All branches of guidance are equal, since the teacher reads no text.
    """

    multiview = True

    def __init__(
        self,
        assets: Sequence[Gaussians],
        groups: Sequence[Cameras],
        *,
        space: Space,
        schedule: Schedule,
        shares: Sequence[float],
    ):
        self.space, self.schedule, self.timesteps = space, schedule, schedule.timesteps
        self.image_size, self.latent_shape = space.image_size, space.latent_shape
        self.shares = torch.tensor(shares, dtype=torch.float64)
        self.views = len(groups[0])
        renders = [[asset.render(group) for asset in assets] for group in groups]
        self.rgb = torch.stack([torch.stack([one.rgb for one in row]) for row in renders])
        self.opacity = torch.stack([torch.stack([one.opacity for one in row]) for row in renders])

    def look(self, groups: Sequence[int], backgrounds: Tensor) -> None:
        """Sets each member's group of views, by index, and its background [M, 3]."""
        chosen = torch.tensor(groups)
        behind = (1 - self.opacity[chosen]) * backgrounds[:, None, None, None, None]
        images = (self.rgb[chosen] + behind).clamp(0, 1)  # [M, K, V, H, W, 3]
        encoded = self.space.encode(images.flatten(0, 2).permute(0, 3, 1, 2))
        self.known = encoded.unflatten(0, images.shape[:3]).transpose(0, 1)  # [K, M, V, C, h, w]

    def set_prompt(self, prompt: Prompt) -> None:
        """Takes any prompt: the teacher reads none."""

    def encode(self, images: Tensor) -> Tensor:
        return self.space.encode(images)

    def decode(self, z: Tensor) -> Tensor:
        return self.space.decode(z)

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return self.schedule.alpha_sigma(t)

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        if sigma == 0:
            return torch.zeros_like(x_t)
        # A member's views are one draw of the data: they count as channels of one image.
        x, known = x_t.unflatten(0, (-1, self.views)).flatten(1, 2), self.known.flatten(2, 3)
        z = posterior_mean(x, known, alpha, sigma, joint=False, shares=self.shares)
        return (x_t - alpha * z.reshape(x_t.shape)) / sigma


def start(config: Config) -> tuple[Gaussians, int]:
    """Returns the ball of the config's seed and the seed of its coarse stage, as `distil` does."""
    seeds = torch.randint(2**62, (6,), generator=torch.Generator().manual_seed(config.seed)).tolist()
    init, generator = config.init, torch.Generator().manual_seed(seeds[0])
    return ball(init.count, radius=init.radius, opacity=init.opacity, generator=generator), seeds[1]


def joined(splats: Sequence[Gaussians]) -> Gaussians:
    """Returns one splat with the Gaussians of all, one after another."""
    tensors = [splat.tensors() for splat in splats]
    return Gaussians(**{name: torch.cat([one[name] for one in tensors]) for name in tensors[0]})


def rasterize_apart(crowd: Gaussians, cameras: Sequence[Cameras]) -> Render:
    """Renders every splat of the crowd in its own views, [M V, H, W, ...].

    crowd: splats of equal size, without view-dependent colors, one after another. cameras: of every one.
    """
    shift = torch.zeros(len(cameras), 3)
    shift[:, 0] = APART * torch.arange(len(cameras))
    viewmats = torch.stack([group.viewmats for group in cameras])
    viewmats[..., :3, 3] -= torch.einsum("mvij,mj->mvi", viewmats[..., :3, :3], shift)
    colors, alphas, info = rasterization(
        crowd.means + shift.repeat_interleave(len(crowd) // len(cameras), 0), crowd.quats, crowd.scales.exp(),
        crowd.opacities.sigmoid(), degree_zero(crowd.sh0), viewmats.flatten(0, 1),
        torch.cat([group.Ks for group in cameras]), cameras[0].width, cameras[0].height, far_plane=FAR,
    )  # fmt: skip
    return Render(colors[..., :3], colors[..., 3:], alphas, info["median_depth"])


def optimized(configs: Sequence[Config], teacher: CrowdTeacher, groups: Sequence[Cameras]) -> list[Gaussians]:
    """Returns the splats of the coarse stage of configs that differ in their seed alone.

    groups: those of the teacher; each step of each member draws one of them. The diffusion times of a step are equal
    for all members.
    """
    stage, members = configs[0].stage("coarse"), len(configs)
    assert isinstance(stage, StageConfig)
    balls, seeds = zip(*map(start, configs), strict=True)
    noises = [stage_noise(config, "coarse", teacher, seed) for config, seed in zip(configs, seeds, strict=True)]
    crowd, generators = joined(balls), [torch.Generator().manual_seed(seed) for seed in seeds]
    times = torch.Generator().manual_seed(0)
    rates = {name: getattr(stage.lr, name) for name in crowd.params}
    optimizers, of_step = make_optimizers(crowd, rates), method(configs[0].guidance, stage, teacher.timesteps)
    for step in range(stage.steps):
        done = step / stage.steps
        chosen = [int(torch.randint(len(groups), (), generator=generator)) for generator in generators]
        cameras = [groups[i] for i in chosen]
        backgrounds = torch.stack([random_background(generator) for generator in generators])
        render = rasterize_apart(crowd, cameras)
        images = straight_through_clamp(render.over(backgrounds.repeat_interleave(teacher.views, 0)[:, None, None]))
        shown = images.detach().requires_grad_()
        z = teacher.encode(shown.permute(0, 3, 1, 2))
        teacher.look(chosen, backgrounds)
        eps = torch.cat(
            [
                noise(group, part, step)
                for noise, group, part in zip(noises, cameras, parts(detached(render), members), strict=True)
            ]
        )
        t, guidance = of_step(done, times)
        grad = guidance(teacher, z.detach(), eps, time_index(t, teacher.timesteps), cameras[0])
        (pixel_grad,) = torch.autograd.grad(z, shown, grad / teacher.views)
        images.backward(pixel_grad)
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = rates[name] * stage.lr.end**done
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        crowd.clip_colors()
    chunks = {name: value.chunk(members) for name, value in crowd.tensors().items()}
    return [Gaussians(**{name: each[i] for name, each in chunks.items()}) for i in range(members)]


def parts(render: Render, members: int) -> list[Render]:
    """Returns the views of each member."""
    images = [image.chunk(members) for image in (render.rgb, render.depth, render.opacity)]
    return [Render(*each) for each in zip(*images, strict=True)]
