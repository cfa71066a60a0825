"""Plain torch rasterizer with autograd in any float type: the reference for tests of the native one.

Slow and memory-hungry (every Gaussian is evaluated at every pixel); small images only. Formulas: EWA splatting (Zwicker
et al. 2001) and 3DGS (Kerbl et al. 2023), with gsplat's constants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gscfd.harmonics import spherical_harmonics
from gscfd.rasterize.kernels import max_alpha


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    camera_model: str = "pinhole",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns means2d [V, N, 2], conics [V, N, 3], depths [V, N], compensations [V, N] and whether each depth is
    between the planes [V, N]."""
    position = torch.einsum("vij,nj->vni", viewmats[:, :3, :3], means) + viewmats[:, None, :3, 3]
    depths = position[..., 2]
    visible = (depths >= near_plane) & (depths <= far_plane)
    x, y, z = torch.where(visible[..., None], position, torch.ones_like(position)).unbind(-1)

    fx, fy, cx, cy = (Ks[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    ratio_x = torch.clamp(x / z, -cx / fx - margin_x, (width - cx) / fx + margin_x)
    ratio_y = torch.clamp(y / z, -cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    if camera_model == "ortho":
        means2d = torch.stack([fx * x + cx, fy * y + cy], -1)
        entries = [fx + zero, zero, zero, zero, fy + zero, zero]
    else:
        means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
        entries = [fx / z, zero, -fx * ratio_x / z, zero, fy / z, -fy * ratio_y / z]
    jacobian = torch.stack(entries, -1).unflatten(-1, (2, 3))

    half = jacobian @ viewmats[:, None, :3, :3] @ (_rotation(quats) * scales[:, None, :])
    bare = half @ half.transpose(-1, -2)
    covariance = bare + eps2d * torch.eye(2, dtype=means.dtype)
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    det = a * c - b * b
    compensations = (torch.linalg.det(bare) / det).clamp_min(0).sqrt()
    return means2d, torch.stack([c, -b, a], -1) / det[..., None], z, compensations, visible


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB+ED",
    rasterize_mode: str = "classic",
    camera_model: str = "pinhole",
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Same as gscfd.rasterize.rasterization, on the CPU, in the type of its arguments.

    info holds means2d, conics, depths, opacities and median_depth.
    """
    projection = project(
        means, quats, scales, viewmats, Ks, width, height, near_plane=near_plane, far_plane=far_plane, eps2d=eps2d,
        camera_model=camera_model,
    )  # fmt: skip
    means2d, conics, depths, compensations, visible = projection
    views = viewmats.shape[0]
    opacities = opacities * compensations if rasterize_mode == "antialiased" else opacities.expand(views, -1)
    if sh_degree is not None:
        centers = -(viewmats[:, :3, :3].transpose(1, 2) @ viewmats[:, :3, 3:])[..., 0]
        colors = spherical_harmonics(sh_degree, means - centers[:, None], colors)
    channels = [colors.expand(views, -1, -1)] if "RGB" in render_mode else []
    if render_mode != "RGB":
        channels.append(depths[..., None])
    features = torch.cat(channels, -1)
    order = torch.argsort(depths.detach().float(), dim=1, stable=True)

    images = []
    for view in range(views):
        o = order[view]
        values = (
            means2d[view, o],
            conics[view, o],
            opacities[view, o] * visible[view, o],
            features[view, o],
            depths[view, o],
        )
        images.append(_composite(*values, width, height))
    rendered, alphas, medians = (torch.stack(parts) for parts in zip(*images, strict=True))
    if "ED" in render_mode:
        rendered = torch.cat([rendered[..., :-1], rendered[..., -1:] / alphas.clamp_min(1e-10)], -1)
    if backgrounds is not None and "RGB" in render_mode:
        d = backgrounds.shape[-1]
        behind = (1 - alphas) * backgrounds[:, None, None]
        rendered = torch.cat([rendered[..., :d] + behind, rendered[..., d:]], -1)
    info = {"means2d": means2d, "conics": conics, "depths": depths, "opacities": opacities, "median_depth": medians}
    return rendered, alphas, info


def _composite(
    means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor, depths: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Composites one view, Gaussians nearest first: [H, W, D] features, [H, W, 1] alpha, [H, W, 1] median depth."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([x, y], -1).to(means2d) + 0.5
    dx, dy = (pixels[:, :, None] - means2d).unbind(-1)
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = torch.clamp_max(opacities * torch.exp(-sigma), max_alpha())
    alpha = torch.where((alpha >= 1.0 / 255.0) & (sigma >= 0), alpha, 0.0)
    after = torch.cumprod(1 - alpha, -1)
    # Drop the Gaussian that would reduce transmittance to 1e-4, and all behind it.
    alpha = torch.where(after > 1e-4, alpha, 0.0)
    after = torch.cumprod(1 - alpha, -1)
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], -1)
    rendered = torch.einsum("hwn,nd->hwd", alpha * before, features)
    alphas = (1 - after[..., -1:]) if depths.numel() else torch.zeros_like(pixels[..., :1])
    crosses = (before >= 0.5) & (after < 0.5)
    return rendered, alphas, (crosses * depths.detach()).sum(-1, keepdim=True)


def _rotation(quats: Tensor) -> Tensor:
    """Returns the rotation matrices [N, 3, 3] of wxyz quaternions of any length."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
