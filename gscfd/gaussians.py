"""The splat: parameters of the 3D Gaussians, how they start, and their optimizers."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import Parameter, ParameterDict

from gscfd.harmonics import SH_C0
from gscfd.ply import read_tensors, write_tensors
from gscfd.rasterize import rasterization
from gscfd.types import Cameras, Render


class Gaussians:
    """N Gaussians in the storage convention of 3DGS (Kerbl et al. 2023): log scales, logit opacities, SH color.

    The world has z up and the object's front at +x; gscfd's objects fill about the unit ball. `len(gaussians)` is N.
    `params` holds copies of the six tensors as parameters; it is a dictionary because gsplat's densification strategies
    replace its entries. Raises ValueError for shapes other than those below.
    """

    def __init__(self, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh0: Tensor, shN: Tensor):
        n = means.shape[0]
        expected = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "sh0": (n, 1, 3)}
        given = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "sh0": sh0}
        for name, shape in expected.items():
            if tuple(given[name].shape) != shape:
                raise ValueError(f"{name}: expected shape {list(shape)}, got {list(given[name].shape)}")
        if shN.shape[0] != n or shN.shape[1:] not in {(0, 3), (3, 3), (8, 3), (15, 3)}:
            raise ValueError(f"shN: expected [{n}, 0 | 3 | 8 | 15, 3] for degree 0 to 3, got {list(shN.shape)}")
        self.params = ParameterDict({k: Parameter(v.detach().clone()) for k, v in {**given, "shN": shN}.items()})

    @property
    def means(self) -> Tensor:
        """[N, 3] positions of the centers, world units."""
        return self.params["means"]

    @property
    def quats(self) -> Tensor:
        """[N, 4] rotations, quaternions wxyz, not necessarily of unit length."""
        return self.params["quats"]

    @property
    def scales(self) -> Tensor:
        """[N, 3] natural logarithm of the standard deviations along the Gaussian's own axes, world units."""
        return self.params["scales"]

    @property
    def opacities(self) -> Tensor:
        """[N] logit of the opacity: opacity = sigmoid(opacities), in (0, 1)."""
        return self.params["opacities"]

    @property
    def sh0(self) -> Tensor:
        """[N, 1, 3] constant color coefficient: rgb = 0.5 + 0.2821 sh0, where nothing depends on the view."""
        return self.params["sh0"]

    @property
    def shN(self) -> Tensor:
        """[N, K - 1, 3] further coefficients of the spherical harmonics; K = 1, 4, 9 or 16 for degree 0 to 3."""
        return self.params["shN"]

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return math.isqrt(self.shN.shape[1] + 1) - 1

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.means.device

    def __len__(self) -> int:
        return self.means.shape[0]

    @torch.no_grad()
    def clip_colors(self) -> None:
        """Bring the constant colors back into [0, 1], in place.

        Left free, Gaussians turn whiter than white to make up for darker ones above them, and show as rings and specks.
        """
        self.sh0.clamp_(-0.5 / SH_C0, 0.5 / SH_C0)

    def tensors(self) -> dict[str, Tensor]:
        """Detached copies of all parameters, by name."""
        return {name: value.detach().clone() for name, value in self.params.items()}

    def render(self, cameras: Cameras) -> Render:
        """The views of these cameras, which may be on any device, without gradient.

        On CUDA by gsplat, on the CPU by gscfd's own rasterizer.
        """
        pass

        with torch.no_grad():
            return rasterize(self, cameras.to(self.device))

    def save_ply(self, path: str | Path) -> None:
        """Write the standard 3DGS binary little-endian .ply, in one piece or not at all. Raises OSError."""
        write_tensors(self.tensors(), path)

    @staticmethod
    def load_ply(path: str | Path) -> Gaussians:
        """The splat of a 3DGS .ply of any program, on the CPU, as it stands in the file.

        Raises UserError when the file cannot be read or is not one.
        """
        return Gaussians(**read_tensors(path))


def ball(count: int, *, radius: float, opacity: float, sh_degree: int = 0, generator: torch.Generator) -> Gaussians:
    """Gray Gaussians uniform in a ball, as large as the mean distance to their three nearest neighbors.

    radius: world units. opacity: in (0, 1).
    """
    direction = torch.randn(count, 3, generator=generator)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    means = radius * direction * torch.rand(count, 1, generator=generator) ** (1 / 3)
    distances = cKDTree(means.numpy()).query(means.numpy(), k=min(4, count))[0]
    spacing = torch.from_numpy(distances.reshape(count, -1)[:, 1:]).float()
    scale = spacing.mean(-1).clamp_min(1e-4) if spacing.shape[1] else torch.full((count,), radius)
    return Gaussians(
        means=means,
        quats=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        scales=scale.log()[:, None].repeat(1, 3),
        opacities=torch.full((count,), math.log(opacity / (1 - opacity))),
        sh0=0.1 * torch.randn(count, 1, 3, generator=generator),
        shN=torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3),
    )


def rasterize(gaussians: Gaussians, cameras: Cameras, *, absgrad: bool = False) -> Render:
    """Render a splat: color over black, depth divided by opacity, opacity, and median depth where the device gives it.

    gaussians and cameras on the same device. absgrad: as in `rasterization`.
    """
    colors, alphas, info = rasterization(
        gaussians.means, gaussians.quats, gaussians.scales.exp(), gaussians.opacities.sigmoid(),
        torch.cat([gaussians.sh0, gaussians.shN], 1), cameras.viewmats, cameras.Ks, cameras.width, cameras.height,
        sh_degree=gaussians.sh_degree, absgrad=absgrad,
    )  # fmt: skip
    return Render(colors[..., :3], colors[..., 3:], alphas, info.get("median_depth"), info)
