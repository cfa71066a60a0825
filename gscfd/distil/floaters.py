"""Removes floaters at the end of a stage: islands, and films.

Islands are small groups of Gaussians that the views of the stage hardly see. They come from corners that few views
show, where no gradient moves or fades them. Hidden Gaussians inside the object stay: they are part of it, and close the
holes of the surface. Films are faint Gaussians in the air and in openings, which the steps have not finished fading.
Faint Gaussians before the object stay.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import Parameter

from gscfd.cameras import sample_group
from gscfd.config import TeacherStage
from gscfd.distil.protocols import Rasterize
from gscfd.gaussians import Gaussians
from gscfd.harmonics import SH_C0
from gscfd.types import Cameras

GAP = 0.12
"""World units between the centers of Gaussians that hang together, at most; of a sparse splat, as many times the median
distance to the nearest neighbor as SPARSE."""
SPARSE = 4
CELLS = 4
"""Cells of the gap, each way: Gaussians in one cell count as one."""
LEAST_SHARE = 0.002
"""Share of all that the views see below which an island goes."""
FAINT = 0.05
"""Opacity below which a Gaussian can be part of a film."""
THIN, THIN_SHARE = 0.25, 0.1
"""Opacity below which a pixel shows nothing solid, and share of what is seen of a Gaussian that such pixels show, above
which it hangs before nothing."""
GROUPS = 12
"""Groups of views in which the stage's views are looked at."""


def remove_floaters(gaussians: Gaussians, stage: TeacherStage, rasterize: Rasterize, *, size: int, seed: int) -> int:
    """Removes islands and films from what the stage's views see, in place. Returns the number of Gaussians removed.

    size: pixels of the views, both ways. seed: of the views.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = torch.zeros(2, len(gaussians), device=gaussians.device)
    for _ in range(GROUPS):
        group = sample_group(
            stage.views,
            elevation=stage.elevation,
            fov=stage.fov,
            radius=stage.radius,
            size=size,
            generator=generator,
        )
        seen += contributions(gaussians, group.to(gaussians.device), rasterize)
    total, thin = seen.cpu()
    solid = supported(islands(gaussians.means.detach()), total)
    kept = solid & ~films(gaussians.opacities.detach().cpu().sigmoid(), total, thin)
    kept = kept if kept.any() else solid
    if not kept.all():
        keep = kept.to(gaussians.device)
        for name, value in gaussians.params.items():
            gaussians.params[name] = Parameter(value.detach()[keep])
    return int((~kept).sum())


def contributions(gaussians: Gaussians, cameras: Cameras, rasterize: Rasterize) -> Tensor:
    """Returns [2, N], the sums of each Gaussian's compositing weights over all pixels of the views, and over those
    whose opacity is below THIN.

    A pixel's color is the weighted sum of the colors: its derivative by a color is the weight. All colors are gray
    here, since black ones, where they are clipped, have no derivative.
    """
    none = torch.zeros(len(gaussians), 1, 3, device=gaussians.device)
    gray = Gaussians(**{**gaussians.tensors(), "sh0": none, "shN": none[:, :0]})
    render = rasterize(gray, cameras)
    thin = render.opacity.detach() < THIN
    (gradient,) = torch.autograd.grad(render.rgb[..., 0].sum() + (render.rgb[..., 1:2] * thin).sum(), gray.sh0)
    return gradient[:, 0, :2].T / SH_C0


def films(opacities: Tensor, total: Tensor, thin: Tensor) -> Tensor:
    """Returns [N], whether a Gaussian is part of a film. opacities: [N] in (0, 1). total, thin: [N] of
    `contributions`."""
    return (opacities < FAINT) & (thin > THIN_SHARE * total)


def islands(means: Tensor) -> np.ndarray:
    """Returns [N], the number of the island that each point [N, 3] is part of."""
    points = means.cpu().numpy()
    distances = cKDTree(points).query(points, k=2)[0][:, 1]  # of one alone: infinite
    gap = max(GAP, SPARSE * float(np.median(distances))) if len(points) > 1 else GAP
    # By cells and not by nearest neighbors: those of a Gaussian that was cloned often are its clones.
    places = np.unique(np.floor(points / (gap / CELLS)), axis=0, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(places)
    centers = np.stack([np.bincount(places, weights=axis) / sizes for axis in points.T], axis=1)
    ones, others = cKDTree(centers).query_pairs(gap, output_type="ndarray").T
    links = coo_matrix((np.ones(len(ones)), (ones, others)), shape=(len(sizes), len(sizes)))
    labels: np.ndarray = connected_components(links, directed=False)[1][places]
    return labels


def supported(labels: np.ndarray, seen: Tensor) -> Tensor:
    """Returns [N], whether a Gaussian's island is seen enough. labels: [N] of `islands`. seen: [N] contributions."""
    shares = np.bincount(labels, weights=seen.double().numpy())
    return torch.from_numpy(shares >= LEAST_SHARE * shares.sum())[labels]
