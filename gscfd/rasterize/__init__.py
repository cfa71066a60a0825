"""Renders Gaussians: gsplat on CUDA, gscfd's own native rasterizer on the CPU, behind gsplat's signature."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gscfd.harmonics import SH_C0
from gscfd.rasterize import cpu, kernels

RIGID = 1e-3
"""Largest deviation of a camera's R R^T from the identity."""
EPS2D = 0.3
"""Square pixels by which a splat is widened (3DGS), unless said otherwise."""
RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RasterizeMode = Literal["classic", "antialiased"]
CameraModel = Literal["pinhole", "ortho"]


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = EPS2D,
    sh_degree: int | None = None,
    packed: bool = False,
    tile_size: int | None = None,
    backgrounds: Tensor | None = None,
    render_mode: RenderMode = "RGB+ED",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: RasterizeMode = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: CameraModel = "pinhole",
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Renders N Gaussians in V views by alpha compositing (3DGS, Kerbl et al. 2023), with gradients.

    Names, order, meanings and info entries are those of gsplat.rasterization, which handles CUDA tensors; gsplat's
    arguments after camera_model are not there. Two defaults differ: gsplat's packed is True, and its render_mode "RGB".

    means: [N, 3] world positions. quats: [N, 4] wxyz, normalized here. scales: [N, 3] standard deviations, linear.
    opacities: [N] in [0, 1]. colors: [N, D] or [V, N, D]; with sh_degree 0 to 3, SH coefficients [N, K, 3] or [V, N, K,
    3] with K >= (sh_degree + 1)^2; None with render_mode "D" or "ED". viewmats: [V, 4, 4] world-to-camera; rigid with
    sh_degree. Ks: [V, 3, 3] in pixels, without skew. near_plane, far_plane: Gaussians at depths outside this range are
    dropped. radius_clip: splats with a radius of at most this many pixels are dropped. eps2d: added to the 2D
    covariance, square pixels. tile_size: 8 or 16 pixels; None chooses the size expected to be faster, always 16 on
    CUDA. backgrounds: [V, D], weighted by the remaining transmittance; depth has no background. render_mode: "RGB" is
    color, "D" is depth accumulated with the compositing weights, "ED" is that depth divided by alpha. packed,
    sparse_grad: memory for the visible splats alone, and sparse gradients with it; on CUDA only. absgrad: also
    accumulate the absolute gradients of means2d, in info["means2d"].absgrad after backward. rasterize_mode:
    "antialiased" multiplies the opacities by sqrt(det C / det (C + eps2d I)), with C the 2D covariance, so that a splat
    smaller than a pixel keeps its brightness (Mip-Splatting, Yu et al. 2024). channel_chunk: channels that gsplat
    renders at a time. distributed: only False. camera_model: "ortho" takes fx and fy of Ks as pixels per world unit
    and projects along z; colors of SH are those seen from the camera's position, as with "pinhole".

    Returns colors [V, H, W, D (+ 1)], alphas [V, H, W, 1] and info: means2d [V, N, 2] (call retain_grad for its
    gradient), radii [V, N, 2] int32 (0 if culled), depths, conics (no gradient), opacities (compensated, if
    antialiased), tile_width, tile_height, tiles_per_gauss, isect_ids (view, tile and bits of the depth in one int64),
    flatten_ids, isect_offsets, width, height, tile_size, n_cameras; on the CPU also median_depth [V, H, W, 1], the
    depth at which transmittance falls below one half, or 0 if it never does. On the CPU the tile lists hold only the
    tiles where a splat's alpha reaches 1/255; gsplat's hold those of its bounding box. The largest alpha of a splat is
    that of the installed gsplat.

    Gradients flow to means, quats, scales, opacities, colors and backgrounds; on the CPU not to viewmats and Ks. Raises
    ValueError for arguments of a wrong shape, type, device or range.
    """
    _check_geometry(means, quats, scales, opacities, viewmats, Ks)
    if colors is None:
        if render_mode not in ("D", "ED"):
            raise ValueError(f"colors: expected a tensor with render_mode {render_mode!r}, got None")
        colors, sh_degree = means.new_zeros(means.shape[0], 1), None
    channels = _check_colors(colors, sh_degree, means.shape[0], viewmats.shape[0])
    _check_settings(width, height, tile_size, backgrounds, render_mode, channels, viewmats.shape[0])
    _check_limits(near_plane, far_plane, radius_clip, eps2d)
    _check_modes(rasterize_mode, camera_model, channel_chunk, distributed)
    tensors = {"quats": quats, "scales": scales, "opacities": opacities, "colors": colors}
    tensors |= {"viewmats": viewmats, "Ks": Ks} | ({} if backgrounds is None else {"backgrounds": backgrounds})
    _check_device(means, tensors)

    if means.is_cuda:
        gsplat = cuda_renderer()
        if sh_degree == 0:
            colors, sh_degree = degree_zero(colors), None
        drawn: tuple[Tensor, Tensor, dict[str, Any]] = gsplat.rasterization(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=near_plane,
            far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d, sh_degree=sh_degree, packed=packed,
            tile_size=tile_size or 16, backgrounds=backgrounds, render_mode=render_mode,
            sparse_grad=sparse_grad, absgrad=absgrad, rasterize_mode=rasterize_mode, channel_chunk=channel_chunk,
            camera_model=camera_model,
        )  # fmt: skip
        return drawn

    _check_cpu(means, tensors, packed, sparse_grad)
    _check_cameras(viewmats, Ks, sh_degree)
    wants_color, wants_depth = "RGB" in render_mode, "D" in render_mode.split("RGB")[-1]
    if not wants_color:
        colors = means.new_empty(means.shape[0], 0)
    elif sh_degree is not None:
        colors = view_colors(means, colors, viewmats, sh_degree)
    rendered, alphas, info = cpu.rasterize_splats(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=near_plane,
        far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d, tile_size=tile_size,
        ortho=camera_model == "ortho", antialiased=rasterize_mode == "antialiased",
        depth_channel=wants_depth, expected="ED" in render_mode, absgrad=absgrad,
    )  # fmt: skip
    if backgrounds is not None and wants_color:
        behind = (1.0 - alphas) * backgrounds[:, None, None, :]
        rendered = torch.cat([rendered[..., :channels] + behind, rendered[..., channels:]], dim=-1)
    return rendered, alphas, info


def view_colors(means: Tensor, coefficients: Tensor, viewmats: Tensor, degree: int) -> Tensor:
    """Returns colors max(0, SH + 1/2) [V, N, 3] of SH coefficients [N, K, 3] or [V, N, K, 3] seen from the cameras.

    means: [N, 3]. viewmats: [V, 4, 4], rigid. degree: 0 to 3.
    """
    if not means.is_cuda:
        return cpu.harmonics(means, coefficients, viewmats, degree)
    if degree == 0:
        return degree_zero(coefficients).expand(viewmats.shape[0], -1, -1)
    directions = means - cpu.camera_centers(viewmats)[:, None]
    shape = (viewmats.shape[0], *coefficients.shape[-3:])
    seen: Tensor = cuda_renderer().spherical_harmonics(degree, directions, coefficients.expand(shape))
    return (seen + 0.5).clamp_min(0.0)


def degree_zero(coefficients: Tensor) -> Tensor:
    """Returns the colors of SH coefficients of degree 0, [..., K, 3] to [..., 3]: what gsplat's harmonics give, without
    its wait for the inverse of the cameras."""
    return (SH_C0 * coefficients[..., 0, :] + 0.5).clamp_min(0.0)


@functools.cache
def cuda_renderer() -> Any:
    """Returns gsplat with its CUDA kernels, compiled now if they never were, which takes minutes.

    Raises UserError if they are missing and cannot be compiled.
    """
    kernels.load()
    import gsplat

    return gsplat


def _check_geometry(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, viewmats: Tensor, Ks: Tensor
) -> None:
    if means.ndim != 2 or means.shape[1] != 3:
        raise ValueError(f"means: expected [N, 3], got {list(means.shape)}")
    if viewmats.ndim != 3 or viewmats.shape[1:] != (4, 4) or viewmats.shape[0] < 1:
        raise ValueError(f"viewmats: expected [V, 4, 4] with at least one view, got {list(viewmats.shape)}")
    n, views = means.shape[0], viewmats.shape[0]
    expected = {"quats": (n, 4), "scales": (n, 3), "opacities": (n,), "Ks": (views, 3, 3)}
    given = {"quats": quats, "scales": scales, "opacities": opacities, "Ks": Ks}
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape:
            source = "viewmats" if name == "Ks" else "means"
            raise ValueError(f"{name}: expected {list(shape)} to match {source}, got {list(given[name].shape)}")


def _check_colors(colors: Tensor, sh_degree: int | None, n: int, views: int) -> int:
    """Returns the number of color channels."""
    shape = tuple(colors.shape)
    if sh_degree is None:
        if shape[:-1] not in {(n,), (views, n)} or shape[-1] < 1:
            raise ValueError(
                f"colors: expected [{n}, D] or [{views}, {n}, D] with D >= 1, got {list(shape)};"
                " pass sh_degree if these are SH coefficients"
            )
        return shape[-1]
    if sh_degree not in {0, 1, 2, 3}:
        raise ValueError(f"sh_degree: expected None or 0 to 3, got {sh_degree}")
    bases = (sh_degree + 1) ** 2
    if shape[:-2] not in {(n,), (views, n)} or shape[-1] != 3 or shape[-2] < bases:
        raise ValueError(
            f"colors: expected SH coefficients [{n}, K, 3] or [{views}, {n}, K, 3] with K >= {bases}"
            f" for sh_degree {sh_degree}, got {list(shape)}"
        )
    return 3


def _check_settings(
    width: int,
    height: int,
    tile_size: int | None,
    backgrounds: Tensor | None,
    render_mode: str,
    channels: int,
    views: int,
) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"width, height: expected at least 1 pixel, got {width}, {height}")
    if tile_size not in {None, 8, 16}:
        raise ValueError(f"tile_size: expected None, 8 or 16, got {tile_size}")
    if render_mode not in get_args(RenderMode):
        raise ValueError(f"render_mode: expected one of {get_args(RenderMode)}, got {render_mode!r}")
    if backgrounds is not None and tuple(backgrounds.shape) != (views, channels):
        raise ValueError(f"backgrounds: expected {[views, channels]}, got {list(backgrounds.shape)}")


def _check_limits(near_plane: float, far_plane: float, radius_clip: float, eps2d: float) -> None:
    if not near_plane > 0:
        raise ValueError(f"near_plane: expected a positive depth, got {near_plane}")
    if not far_plane > near_plane:
        raise ValueError(f"far_plane: expected a depth beyond near_plane, {near_plane}, got {far_plane}")
    for name, value in (("radius_clip", radius_clip), ("eps2d", eps2d)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")


def _check_modes(rasterize_mode: str, camera_model: str, channel_chunk: int, distributed: bool) -> None:
    if rasterize_mode not in get_args(RasterizeMode):
        raise ValueError(f"rasterize_mode: expected one of {get_args(RasterizeMode)}, got {rasterize_mode!r}")
    if camera_model not in get_args(CameraModel):
        raise ValueError(
            f"camera_model: expected one of {get_args(CameraModel)}, got {camera_model!r}; call gsplat.rasterization "
            "for its other cameras"
        )
    if channel_chunk < 1:
        raise ValueError(f"channel_chunk: expected at least 1 channel, got {channel_chunk}")
    if distributed:
        raise ValueError("distributed: expected False, got True; call gsplat.rasterization in a distributed program")


def _check_cameras(viewmats: Tensor, Ks: Tensor, sh_degree: int | None) -> None:
    """The values of the cameras; on CUDA, reading them would stall the host."""
    if not viewmats.isfinite().all() or not Ks.isfinite().all():
        raise ValueError("viewmats, Ks: expected finite numbers")
    last = Ks.new_tensor([0.0, 0.0, 1.0])
    if Ks[:, 0, 1].any() or Ks[:, 1, 0].any() or (Ks[:, 2] != last).any():
        raise ValueError("Ks: expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got skew or another last row")
    turn = viewmats[:, :3, :3]
    error = (turn @ turn.transpose(1, 2) - torch.eye(3)).abs().max().item()
    if sh_degree and error > RIGID:
        raise ValueError(
            f"viewmats: expected rotations with sh_degree, whose colors depend on the direction, got matrices "
            f"{error:.2g} from one; scale the means and scales instead"
        )


def _check_device(means: Tensor, tensors: dict[str, Tensor]) -> None:
    if means.device.type not in {"cpu", "cuda"}:
        raise ValueError(f"means: expected a CPU or CUDA tensor, got device {means.device}; move the tensors to one")
    for name, tensor in tensors.items():
        if tensor.device != means.device:
            raise ValueError(f"{name}: expected device {means.device} like means, got {tensor.device}; use .to()")


def _check_cpu(means: Tensor, tensors: dict[str, Tensor], packed: bool, sparse_grad: bool) -> None:
    for name, tensor in {"means": means, **tensors}.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name}: expected torch.float32 on the CPU, got {tensor.dtype}; use .float()")
    for name in ("viewmats", "Ks"):
        if tensors[name].requires_grad:
            raise ValueError(f"{name}: the CPU rasterizer has no gradient for cameras; pass {name}.detach()")
    for name, wanted in (("packed", packed), ("sparse_grad", sparse_grad)):
        if wanted:
            raise ValueError(f"{name}: expected False on the CPU, whose layout is dense, got True; pass {name}=False")
