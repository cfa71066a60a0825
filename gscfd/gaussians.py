"""The splat: parameters of the 3D Gaussians, their initialization and their rasterization."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import Parameter, ParameterDict

from gscfd import outlets
from gscfd.harmonics import SH_C0
from gscfd.ply import read_tensors, write_tensors
from gscfd.rasterize import EPS2D, rasterization, view_colors
from gscfd.types import Cameras, Render


class Gaussians:
    """N Gaussians in the storage convention of 3DGS (Kerbl et al. 2023): log scales, logit opacities, SH color.

    The world has z up and the object's front at +x; gscfd's objects roughly fill the unit ball. `len(gaussians)` is N.
    `params` holds copies of the six tensors as parameters; it is a dictionary because gsplat's densification strategies
    replace its entries. Raises ValueError for shapes other than those below.
    """

    def __init__(self, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh0: Tensor, shN: Tensor):
        n = means.shape[0] if means.ndim else 0
        expected = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "sh0": (n, 1, 3)}
        given = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "sh0": sh0}
        for name, shape in expected.items():
            if tuple(given[name].shape) != shape:
                raise ValueError(f"{name}: expected shape {list(shape)}, got {list(given[name].shape)}")
        if tuple(shN.shape[:1]) != (n,) or shN.shape[1:] not in {(0, 3), (3, 3), (8, 3), (15, 3)}:
            raise ValueError(f"shN: expected [{n}, 0 | 3 | 8 | 15, 3] for degree 0 to 3, got {list(shN.shape)}")
        self.params = ParameterDict({k: Parameter(v.detach().clone()) for k, v in {**given, "shN": shN}.items()})

    def _parameter(self, name: str) -> Tensor:
        value: Tensor = self.params[name]
        return value

    @property
    def means(self) -> Tensor:
        """[N, 3] positions of the centers, in world units."""
        return self._parameter("means")

    @property
    def quats(self) -> Tensor:
        """[N, 4] rotations: wxyz quaternions, not necessarily of unit length."""
        return self._parameter("quats")

    @property
    def scales(self) -> Tensor:
        """[N, 3] natural logarithms of the standard deviations, in world units, along the Gaussian's own axes."""
        return self._parameter("scales")

    @property
    def opacities(self) -> Tensor:
        """[N] opacity logits: opacity = sigmoid(opacities), in (0, 1)."""
        return self._parameter("opacities")

    @property
    def sh0(self) -> Tensor:
        """[N, 1, 3] constant color coefficients: rgb = 0.5 + 0.2821 sh0 if the color does not depend on the view."""
        return self._parameter("sh0")

    @property
    def shN(self) -> Tensor:
        """[N, K - 1, 3] view-dependent coefficients of the spherical harmonics; K = 1, 4, 9 or 16 for degree 0 to 3."""
        return self._parameter("shN")

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics, 0 to 3."""
        return math.isqrt(self.shN.shape[1] + 1) - 1

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.means.device

    def __len__(self) -> int:
        return self.means.shape[0]

    def __repr__(self) -> str:
        return f"Gaussians({len(self)}, sh_degree={self.sh_degree}, device={str(self.device)!r})"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        """Returns text and a picture of the splat, for notebooks."""
        return {"text/plain": repr(self), "image/png": outlets.find("picture")(self)}

    def show(self) -> Any:
        """Shows the splat as a page that turns it: in a notebook's cell, otherwise in the browser. Returns the cell's
        content, or None."""
        return outlets.find("show")(self)

    def save(self, path: str | Path, **options: Any) -> None:
        """Writes the splat in the format that the name ends in, such as .ply, .spz, .glb, .html, .mesh.glb or .mp4.

        path: replaced if it exists. options: as `gscfd export` takes them, such as axes="y-up" or scale=0.1. Raises
        UserError for an unknown ending, a wrong option, or a file that cannot be written.
        """
        outlets.find("save")(self, path, **options)

    @torch.no_grad()
    def clip_colors(self) -> None:
        """Clips the constant colors to [0, 1], in place.

        Without this, Gaussians become whiter than white to compensate for darker ones in front, which shows as rings
        and specks.
        """
        self.sh0.clamp_(-0.5 / SH_C0, 0.5 / SH_C0)

    def tensors(self) -> dict[str, Tensor]:
        """Returns detached copies of all parameters, by name."""
        return {name: value.detach().clone() for name, value in self.params.items()}

    def render(self, cameras: Cameras) -> Render:
        """Renders the views of these cameras without gradient, with gsplat on CUDA and gscfd's rasterizer on the CPU.

        cameras: on any device.
        """
        with torch.no_grad():
            return rasterize(self, cameras.to(self.device))

    def save_ply(self, path: str | Path) -> None:
        """Writes a standard 3DGS .ply (binary, little-endian), completely or not at all. Raises OSError on failure."""
        write_tensors(self.tensors(), path)

    @staticmethod
    def load_ply(path: str | Path) -> Gaussians:
        """Returns the splat in a 3DGS .ply from any program, unchanged, on the CPU.

        Raises UserError if the file cannot be read or is not a 3DGS .ply.
        """
        return Gaussians(**read_tensors(path))


def load(path: str | Path) -> Gaussians:
    """Returns the splat of a run folder, or of a 3DGS .ply from any program, on the CPU.

    Raises UserError if there is none, or it cannot be read.
    """
    path = Path(path)
    return Gaussians.load_ply(path / "splat.ply" if path.is_dir() else path)


def ball(count: int, *, radius: float, opacity: float, sh_degree: int = 0, generator: torch.Generator) -> Gaussians:
    """Returns gray Gaussians distributed uniformly in a ball; the size of each is the mean distance to its three
    nearest neighbors.

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


def rasterize(
    gaussians: Gaussians, cameras: Cameras, *, eps2d: float = EPS2D, absgrad: bool = False, depth_variance: bool = False
) -> Render:
    """Renders a splat: color over black, depth divided by opacity, opacity, and median depth if the device's rasterizer
    computes it.

    gaussians, cameras: on the same device. eps2d, absgrad: as in `rasterization`. depth_variance: render it too.
    """
    colors, degree = torch.cat([gaussians.sh0, gaussians.shN], 1), None if depth_variance else gaussians.sh_degree
    if depth_variance:
        seen = view_colors(gaussians.means, colors, cameras.viewmats, gaussians.sh_degree)
        colors = torch.cat([seen, _relative_depth_moments(gaussians, cameras)], -1)
    images, alphas, info = rasterization(
        gaussians.means, gaussians.quats, gaussians.scales.exp(), gaussians.opacities.sigmoid(), colors,
        cameras.viewmats, cameras.Ks, cameras.width, cameras.height, sh_degree=degree, eps2d=eps2d, absgrad=absgrad,
    )  # fmt: skip
    variance = None
    if depth_variance:
        first, second = (images[..., 3:5] / alphas.clamp(min=1e-6)).split(1, dim=-1)
        variance = (second - first.square()).clamp(min=0)
    return Render(images[..., :3], images[..., -1:], alphas, info.get("median_depth"), variance, info)


def _relative_depth_moments(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """Returns each Gaussian's depth less that of the world's origin, and its square, [V, N, 2]. The difference changes
    no variance; squares stay small with it, and so do rounding errors."""
    depth = cameras.viewmats[:, 2, :3] @ gaussians.means.T
    return torch.stack([depth, depth.square()], -1)
