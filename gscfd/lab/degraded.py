"""What a feed-forward generator leaves to be refined: an asset, blurred, speckled and with too few Gaussians."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree

from gscfd.gaussians import Gaussians

NEIGHBORS = 24
"""Gaussians over whose colors a color is averaged."""
KEPT = 0.25
"""Share of the Gaussians that remain; they become larger by 1 / sqrt(KEPT), so that the surface stays covered."""
COLOR_NOISE, POSITION_NOISE = 0.4, 0.02
"""Standard deviations: of the coefficients of the constant colors, and in world units."""


def degraded(gaussians: Gaussians, seed: int = 0) -> Gaussians:
    """Returns the splat with blurred colors, a share of its Gaussians, and noise on colors and positions."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: value.cpu() for name, value in gaussians.tensors().items()}
    places = values["means"].numpy()
    near = cKDTree(places).query(places, k=min(NEIGHBORS, len(places)))[1].reshape(len(places), -1)
    values["sh0"] = values["sh0"][torch.from_numpy(near)].mean(1)
    kept = torch.randperm(len(places), generator=generator)[: max(round(KEPT * len(places)), 1)]
    values = {name: value[kept] for name, value in values.items()}
    values["scales"] = values["scales"] - 0.5 * torch.tensor(KEPT).log()
    values["sh0"] = values["sh0"] + COLOR_NOISE * torch.randn(values["sh0"].shape, generator=generator)
    values["means"] = values["means"] + POSITION_NOISE * torch.randn(values["means"].shape, generator=generator)
    return Gaussians(**values)
