"""The ideal teacher: the exact denoiser of given assets. An instrument of the laboratory, not a teacher for users.

A trained teacher errs, and a splat's faults may be the teacher's or the pipeline's. The ideal teacher makes no errors:
its data are the views of K assets, so that its denoised image is the posterior mean over them, which is a softmax. One
asset measures convergence; several show which of them a seed picks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.prompts import Wording
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.schedules import Schedule
from gscfd.teachers.spaces import Space, resized
from gscfd.teachers.texts import TextFeatures
from gscfd.types import Cameras

ENCODED = 32
"""Images encoded at a time."""


# ------------------------------------------------------------------------------------------------------ posterior mean


def posterior_weights(
    x: Tensor, known: Tensor, alpha: float, sigma: float, *, joint: bool, shares: Tensor | None = None
) -> Tensor:
    """Returns p(k | x), [K, V], for x = alpha z_k + sigma eps: softmax over k of log p_k - |x - alpha z_k|^2 / (2
    sigma^2).

    x: [V, C, h, w]. known: [K, V, C, h, w], the z_k. joint: the views show one asset, else each is its own draw.
    shares: [K] prior probabilities p_k, up to a factor; None: equal. sigma: above 0.
    """
    distance = (x - alpha * known).square().flatten(2).sum(2, dtype=torch.float64)
    if joint:
        distance = distance.sum(1, keepdim=True).expand_as(distance)
    logits = -distance / (2 * sigma**2)
    if shares is not None:
        logits = logits + shares.to(logits).log()[:, None]
    return torch.softmax(logits, 0)


def posterior_mean(
    x: Tensor, known: Tensor, alpha: float, sigma: float, *, joint: bool, shares: Tensor | None = None
) -> Tensor:
    """Returns E[z | x], [V, C, h, w]: the known z, weighted by `posterior_weights`, with the same arguments."""
    weights = posterior_weights(x, known, alpha, sigma, joint=joint, shares=shares).to(known.dtype)
    return torch.einsum("kv,kvchw->vchw", weights, known)


# -------------------------------------------------------------------------------------------------------------- spaces


class Cosines:
    """A fixed linear space of any size: the lowest frequencies of the discrete cosine transform of every patch of
    2 x - 1, per color.

    z has the scale of pixels: the first three channels are the mean colors. If less than three channels are left for a
    frequency, they hold it and the next ones in gray. Decoding is the orthogonal projection: it leaves out what z
    lacks, and nothing if there are 3 patch^2 channels.
    """

    def __init__(self, size: int, *, patch: int, channels: int):
        """size: width and height in pixels, a multiple of patch. channels: 3 to 3 patch^2."""
        if size % patch or not 3 <= channels <= 3 * patch**2:
            raise ValueError(
                f"size, channels: expected a multiple of {patch} and 3 to {3 * patch**2}, got {size}, {channels}"
            )
        self.image_size, self.patch = size, patch
        self.latent_shape = (channels, size // patch, size // patch)
        basis = cosine_basis(patch)
        whole, rest = divmod(channels, 3)
        kernels = torch.zeros(channels, 3, patch, patch)
        for color in range(3):
            kernels[color : 3 * whole : 3, color] = basis[:whole] / patch
        kernels[3 * whole :] = basis[whole : whole + rest, None] / (3 * patch)
        self.kernels = kernels
        self.duals = kernels / kernels.square().sum((1, 2, 3), keepdim=True)
        """Decode what `kernels`, which are orthogonal, encode."""

    def encode(self, images: Tensor) -> Tensor:
        images = resized(images, self.image_size) * 2 - 1
        return F.conv2d(images, self.kernels.to(images), stride=self.patch)

    def decode(self, z: Tensor) -> Tensor:
        images = F.conv_transpose2d(z, self.duals.to(z), stride=self.patch)
        return (images / 2 + 0.5).clamp(0, 1)


def cosine_basis(patch: int) -> Tensor:
    """Returns the orthonormal functions of the two-dimensional DCT-II, [patch^2, patch, patch], lowest frequency
    first."""
    places = torch.arange(patch) + 0.5
    waves = torch.cos(math.pi / patch * torch.arange(patch)[:, None] * places)
    waves = F.normalize(waves, dim=1)
    pairs = sorted(((u, v) for u in range(patch) for v in range(patch)), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))
    return torch.stack([waves[u][:, None] * waves[v] for u, v in pairs])


class Watched:
    """A space that remembers the background of the images that it encoded last, which the protocol does not pass to the
    teacher."""

    def __init__(self, space: Space):
        self.space = space
        self.image_size, self.latent_shape = space.image_size, space.latent_shape
        self.background: Tensor | None = None

    def encode(self, images: Tensor) -> Tensor:
        self.background = border_color(images.detach())
        return self.space.encode(images)

    def decode(self, z: Tensor) -> Tensor:
        return self.space.decode(z)


def border_color(images: Tensor) -> Tensor:
    """Returns the median color [3] of the outermost pixels of images [V, 3, H, W]: their background, as long as the
    object covers less than half of the border."""
    edges = (images[..., 0, :], images[..., -1, :], images[..., :, 0], images[..., :, -1])
    return torch.cat(edges, -1).permute(1, 0, 2).flatten(1).median(1).values


# ------------------------------------------------------------------------------------------------------------- teacher


class IdealDenoiser:
    """The posterior mean over the assets, as the output of a network with this schedule: eps, or v.

    See `Denoiser`. It reads neither the text nor, beyond rendering, the cameras: all branches of guidance are equal.
    """

    text_width, pooled_width = 1, 0

    def __init__(
        self, assets: Sequence[Gaussians], shares: Tensor | None, space: Watched, schedule: Schedule, *, joint: bool
    ):
        self.assets, self.shares, self.space, self.schedule, self.joint = assets, shares, space, schedule, joint
        self.calls = 0
        self.seconds = 0.0
        """Processor time of all calls, which a trained network would replace."""
        self.cached: tuple[Cameras, Tensor, Tensor] | None = None
        """Cameras, background and `known` of the last call: samplers ask several times for one group."""

    def __call__(self, x: Tensor, t: int, text: TextFeatures, cameras: Cameras) -> Tensor:
        start = time.process_time()
        alpha, sigma = self.schedule.alpha_sigma(t)
        if sigma == 0:  # x is z, whatever it is
            z = x / alpha
            output = self.schedule.target(z, torch.zeros_like(z), t)
        else:
            known = self.known(cameras)
            means = [self.mean(group, known, alpha, sigma) for group in x.split(len(cameras))]
            z = torch.cat(means)
            output = self.schedule.target(z, (x - alpha * z) / sigma, t)
        self.calls += 1
        self.seconds += time.process_time() - start
        return output

    def mean(self, x: Tensor, known: Tensor, alpha: float, sigma: float) -> Tensor:
        return posterior_mean(x, known, alpha, sigma, joint=self.joint, shares=self.shares)

    @torch.no_grad()
    def known(self, cameras: Cameras) -> Tensor:
        """Returns z of every asset in these views, over the background of the images encoded last, [K, V, C, h, w].

        cameras: of any image size. Raises RuntimeError if nothing was encoded yet.
        """
        background = self.space.background
        if background is None:
            raise RuntimeError("predict_eps: encode an image first, whose background the views of the assets have")
        if self.cached is None or not same_views(self.cached, cameras, background):
            side = self.space.image_size
            views = cameras.resized(side, side)
            renders = [asset.render(views.to(asset.device)) for asset in self.assets]
            images = torch.cat([render.over(background.to(render.rgb.device)).clamp(0, 1) for render in renders])
            encoded = [self.space.space.encode(chunk) for chunk in images.permute(0, 3, 1, 2).split(ENCODED)]
            known = torch.cat(encoded).float().unflatten(0, (len(self.assets), len(cameras)))
            self.cached = cameras, background, known
        return self.cached[2]


def same_views(cached: tuple[Cameras, Tensor, Tensor], cameras: Cameras, background: Tensor) -> bool:
    """Returns whether the cached views have these cameras, apart from their image size, and this background."""
    before = cached[0]
    if len(before) != len(cameras) or not torch.equal(cached[1], background):
        return False
    same_lens = torch.equal(before.resized(1, 1).Ks, cameras.resized(1, 1).Ks)
    return same_lens and torch.equal(before.viewmats, cameras.viewmats)


def ideal_teacher(
    assets: Sequence[Gaussians],
    *,
    space: Space,
    schedule: Schedule,
    multiview: bool,
    shares: Sequence[float] | None = None,
) -> GuidedTeacher:
    """Returns the teacher whose data are the views of these assets.

    space, schedule: of a loaded teacher, or others: `Pixels`, `Cosines`. multiview: the views of a group show one
    asset; else each view is its own draw. shares: how often each asset occurs, up to a factor; None: equally often.

    The teacher denoises what its `encode` was given last, whose background the assets' views get. Raises UserError
    if there is no asset, and for shares that are not one positive number per asset.
    """
    if not assets:
        raise UserError("assets: expected at least 1 asset, got none; name a caption or a .ply file")
    if shares is not None and (len(shares) != len(assets) or min(shares) <= 0):
        raise UserError(f"shares: expected {len(assets)} positive numbers, one per asset, got {list(shares)}")
    watched = Watched(space)
    priors = None if shares is None else torch.tensor(shares, dtype=torch.float64)
    return GuidedTeacher(
        space=watched,
        denoiser=IdealDenoiser(list(assets), priors, watched, schedule, joint=multiview),
        schedule=schedule,
        encode_texts=lambda texts: [TextFeatures(torch.zeros(1, 1))] * len(texts),
        wording=Wording(view_words=False),
        multiview=multiview,
    )
