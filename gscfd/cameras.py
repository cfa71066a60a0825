"""Orbit cameras around the object, and the camera matrices that multi-view teachers read.

The world is right-handed with z up; the object fills the unit ball. A camera at azimuth a, elevation e and distance d
is at d (cos e cos a, cos e sin a, sin e) and looks at the origin. The object's front faces +x (a = 0).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gscfd.types import Cameras


def orbit(azimuth: Tensor, elevation: Tensor, distance: Tensor, fov: Tensor, width: int, height: int) -> Cameras:
    """Returns V cameras that look at the origin.

    azimuth, elevation: [V] degrees. distance: [V] world units. fov: [V] vertical field of view in degrees.
    """
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    backward = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
    right = torch.stack([-a.sin(), a.cos(), torch.zeros_like(a)], -1)
    down = torch.linalg.cross(-backward, right, dim=-1)
    rotation = torch.stack([right, down, -backward], 1)
    viewmats = torch.eye(4, dtype=azimuth.dtype, device=azimuth.device).repeat(len(azimuth), 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3] = -(rotation @ (backward * distance[:, None])[..., None])[..., 0]
    focal = 0.5 * height / torch.tan(torch.deg2rad(fov) / 2)
    Ks = torch.zeros_like(viewmats[:, :3, :3])
    Ks[:, 0, 0] = Ks[:, 1, 1] = focal
    Ks[:, 0, 2], Ks[:, 1, 2], Ks[:, 2, 2] = width / 2, height / 2, 1
    return Cameras(viewmats, Ks, width, height)


def sample_group(
    views: int,
    *,
    elevation: tuple[float, float],
    fov: tuple[float, float],
    radius: tuple[float, float],
    size: int,
    generator: torch.Generator,
) -> Cameras:
    """Returns a group of views at equal azimuth steps from a random start (MVDream, Shi et al. 2023).

    elevation, fov: ranges in degrees; one uniform draw for the whole group. radius: range of r in the camera distance
    r / tan(fov / 2), which makes an object in the unit ball fill roughly the same part of every image. size: image
    width and height in pixels.
    """

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64)

    azimuth = (torch.arange(views) + draw(0.0, 1.0)) * (360.0 / views) - 180.0
    shared_elevation, shared_fov = draw(*elevation), draw(*fov)
    distance = draw(*radius) / torch.tan(torch.deg2rad(shared_fov) / 2)
    ones = torch.ones(views, dtype=torch.float64)
    cameras = orbit(azimuth, shared_elevation * ones, distance * ones, shared_fov * ones, size, size)
    return Cameras(cameras.viewmats.float(), cameras.Ks.float(), size, size)


RADIUS = 1.05
"""World units from the center to the edge of an image; at this scale objects are as large as teachers draw them."""


def turntable(
    views: int, *, size: int, elevation: float = 15.0, fov: float = 40.0, radius: float = RADIUS, start: float = 0.0
) -> Cameras:
    """Returns cameras at equal azimuth steps.

    size: image width and height in pixels. elevation, fov: degrees. radius: world units from an image's center to its
    edge. start: azimuth of the first camera in degrees, 0 at the front.
    """
    azimuth = torch.arange(views) * (360.0 / views) + start
    ones = torch.ones(views)
    distance = radius / math.tan(math.radians(fov) / 2)
    return orbit(azimuth, elevation * ones, distance * ones, fov * ones, size, size)


def azimuth_elevation(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Returns the azimuth [V], in (-180, 180], and elevation [V] of each camera in degrees."""
    position = camera_to_world(cameras)[:, :3, 3]
    azimuth = torch.rad2deg(torch.atan2(position[:, 1], position[:, 0]))
    return azimuth, torch.rad2deg(torch.asin(position[:, 2] / position.norm(dim=-1)))


def camera_to_world(cameras: Cameras) -> Tensor:
    """Returns the camera-to-world matrices [V, 4, 4], with OpenCV axes."""
    rotation = cameras.viewmats[:, :3, :3].transpose(1, 2)
    matrices = torch.zeros_like(cameras.viewmats)
    matrices[:, :3, :3] = rotation
    matrices[:, :3, 3] = -(rotation @ cameras.viewmats[:, :3, 3:])[..., 0]
    matrices[:, 3, 3] = 1
    return matrices


def mvdream_matrices(cameras: Cameras) -> Tensor:
    """Returns MVDream's camera input [V, 16]: camera-to-world matrices with OpenGL axes, the position scaled to unit
    length, in row-major order."""
    matrices = camera_to_world(cameras)
    matrices[:, :3, 1:3] *= -1
    matrices[:, :3, 3] /= matrices[:, :3, 3].norm(dim=-1, keepdim=True)
    return matrices.flatten(1)


def mv_adapter_labels(cameras: Cameras) -> Tensor:
    """Returns MV-Adapter's camera input [V, 6], the same at every pixel: the viewing direction and the direction of the
    position, in a world with z up and the front at -y, mapped from [-1, 1] to [0, 1].

    It is what its text-to-multi-view models were trained on, as rays of orthographic cameras (its public code).
    """
    matrices = camera_to_world(cameras)
    forward, position = matrices[:, :3, 2], torch.nn.functional.normalize(matrices[:, :3, 3], dim=-1)
    turned = [torch.stack([vector[:, 1], -vector[:, 0], vector[:, 2]], -1) for vector in (forward, position)]
    return (torch.cat(turned, -1) / 2 + 0.5).clamp(0, 1)
