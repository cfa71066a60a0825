"""The polish: the splat is fitted to pictures that the teacher paints over its own views.

A step noises the views of one group to a low time, with the run's own noise, and has the teacher denoise them in a few
steps of DDIM (SDEdit, Meng et al. 2022). The pictures join an album of the latest groups, and the Gaussians are fitted
to it by L1 and SSIM, as to photographs (Kerbl et al. 2023). All pictures are painted over the splat as it came into the
stage: painted over what it has become (Instruct-NeRF2NeRF, Haque et al. 2023), small holes close, a little each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from gscfd.cameras import sample_group
from gscfd.config import PolishConfig, StageName, WatchdogConfig
from gscfd.deferred import Clock, Deferred, moved
from gscfd.distil.protocols import Noise, Rasterize
from gscfd.distil.sampling import ddim
from gscfd.distil.schedule import time_index
from gscfd.distil.stage import StepReport, close_step, detached
from gscfd.distil.state import StageState, StateDict, part
from gscfd.distil.watchdog import find_trouble
from gscfd.gaussians import Gaussians
from gscfd.pictures import random_background
from gscfd.rasterize import EPS2D
from gscfd.teachers.base import Teacher
from gscfd.types import Cameras, Render

OUTSIDE = 0.05
"""Opacity below which a pixel shows the background alone."""
COVERED = 0.9
"""Opacity from which a pixel shows the object alone."""
MARGIN = 20
"""A picture's side over the width of the border, on either side of the outline, that shows neither for certain."""
FINEST = 128
"""A picture's side from which the splat is fitted to it at its own resolution; to smaller ones at twice theirs."""
SMOOTHING = 13
"""A picture's side over the standard deviation by which its background is smoothed."""


@dataclass(frozen=True)
class Pictures:
    """What the teacher painted of one group."""

    cameras: Cameras
    images: Tensor
    """[V, 3, H, W] in [0, 1]."""
    backgrounds: Tensor
    """[V, 3, H, W] what is behind the object in them."""
    inside: Tensor
    """[V, 1, H, W] 1 where the object covers the pixel and those around it, else 0."""


class Album:
    """The pictures of the latest groups, and their subject. Its tensors are part of the stage's state."""

    name, remedy = "album", "cfg"

    def __init__(self, size: int, subject: Gaussians):
        """size: groups; the oldest makes room for a new one. subject: what the teacher paints over; it is copied."""
        self.size, self.subject = size, Gaussians(**subject.params)
        self.pages: list[Pictures] = []

    def add(self, pictures: Pictures) -> None:
        self.pages = [*self.pages, pictures][-self.size :]

    def draw(self, generator: torch.Generator) -> Pictures:
        """One of the groups, at random."""
        return self.pages[int(torch.randint(len(self.pages), (), generator=generator))]

    def tensors(self) -> dict[str, Tensor]:
        named = {f"subject/{name}": value.detach() for name, value in self.subject.params.items()}
        for i, page in enumerate(self.pages):
            named |= {f"album/{i:04}/{name}": value for name, value in parts_of(page).items()}
        return named

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Become a copy of the album that had these tensors."""
        device = self.subject.device
        self.subject = Gaussians(**{k: v.to(device) for k, v in part(tensors, "subject/").items()})
        self.pages = []
        for i in range(len({name.split("/")[0] for name in part(tensors, "album/")})):
            own = {name: value.to(device, copy=True) for name, value in part(tensors, f"album/{i:04}/").items()}
            height, width = own["images"].shape[2:]
            cameras = Cameras(own.pop("viewmats"), own.pop("Ks"), width, height)
            self.pages.append(Pictures(cameras, **own))


def parts_of(page: Pictures) -> dict[str, Tensor]:
    """Its tensors by name."""
    cameras = {"viewmats": page.cameras.viewmats, "Ks": page.cameras.Ks}
    return cameras | {"images": page.images, "backgrounds": page.backgrounds, "inside": page.inside}


def run_polish(
    gaussians: Gaussians,
    config: PolishConfig,
    *,
    name: StageName,
    teacher: Teacher,
    rasterize: Rasterize,
    noise: Noise,
    time: Callable[[float], float],
    seed: int,
    watchdog: WatchdogConfig,
    keep_every: int,
    on_step: Callable[[StepReport], None],
    resume: StateDict | None = None,
) -> None:
    """Fit the Gaussians, in place, to the teacher's pictures of them.

    time: t, as a fraction of T, by the share of the steps done. The other arguments and what is raised: as for
    `run_stage`.
    """
    album = Album(config.album, gaussians)
    state = StageState(gaussians, config, seed=seed, keep_every=keep_every, learner=album)
    if resume is not None:
        state.load_state_dict(resume)
    while state.step < config.steps:
        step, t = state.step, time(state.step / config.steps)
        state.set_step_sizes()
        clock = Clock(gaussians.device)

        # Render the views of one group over one background.
        group = sample_group(
            config.views,
            elevation=config.elevation,
            fov=config.fov,
            radius=config.radius,
            size=teacher.image_size,
            generator=state.generator,
        )
        cameras = group.to(gaussians.device)
        with torch.no_grad():
            render = rasterize(album.subject, cameras)
        background = moved(random_background(state.generator), gaussians.device)
        images = render.over(background).clamp(0, 1)
        clock.lap("render")
        with torch.no_grad():
            z = teacher.encode(images.permute(0, 3, 1, 2))
        clock.lap("encode")
        eps = noise(cameras, detached(render), step)
        clock.lap("noise")

        # Have the teacher paint over them.
        target = painted_over(teacher, z, eps, time_index(t, teacher.timesteps), config.asks, group)
        album.add(pictures_of(cameras, teacher.decode(target), render.opacity, background))
        clock.lap("teacher")

        # Fit the splat to the album.
        for _ in range(config.fits):
            loss, opacity = fit(state, album.draw(state.generator), rasterize, config)
        clock.lap("optimize")

        trouble = find_trouble(state, opacity, loss, name=name, limits=watchdog)
        report = StepReport(
            stage=name,
            step=step,
            steps=config.steps,
            t=t,
            loss=Deferred(loss),
            regularizer=0.0,
            count=len(gaussians),
            seconds=clock,
            gaussians=gaussians,
            cameras=cameras,
            images=images,
            noise=eps,
            target=target,
            state=state,
        )
        close_step(report, clock, trouble, on_step, watchdog)


def painted_over(teacher: Teacher, z: Tensor, noise: Tensor, t: int, asks: int, cameras: Cameras) -> Tensor:
    """[V, C, h, w] what the teacher makes of z noised to time t: the end of `asks` steps of DDIM at equal distances."""
    times = [max(t * (asks - i) // asks, 1) for i in range(asks)]
    alpha, sigma = teacher.alpha_sigma(times[0])
    return ddim(teacher, alpha * z + sigma * noise, times, cameras)


def pictures_of(cameras: Cameras, images: Tensor, opacity: Tensor, background: Tensor) -> Pictures:
    """images: [V, 3, H, W] painted over a render with the opacity [V, H, W, 1] before the background [3]."""
    covered = opacity.permute(0, 3, 1, 2)
    inside = (-widened(-covered) > COVERED).to(images.dtype)
    return Pictures(cameras, images, backgrounds_of(images, widened(covered), background), inside)


def widened(images: Tensor) -> Tensor:
    """[V, 1, H, W] the largest value within the border of each pixel."""
    reach = round(images.shape[-1] / MARGIN)
    return F.max_pool2d(images, 2 * reach + 1, stride=1, padding=reach)


def backgrounds_of(images: Tensor, near: Tensor, background: Tensor) -> Tensor:
    """[V, 3, H, W] what is behind the object in the pictures: a decoded plain color is not quite plain, nor the color
    that was asked for, and the difference would make a fringe of haze round the object.

    It is the smoothed picture where the object is not near, and continues behind the object.

    images: [V, 3, H, W]. near: [V, 1, H, W] largest opacity around. background: [3], where the object fills the view.
    """
    side = images.shape[-1]
    outside = (near < OUTSIDE).to(images.dtype)
    shown, weight = smoothed(images * outside, side / SMOOTHING), smoothed(outside, side / SMOOTHING)
    plain = background[:, None, None].expand_as(images)
    return torch.where(weight > 1e-3, shown / weight.clamp_min(1e-3), plain)


def smoothed(images: Tensor, sigma: float) -> Tensor:
    """[V, C, H, W] convolved with a Gaussian, edges repeated."""
    reach = round(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.softmax(-0.5 * (offsets / sigma) ** 2, 0)
    channels = images.shape[1]
    rows = weights[None, None, :, None].expand(channels, 1, -1, 1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, rows, groups=channels), rows.transpose(2, 3), groups=channels)


def fit(state: StageState, pictures: Pictures, rasterize: Rasterize, config: PolishConfig) -> tuple[Tensor, Tensor]:
    """One step of Adam on the pictures of one group. Returns the loss and the opacity [V, H, W, 1] of the views.

    Splats are widened as in the views that the teacher painted over, by as much of a picture's pixel; otherwise the
    object would grow until its finer render, averaged down, is as wide as they are.
    """
    height, width = pictures.images.shape[2:]
    scale = fineness(width)
    cameras = pictures.cameras.resized(scale * width, scale * height)
    render = rasterize(state.gaussians, cameras, eps2d=scale**2 * EPS2D)
    loss = picture_loss(render, pictures, ssim=config.ssim, smooth=config.smooth)
    loss = loss + config.opacity_reg * (render.opacity * (1 - render.opacity)).mean()
    loss.backward()
    for optimizer in state.optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.gaussians.clip_colors()
    return loss.detach(), render.opacity.detach()


def fineness(side: int) -> int:
    """Pixels of a render for each of a picture, both ways."""
    return 2 if side < FINEST else 1


def picture_loss(render: Render, pictures: Pictures, *, ssim: float, smooth: float) -> Tensor:
    """[] (1 - ssim) L1 + ssim (1 - SSIM) of the pictures and the render over their backgrounds, averaged down to their
    pixels (Kerbl et al. 2023, Eq. 7); and smooth times L1 at the render's own resolution, inside the object.

    The last term is for what the pictures are too coarse to show: without it neighboring Gaussians of a fine splat may
    have any colors whose mean is right.

    render: `fineness` times as wide and high as the pictures.
    """
    size = render.rgb.shape[1:3]
    fine = render.rgb.permute(0, 3, 1, 2)
    fine = fine + (1 - render.opacity.permute(0, 3, 1, 2)) * enlarged(pictures.backgrounds, size)
    images = F.avg_pool2d(fine, fineness(pictures.images.shape[-1]))
    loss = (1 - ssim) * F.l1_loss(images, pictures.images)
    if ssim > 0:
        similarity = structural_similarity_index_measure(images, pictures.images, data_range=1.0)
        assert isinstance(similarity, Tensor), "torchmetrics returns a pair only where it is asked for the image"
        loss = loss + ssim * (1 - similarity)
    if smooth > 0:
        inside = F.interpolate(pictures.inside, size=size)
        loss = loss + smooth * (inside * (fine - enlarged(pictures.images, size))).abs().mean()
    return loss


def enlarged(images: Tensor, size: torch.Size) -> Tensor:
    """[V, 3, *size] from [V, 3, H, W], bilinear."""
    return F.interpolate(images, size=size, mode="bilinear")
