"""Turntable images of a finished splat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from gscfd.cameras import camera_to_world, orbit, turntable
from gscfd.gaussians import Gaussians
from gscfd.types import Cameras, Render

WHOLE_RADIUS = 1.3
"""Half the width of an image in world units. Objects fill the teachers' views, and their tips reach beyond."""
THREE_QUARTERS = 30.0
"""Azimuth in degrees from which an object shows the most: its front and a side."""
SHADOW = 0.3
"""Share of the background's light that is missing below the middle of an object."""
SHADOW_SIZE, SHADOW_BLUR = 96, 7
"""Pixels of the shadow seen from above, and of the box that blurs it three times."""
LOWEST = 0.02
"""Share of the Gaussians that may lie below the ground."""
COARSER = 4
"""Pixels of the image per pixel of the shadow, which is soft."""
BATCH = 8
"""Frames rendered at a time."""


def turntable_frames(
    gaussians: Gaussians,
    frames: int,
    size: int,
    background: float | Sequence[float] | None = 1.0,
    radius: float = WHOLE_RADIUS,
    *,
    start: float = 0.0,
    shadow: bool = False,
) -> np.ndarray:
    """Renders one turn, [frames, size, size, 3] uint8, counter-clockwise seen from above.

    background: a gray level or RGB in [0, 1]; None: transparent, with opacity as a fourth channel. radius: half the
    width of an image in world units. start: azimuth of the first frame in degrees, 0 at the front. shadow: darken the
    background where the object, lit from above, shades the ground that it stands on; not for None.
    """
    cameras = turntable(frames, size=size, radius=radius, start=start)
    ground = Ground(gaussians) if shadow and background is not None else None
    images = []
    for i in range(0, frames, BATCH):
        batch = cameras[i : i + BATCH]
        render = gaussians.render(batch)
        if background is None:
            image = _transparent(render)
        else:
            behind = torch.as_tensor(background, dtype=render.rgb.dtype, device=render.rgb.device)
            image = render.over(behind if ground is None else behind * ground.light(batch).to(render.rgb.device))
        images.append((image.clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8))
    return np.concatenate(images)


class Ground:
    """The plane that a splat stands on, with the soft shadow of light from straight above."""

    def __init__(self, gaussians: Gaussians):
        far, half = 20.0, 1.5  # far enough for nearly parallel light; half the width of the shadow's picture
        fov = 2 * math.degrees(math.atan(half / far))
        azimuth, elevation, distance, angle = torch.tensor([0.0, 90.0, far, fov])[:, None]
        above = orbit(azimuth, elevation, distance, angle, SHADOW_SIZE, SHADOW_SIZE)
        shade = gaussians.render(above).opacity.cpu().permute(0, 3, 1, 2)
        for _ in range(3):
            shade = avg_pool2d(shade, SHADOW_BLUR, 1, SHADOW_BLUR // 2)
        self.shade, self.above = shade, above
        seen = gaussians.means.detach()[gaussians.opacities.detach() > 0].cpu()
        self.height = float(torch.quantile(seen[:, 2], LOWEST)) if len(seen) else 0.0

    def light(self, cameras: Cameras) -> Tensor:
        """Returns the light on the ground in each pixel of the views, [V, H, W, 1] in [1 - SHADOW, 1]; 1 above the
        horizon."""
        whole = (cameras.height, cameras.width)
        cameras = cameras.resized(*(max(side // COARSER, 1) for side in reversed(whole)))
        y, x = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
        pixels = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
        places = camera_to_world(cameras.to("cpu"))
        rays = (pixels @ torch.linalg.inv(cameras.Ks.cpu()).transpose(1, 2)) @ places[:, :3, :3].transpose(1, 2)
        eye = places[:, None, :3, 3]
        share = (self.height - eye[..., 2]) / rays[..., 2]
        point = eye + share[..., None] * rays
        matrix, focal = self.above.viewmats[0], self.above.Ks[0, 0, 0]
        seen = point @ matrix[:3, :3].T + matrix[:3, 3]
        at = seen[..., :2] / seen[..., 2:] * focal * (2 / SHADOW_SIZE)
        shade = grid_sample(self.shade.expand(len(cameras), -1, -1, -1), at[:, None], align_corners=False)[:, 0, 0]
        shade = torch.where(share > 0, shade, 0.0).reshape(len(cameras), 1, cameras.height, cameras.width)
        return 1 - SHADOW * interpolate(shade, size=whole, mode="bilinear").permute(0, 2, 3, 1)


def _transparent(render: Render) -> Tensor:
    """Returns straight (not premultiplied) color and opacity, [V, H, W, 4], as .png files store them."""
    return torch.cat([render.rgb / render.opacity.clamp_min(1e-6), render.opacity], -1)
