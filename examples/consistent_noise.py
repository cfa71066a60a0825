"""Draws surface noise for two views of a sphere and measures how well they agree: the more the smaller the angle.

python examples/consistent_noise.py --angles 0 5 10
"""

import torch
import tyro
from torch import Tensor
from torch.nn.functional import normalize

from gscfd import Cameras, Gaussians, NoiseField, surface
from gscfd.cameras import orbit

points = normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)  # on a sphere


def read(image: Tensor, cameras: Cameras, view: int, at: Tensor) -> Tensor:
    """Returns the values [C, n] of an image [V, C, h, w] where a view sees the points `at` [n, 3]."""
    seen = (at @ cameras.viewmats[view, :3, :3].T + cameras.viewmats[view, :3, 3]) @ cameras.Ks[view].T
    x, y = (seen[:, :2] / seen[:, 2:] * image.shape[-1] / cameras.width).long().unbind(1)
    return image[view][:, y, x]


def main(angles: tuple[float, ...] = (0.0, 5.0, 10.0, 20.0, 40.0), latent: int = 32, size: int = 256) -> None:
    """angles: degrees between the views. latent, size: pixels per side of the noise and of the render."""
    zeros, two, quats = torch.zeros(len(points), 1, 3), torch.ones(2), torch.eye(4)[:1].repeat(len(points), 1)
    gaussians = Gaussians(points, quats, zeros[:, 0] - 3, zeros[:, 0, 0] + 6, zeros, zeros[:, :0])
    for angle in angles:
        cameras = orbit(torch.tensor([0.0, angle]), 0 * two, 3 * two, 45 * two, size, size)
        render = gaussians.render(cameras)
        facing = points[(points @ -cameras.viewmats[:, 2, :3].T > 0.6).all(1)]  # seen in both views
        first, second = (surface(NoiseField(seed, 16, latent, latent), cameras, render, 0) for seed in (0, 1))
        pairs = [(read(first, cameras, 0, facing), read(noise, cameras, 1, facing)) for noise in (first, second)]
        same, control = (torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in pairs)
        print(f"{angle:3.0f} degrees: correlation {same:.2f}, with another seed {control:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
