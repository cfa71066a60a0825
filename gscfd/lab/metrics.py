"""Quality metrics of the papers (docs/metrics.md), as functions of tensors: no networks, no files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from scipy.ndimage import grey_opening
from torch import Tensor

from gscfd.types import Cameras, Render

FRONT, AWAY = 75.0, 105.0
"""Degrees from the front: views up to FRONT show the front, views from AWAY on show the other side."""
OPAQUE = 0.5
"""Opacity above which a pixel shows the object."""


def r_precision(similarity: Tensor, truth: int) -> float:
    """Returns the share of views [V, P] to which no caption is more similar than number `truth` (Consistent3D's CLIP
    R-precision). Captions that read alike, such as in capitals, do not take views from each other."""
    return (similarity[:, truth] >= similarity.amax(1)).double().mean().item()


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] of features, in float64."""

    mean: Tensor
    covariance: Tensor

    @cached_property
    def root(self) -> Tensor:
        """[D, D] symmetric square root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
        return root


def moments(features: Tensor) -> Moments:
    """Returns the moments of features [N, D], N >= 2; the covariance divides by N - 1."""
    features = features.double()
    return Moments(features.mean(0), features.T.cov())


def frechet_distance(one: Moments, other: Moments) -> float:
    """Returns |m1 - m2|^2 + tr(C1 + C2 - 2 (C2^1/2 C1 C2^1/2)^1/2), which is FID for Inception features (Heusel et al.
    2017, Eq. 6)."""
    product = other.root @ one.covariance @ other.root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    spread = one.covariance.trace() + other.covariance.trace() - 2 * cross
    distance: Tensor = (one.mean - other.mean).square().sum() + spread
    return distance.item()


def inception_score(probabilities: Tensor, splits: int) -> float:
    """Returns exp of the mean KL divergence of p(y|x) from p(y) (Salimans et al. 2016), averaged over the splits.

    probabilities: [N, classes], N >= splits, each row summing to 1. The result is 1 if all rows are equal or all are
    uniform, and at most N / splits.
    """
    scores = []
    for part in probabilities.double().tensor_split(splits):
        mean = part.mean(0, keepdim=True)
        divergence = torch.xlogy(part, part) - torch.xlogy(part, mean)
        scores.append(divergence.sum(1).mean().exp().item())
    return sum(scores) / len(scores)


def diversity(features: Tensor, counts: Tensor | None = None) -> float:
    """Returns the mean of 1 - cosine similarity over all pairs of objects seen from the same side.

    features: [S, V, D] of S >= 2 objects from V sides, of unit length. counts: [S] multiplicity of each object; copies
    of one object form no pair. 0 means that all objects are equal. NaN: the counts leave no pair.
    """
    if len(features) < 2:
        raise ValueError(f"features: expected at least 2 objects, got {len(features)}")
    features = features.double()
    apart = 1 - torch.einsum("svd,tvd->st", features, features) / features.shape[1]
    weight = torch.ones(len(features)) if counts is None else counts
    first, second = torch.triu_indices(len(features), len(features), 1)
    pairs = (weight[first] * weight[second]).double()
    return ((apart[first, second] * pairs).sum() / pairs.sum()).item()


def janus(features: Tensor, azimuths: Tensor, true_features: Tensor, true_azimuths: Tensor) -> float:
    """Returns the share of the views from behind that look like the front, whose most similar true view shows the
    front.

    features: [V, D] of unit length, azimuths: [V] degrees from the front; true_features: [N, D], true_azimuths: [N] of
    correct objects. Behind: at least 105 degrees from the front; front: at most 75. An object with two similar sides
    cannot be wrong: compare with the share for true objects. NaN: no view is behind.
    """
    behind = turned(azimuths) >= AWAY
    nearest = (features @ true_features.T).argmax(1)
    return (turned(true_azimuths)[nearest][behind] <= FRONT).double().mean().item()


def turned(azimuths: Tensor) -> Tensor:
    """Returns degrees away from the front, in [0, 180]."""
    return ((azimuths + 180) % 360 - 180).abs()


def reprojection_error(render: Render, cameras: Cameras, *, background: float, tolerance: float = 0.05) -> float:
    """Returns the mean color difference, in [0, 1], between the pixels of each view and the same points in the next
    view, reprojected by the rendered depth (the last view's next is the first).

    Only pixels that show the object count, except points that the next view hides behind something nearer, by more than
    `tolerance` world units, or that lie outside it. background: gray level behind both. NaN: nothing to compare.
    """
    images, opacity, depth = render.over(torch.tensor(background)), render.opacity[..., 0], render.depth[..., 0]
    nexts = torch.arange(1, len(cameras) + 1) % len(cameras)
    found = reprojected(depth, cameras, nexts)
    grid = 2 * found[..., :2] / torch.tensor([cameras.width, cameras.height]) - 1
    shown = sampled(images.permute(0, 3, 1, 2)[nexts], grid, "bilinear").permute(0, 2, 3, 1)
    covered, nearest = sampled(torch.stack([opacity, depth], 1)[nexts], grid, "nearest").unbind(1)
    hidden = (covered > OPAQUE) & (nearest < found[..., 2] - tolerance)
    inside = (grid.abs().amax(-1) <= 1) & (found[..., 2] > 0)
    compared = (opacity > OPAQUE) & inside & ~hidden
    return (images - shown).abs().mean(-1)[compared].double().mean().item()


def reprojected(depth: Tensor, cameras: Cameras, nexts: Tensor) -> Tensor:
    """Returns the column, row and depth in camera nexts[v] of the point at each pixel of view v, [V, H, W, 3].

    depth: [V, H, W] of the views.
    """
    rows, columns = torch.meshgrid(torch.arange(cameras.height), torch.arange(cameras.width), indexing="ij")
    pixels = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)], -1).float()
    rays = torch.einsum("vij,hwj->vhwi", torch.linalg.inv(cameras.Ks), pixels)
    turn, shift = cameras.viewmats[:, :3, :3], cameras.viewmats[:, :3, 3]
    world = torch.einsum("vji,vhwj->vhwi", turn, rays * depth[..., None] - shift[:, None, None])
    there = torch.einsum("vij,vhwj->vhwi", turn[nexts], world) + shift[nexts][:, None, None]
    projected = torch.einsum("vij,vhwj->vhwi", cameras.Ks[nexts], there)
    return torch.cat([projected[..., :2] / projected[..., 2:].clamp_min(1e-6), there[..., 2:]], -1)


def sampled(images: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Samples images [V, C, h, w] at grid [V, H, W, 2] in [-1, 1]; returns [V, C, H, W]."""
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def hole_share(render: Render, *, width: float = 0.07, step: float = 0.1) -> float:
    """Returns the share of the object's pixels in holes: narrow places where the surface is open to the background or
    to a point at least `step` world units deeper (FSD Fig. 6).

    It is the white top-hat of the depth: places too narrow for a square of `width` image widths. True openings and gaps
    of this width count too: compare with the share for true objects. NaN: an empty picture.
    """
    shown = render.opacity[..., 0] > OPAQUE
    far = render.depth.max() + 2 * step
    depth = torch.where(shown, render.depth[..., 0], far)
    side = 2 * round(width * depth.shape[-1] / 2) + 1
    around = F.pad(depth, (side,) * 4, value=far.item())
    opened = torch.from_numpy(grey_opening(around.numpy(), size=(1, side, side)))[:, side:-side, side:-side]
    holes = depth - opened >= step
    return (holes.sum() / (shown | holes).sum()).item()


def haze(opacity: Tensor) -> float:
    """Returns sum(o (1 - o)) / sum(o) over all pixels of opacities in [0, 1] of any shape: 0 if every pixel is solid or
    empty, 1 - o for fog of opacity o. The soft edge of a solid object counts too. NaN: an empty picture."""
    opacity = opacity.double()
    return ((opacity * (1 - opacity)).sum() / opacity.sum()).item()


def strays(opacity: Tensor, true_opacity: Tensor, *, least: float = 0.1, margin: float = 0.03) -> float:
    """Returns the share of the splat's pixels, those of an opacity above `least`, that are further from the true object
    than `margin` image widths: floaters, and what hangs in the air.

    opacity, true_opacity: [V, H, W, 1] of the same views. NaN: an empty picture.
    """
    reach = round(margin * opacity.shape[2])
    true = (true_opacity[..., 0] > least).to(opacity.dtype)[:, None]
    near = F.max_pool2d(true, 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
    shown = opacity[..., 0] > least
    return (shown & ~near).sum().item() / shown.sum().item() if shown.any() else math.nan


def psnr(images: Tensor, others: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two stacks of images in [0, 1]; inf where they are equal."""
    return -10 * (images - others).square().mean().double().log10().item()


def speckle(images: Tensor, *, background: float) -> float:
    """Median over the object's inner pixels of the distance, in [0, 1], between a pixel and the mean of the 5 x 5
    around it.

    images: [V, 3, H, W] in [0, 1] over a gray. Inner pixels have the object on all of the 11 x 11 around them. True
    objects have some, too: compare with theirs. NaN: no inner pixel.
    """
    shown = ((images - background).abs().amax(1, keepdim=True) > 0.04).to(images.dtype)
    solid = F.avg_pool2d(shown, 3, stride=1, padding=1)
    inner = -F.max_pool2d(-solid, 9, stride=1, padding=4) > 0.99
    around = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    distance = (images - around).abs().mean(1, keepdim=True)
    return distance[inner].median().item() if inner.any() else math.nan


def win_rate(ours: Tensor, theirs: Tensor) -> float:
    """Returns the share of pairs [N] in which ours has the higher score; ties count half."""
    return ((ours > theirs).double() + 0.5 * (ours == theirs).double()).mean().item()
