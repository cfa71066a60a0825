"""The CPU rasterizer against a float64 torch oracle, against gsplat's pure-torch functions, and its promises."""

from __future__ import annotations

import math
import re
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gsplat
import pytest
import torch
from gsplat import DefaultStrategy
from gsplat.cuda._torch_impl import (
    _fully_fused_projection,
    _isect_offset_encode,
    _quat_scale_to_covar_preci,
    _spherical_harmonics,
)
from torch import Tensor

from gscfd import native
from gscfd.cameras import turntable
from gscfd.gaussians import Gaussians, rasterize
from gscfd.rasterize import cpu, degree_zero, kernels, rasterization, reference
from gscfd.types import Cameras

Scene = dict[str, Tensor]
NAMES = ("means", "quats", "scales", "opacities", "colors")
LIMIT = 1e-4


def make_scene(n: int = 150, *, seed: int = 0, size: float = 0.08, channels: int = 3) -> Scene:
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    return {
        "means": 1.4 * (rand(n, 3) - 0.5),
        "quats": torch.randn(n, 4, generator=g),
        "scales": size * torch.exp(rand(n, 3) - 0.5),
        "opacities": 0.02 + 0.97 * rand(n),
        "colors": rand(n, channels),
    }


def make_cameras(views: int = 2, width: int = 45, height: int = 37) -> Cameras:
    return turntable(views, size=40).resized(width, height)


def render(scene: Any, cameras: Cameras, **settings: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    size: dict[str, Any] = {"width": cameras.width, "height": cameras.height}
    return rasterization(**scene, viewmats=cameras.viewmats, Ks=cameras.Ks, **size, **settings)


def outputs_and_gradients(
    function: Any, scene: Scene, cameras: Cameras, dtype: torch.dtype, **settings: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `function` renders, and the gradients of a fixed random weighting of colors and alphas."""
    leaves = {name: value.to(dtype, copy=True).requires_grad_() for name, value in scene.items()}
    if "backgrounds" in settings:
        settings["backgrounds"] = leaves["backgrounds"] = settings["backgrounds"].to(dtype, copy=True).requires_grad_()
    tensors = [leaves[name] for name in NAMES]
    matrices = (cameras.viewmats.to(dtype), cameras.Ks.to(dtype))
    rendered, alphas, info = function(*tensors, *matrices, cameras.width, cameras.height, **settings)
    info["means2d"].retain_grad()
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=g) for t in (rendered, alphas)]
    loss = (rendered * weights[0].to(dtype)).sum() + (alphas * weights[1].to(dtype)).sum()
    loss.backward()
    gradients = {name: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for name, leaf in leaves.items()}
    grad = info["means2d"].grad
    gradients["means2d"] = grad if grad is not None else torch.zeros_like(info["means2d"])
    return {"colors": rendered, "alphas": alphas, "median_depth": info["median_depth"]}, gradients


def relative_errors(scene: Scene, cameras: Cameras, **settings: Any) -> dict[str, float]:
    """Norm of the difference to the float64 oracle over the norm of the oracle, of images and gradients."""
    oracle_settings = {k: v for k, v in settings.items() if k not in ("tile_size", "absgrad")}
    images, gradients = outputs_and_gradients(rasterization, scene, cameras, torch.float32, **settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the oracle's many small operations gain nothing from threads
    true_images, true_gradients = outputs_and_gradients(
        reference.rasterization, scene, cameras, torch.float64, **oracle_settings
    )
    torch.set_num_threads(threads)
    got, true = images | gradients, true_images | true_gradients
    for name, tensor in got.items():
        assert tensor.isfinite().all(), f"{name} is not finite"
    return {name: ((got[name] - true[name]).norm() / true[name].norm().clamp_min(1e-12)).item() for name in true}


def assert_matches_oracle(scene: Scene, cameras: Cameras, **settings: Any) -> None:
    errors = relative_errors(scene, cameras, **settings)
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("tile_size", [8, 16])
@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_images_and_gradients_match_the_oracle(mode: str, tile_size: int) -> None:
    assert_matches_oracle(make_scene(), make_cameras(), render_mode=mode, tile_size=tile_size)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_matches_the_oracle(isa: str) -> None:
    widest = native.instruction_set()
    try:
        native.set_instruction_set(isa)
    except ValueError:
        pytest.skip(f"this CPU has no {isa}")
    try:
        assert_matches_oracle(make_scene(), make_cameras())
        sh = make_scene() | {"colors": torch.randn(150, 16, 3, generator=torch.Generator().manual_seed(2))}
        assert_matches_oracle(sh, make_cameras(), sh_degree=3)
    finally:
        native.set_instruction_set(widest)


@pytest.mark.parametrize("width,height", [(1, 1), (7, 3), (8, 8), (9, 16), (16, 17), (33, 31), (64, 5)])
def test_odd_sizes_match_the_oracle(width: int, height: int) -> None:
    assert_matches_oracle(make_scene(), make_cameras(width=width, height=height))


@pytest.mark.parametrize("views", [1, 3, 5])
def test_several_views_match_the_oracle(views: int) -> None:
    assert_matches_oracle(make_scene(), make_cameras(views))


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 11])
def test_any_number_of_channels_with_background_matches_the_oracle(channels: int) -> None:
    backgrounds = torch.rand(2, channels, generator=torch.Generator().manual_seed(3))
    assert_matches_oracle(make_scene(channels=channels), make_cameras(), backgrounds=backgrounds)


@pytest.mark.parametrize("per_view", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spherical_harmonics_match_the_oracle(degree: int, per_view: bool) -> None:
    g = torch.Generator().manual_seed(4)
    shape = (2, 150, 16, 3) if per_view else (150, 16, 3)
    scene = make_scene() | {"colors": 0.5 * torch.randn(shape, generator=g)}
    assert_matches_oracle(scene, make_cameras(), sh_degree=degree)


def test_colors_per_view_match_the_oracle() -> None:
    colors = torch.rand(2, 150, 3, generator=torch.Generator().manual_seed(5))
    assert_matches_oracle(make_scene() | {"colors": colors}, make_cameras())


def front_camera(size: int = 32, focal: float = 32.0) -> Cameras:
    """At the origin, looking along +z."""
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])
    return Cameras(torch.eye(4)[None], K[None], size, size)


def test_tile_borders_match_the_oracle() -> None:
    """Centers on and within a hair of the borders of tiles, small and large."""
    offsets = torch.tensor([-1e-3, 0.0, 1e-3, 0.5, 7.5, 8.0, 15.999, 16.0])
    x, y = torch.meshgrid(offsets, offsets, indexing="ij")
    scene = make_scene(64)
    scene["means"] = torch.stack([x.flatten() / 16 - 0.25, y.flatten() / 16 - 0.25, 2 + 0.01 * torch.arange(64)], -1)
    scene["scales"] = scene["scales"] * torch.linspace(0.05, 2, 64)[:, None]
    for tile_size in (8, 16):
        assert_matches_oracle(scene, front_camera(), tile_size=tile_size)


def test_off_screen_and_behind_the_camera_match_the_oracle() -> None:
    scene = make_scene(120)
    scene["means"][:, 2] += 2.0
    scene["means"][:30, 0] += 1.2  # partly or fully outside, beyond the margin of the Jacobian
    scene["means"][30:60, 1] -= 1.6
    scene["means"][60:80, 2] -= 4.0  # behind
    scene["means"][80:90, 2] = 0.02  # just in front of the near plane
    scene["scales"][:30] *= 4
    assert_matches_oracle(scene, front_camera())


def test_nothing_visible_gives_black_and_zero_gradients() -> None:
    scene = make_scene(10)
    scene["means"][:, 2] -= 5.0
    images, gradients = outputs_and_gradients(rasterization, scene, front_camera(), torch.float32)
    assert all((t == 0).all() for t in (*images.values(), *gradients.values()))


@pytest.mark.parametrize("kind", ["needle", "disc", "point", "zero", "huge"])
def test_degenerate_scales_match_the_oracle(kind: str) -> None:
    scene = make_scene(60)
    scene["means"][:, 2] += 2.5
    factors = {
        "needle": (10, 1e-3, 1e-3),
        "disc": (5, 5, 1e-4),
        "point": (1e-5,) * 3,
        "zero": (0, 0, 0),
        "huge": (90,) * 3,
    }
    scene["scales"] = scene["scales"] * torch.tensor(factors[kind], dtype=torch.float32)
    if kind == "huge":
        scene["opacities"] *= 0.1
    assert_matches_oracle(scene, front_camera())


def test_unnormalized_and_zero_quaternions() -> None:
    scene = make_scene()
    scene["quats"] *= torch.logspace(-3, 3, 150)[:, None]
    assert_matches_oracle(scene, make_cameras())
    scene["quats"][:5] = 0
    _, gradients = outputs_and_gradients(rasterization, scene, make_cameras(), torch.float32)
    assert all(t.isfinite().all() for t in gradients.values())


def test_extreme_opacities_match_the_oracle() -> None:
    scene = make_scene(60)
    scene["opacities"][:10], scene["opacities"][10:20], scene["opacities"][20:30] = 0.0, 1.0, 1e-3
    assert_matches_oracle(scene, make_cameras())


@pytest.mark.parametrize("n", [0, 1])
def test_none_and_one_gaussian(n: int) -> None:
    assert_matches_oracle(make_scene(n, size=0.3), make_cameras())


def test_gaussians_that_are_not_finite_are_left_out() -> None:
    scene, cameras = make_scene(), make_cameras()
    expected, _ = outputs_and_gradients(rasterization, {k: v[3:] for k, v in scene.items()}, cameras, torch.float32)
    scene["means"][0], scene["scales"][1], scene["quats"][2] = math.nan, math.inf, math.nan
    got, gradients = outputs_and_gradients(rasterization, scene, cameras, torch.float32)
    assert all(torch.equal(got[k], expected[k]) for k in got)
    assert all((t[:3] == 0).all() for k, t in gradients.items() if k != "means2d")


def test_a_wrong_gradient_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison would notice an error of one part in a thousand."""
    backward: Any = cpu._Project.backward

    def wrong(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        means, *rest = backward(ctx, *gradients)
        return 1.001 * means, *rest

    monkeypatch.setattr(cpu._Project, "backward", staticmethod(wrong))
    errors = relative_errors(make_scene(), make_cameras())
    assert errors["means"] > 5 * LIMIT and errors["scales"] < LIMIT


def test_absgrad_is_the_sum_of_absolute_values_over_pixels() -> None:
    """Rendered one pixel at a time, the absolute values of the ordinary gradient must add up to it."""
    scene, cameras = make_scene(30), make_cameras(1, 12, 9)
    leaves = {name: value.requires_grad_() for name, value in scene.items()}
    rendered, _, info = render(leaves, cameras, absgrad=True, render_mode="RGB")
    weights = torch.randn(rendered.shape, generator=torch.Generator().manual_seed(6))
    expected = torch.zeros_like(info["means2d"])
    per_pixel = (rendered * weights).sum(-1).flatten()
    for pixel in per_pixel:
        expected += torch.autograd.grad(pixel, info["means2d"], retain_graph=True)[0].abs()
    per_pixel.sum().backward()
    assert torch.allclose(info["means2d"].absgrad, expected, rtol=1e-4, atol=1e-6)


def test_median_depth_is_where_transmittance_crosses_one_half() -> None:
    scene = make_scene(3)
    scene["means"] = torch.tensor([[0, 0, 2.0], [0, 0, 3.0], [0, 0, 4.0]])
    scene["scales"][:] = 50.0
    scene["opacities"] = torch.tensor([0.3, 0.2, 0.5])  # transmittance .7, .56, .28
    _, _, info = render(scene, front_camera())
    assert info["median_depth"][0, 16, 16, 0] == 4.0
    scene["opacities"][2] = 0.1
    _, _, info = render(scene, front_camera())
    assert (info["median_depth"] == 0).all()


@pytest.mark.parametrize("camera_model", ["pinhole", "ortho"])
@pytest.mark.parametrize("rasterize_mode", ["classic", "antialiased"])
@pytest.mark.parametrize("size", [0.002, 0.08])
def test_cameras_and_antialiasing_match_the_oracle(size: float, rasterize_mode: str, camera_model: str) -> None:
    modes = {"rasterize_mode": rasterize_mode, "camera_model": camera_model}
    assert_matches_oracle(make_scene(size=size), near_cameras(camera_model), **modes)
    sh = make_scene(size=size) | {"colors": torch.randn(150, 4, 3, generator=torch.Generator().manual_seed(2))}
    assert_matches_oracle(sh, near_cameras(camera_model), sh_degree=1, absgrad=True, **modes)


def near_cameras(camera_model: str) -> Cameras:
    """Cameras that show the scene; for "ortho", with 20 pixels per world unit."""
    cameras = make_cameras()
    if camera_model == "ortho":
        cameras.Ks[:, 0, 0] = cameras.Ks[:, 1, 1] = 20.0
    return cameras


@pytest.mark.parametrize("kind", ["needle", "disc", "zero"])
def test_antialiased_degenerate_scales_match_the_oracle(kind: str) -> None:
    scene = make_scene(60)
    scene["means"][:, 2] += 2.5
    factors = {"needle": (10, 1e-2, 1e-2), "disc": (5, 5, 1e-3), "zero": (0, 0, 0)}
    scene["scales"] = scene["scales"] * torch.tensor(factors[kind], dtype=torch.float32)
    images, gradients = outputs_and_gradients(
        rasterization, scene, front_camera(), torch.float32, rasterize_mode="antialiased"
    )
    assert all(t.isfinite().all() for t in (*images.values(), *gradients.values()))
    assert (images["alphas"].max() == 0) == (kind == "zero"), "nothing has no brightness"
    if kind != "zero":
        assert_matches_oracle(scene, front_camera(), rasterize_mode="antialiased")


def test_an_antialiased_splat_smaller_than_a_pixel_keeps_its_light() -> None:
    """The sum of alpha over the pixels is the Gaussian's own, 2 pi sigma^2 opacity; the classic mode adds light."""
    scene = {name: value[:1] for name, value in make_scene(1).items()}
    scene |= {"means": torch.tensor([[0.0, 0, 2]]), "scales": torch.full((1, 3), 0.03), "opacities": torch.ones(1)}
    sigma = 0.03 * 32 / 2
    light = {
        mode: render(scene, front_camera(), rasterize_mode=mode, eps2d=0.3)[1].sum().item()
        for mode in ("classic", "antialiased")
    }
    expected = 2 * math.pi * sigma**2
    assert light["antialiased"] == pytest.approx(expected, rel=0.05)
    assert light["classic"] > 2 * expected, "control"


def test_an_orthographic_picture_does_not_depend_on_the_distance() -> None:
    scene, cameras = make_scene(), near_cameras("ortho")
    further = Cameras(cameras.viewmats.clone(), cameras.Ks, cameras.width, cameras.height)
    further.viewmats[:, 2, 3] += 3.0
    for model, same in (("ortho", True), ("pinhole", False)):
        first, second = (render(scene, c, camera_model=model, render_mode="RGB")[0] for c in (cameras, further))
        assert torch.allclose(first, second, atol=1e-4) == same, model


def test_keys_of_the_tile_lists_are_gsplats() -> None:
    """gsplat's own decoder finds the offsets in them, and the depths are those of the splats."""
    cameras = make_cameras(3, 37, 29)
    _, _, info = render(make_scene(300), cameras, tile_size=8)
    keys, ids = info["isect_ids"], info["flatten_ids"].long()
    assert (keys.diff() >= 0).all() and len(keys) == len(ids) > 300
    offsets = _isect_offset_encode(keys, 3, info["tile_width"], info["tile_height"])
    assert torch.equal(offsets, info["isect_offsets"])
    assert torch.equal(keys.to(torch.int32).view(torch.float32), info["depths"].flatten()[ids])
    bits = (info["tile_width"] * info["tile_height"]).bit_length()
    assert torch.equal(keys >> (32 + bits), ids // 300)


def test_the_largest_alpha_is_that_of_the_installed_gsplat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = Path(gsplat.__file__).parent / "cuda"
    text = "".join(path.read_text() for path in (*sources.glob("include/Common.h"), *sources.glob("csrc/*3DGSFwd.cu")))
    assert re.findall(rf"MAX_ALPHA {kernels.max_alpha():g}f|alpha = min\({kernels.max_alpha():g}f, opac", text)
    scene = {name: value[:1] for name, value in make_scene(1).items()}
    scene |= {"means": torch.tensor([[0.0, 0, 2]]), "scales": torch.ones(1, 3), "opacities": torch.ones(1)}
    assert render(scene, front_camera())[1].max() == pytest.approx(kernels.max_alpha(), abs=1e-6)
    (tmp_path / "cuda" / "include").mkdir(parents=True)
    (tmp_path / "cuda" / "include" / "Common.h").write_text("#define MAX_ALPHA 0.99f\n")  # gsplat after 1.5.3
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    kernels.max_alpha.cache_clear()
    try:
        assert render(scene, front_camera())[1].max() == pytest.approx(0.99, abs=1e-6)
        assert_matches_oracle(make_scene(), make_cameras())
    finally:
        kernels.max_alpha.cache_clear()


@pytest.mark.parametrize("camera_model", ["pinhole", "ortho"])
def test_compensations_match_gsplat(camera_model: Any) -> None:
    scene, cameras = make_scene(500, size=0.01), near_cameras(camera_model)
    _, _, info = render(scene, cameras, rasterize_mode="antialiased", camera_model=camera_model)
    double = {k: v.double() for k, v in scene.items()}
    covars, _ = _quat_scale_to_covar_preci(double["quats"], double["scales"], True, False)
    assert covars is not None
    _, means2d, depths, conics, compensations = _fully_fused_projection(
        double["means"], covars, cameras.viewmats.double(), cameras.Ks.double(), cameras.width, cameras.height,
        calc_compensations=True, camera_model=camera_model,
    )  # fmt: skip
    assert compensations is not None
    visible = (info["radii"] > 0).all(-1)
    assert visible.sum() > 100 and compensations[visible].min() < 0.5
    expected = {"means2d": means2d, "depths": depths, "conics": conics}
    for name, theirs in expected.items():
        assert torch.allclose(info[name][visible].double(), theirs[visible], rtol=2e-5, atol=1e-5), name
    opacities = double["opacities"] * compensations
    assert torch.allclose(info["opacities"][visible].double(), opacities[visible], rtol=1e-4, atol=1e-6)
    assert (opacities[~visible] < 1.01 / 255).all(), "those left out are fainter than a byte, as in gsplat"


def test_a_wrong_compensation_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without its gradient, the sizes' gradients are off."""
    backward: Any = cpu._Project.backward

    def forgetful(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return tuple(backward(ctx, *gradients[:3], torch.zeros_like(gradients[3]), *gradients[4:]))

    monkeypatch.setattr(cpu._Project, "backward", staticmethod(forgetful))
    errors = relative_errors(make_scene(size=0.01), make_cameras(), rasterize_mode="antialiased")
    assert errors["scales"] > 100 * LIMIT and errors["colors"] < LIMIT


def test_projection_matches_gsplat() -> None:
    scene, cameras = make_scene(500), make_cameras(3, 64, 48)
    scene["means"] *= 3
    scene["opacities"][:] = 1.0
    _, _, info = render(scene, cameras)
    double = {k: v.double() for k, v in scene.items()}
    covars, _ = _quat_scale_to_covar_preci(double["quats"], double["scales"], True, False)
    assert covars is not None
    radii, means2d, depths, conics, _ = _fully_fused_projection(
        double["means"], covars, cameras.viewmats.double(), cameras.Ks.double(), 64, 48
    )
    visible = (info["radii"] > 0).all(-1)
    theirs = (radii > 0).all(-1)
    assert 100 < visible.sum() < visible.numel() - 100
    # Ours is gsplat's CUDA rule: 3.329 standard deviations at opacity 1 where the torch function takes 3.33.
    assert (visible & ~theirs).sum() == 0 and (theirs & ~visible).sum() <= 0.01 * theirs.sum()
    shrink = (radii - info["radii"])[visible]
    assert shrink.min() >= 0 and shrink.max() <= 1 and (shrink == 0).double().mean() > 0.95
    for name, expected in (("means2d", means2d), ("depths", depths), ("conics", conics)):
        assert torch.allclose(info[name][visible].double(), expected[visible], rtol=2e-5, atol=1e-5), name
        assert (info[name][~visible] == 0).all()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spherical_harmonics_match_gsplat(degree: int) -> None:
    g = torch.Generator().manual_seed(7)
    means, coefficients = torch.randn(300, 3, generator=g), torch.randn(300, 16, 3, generator=g)
    cameras = make_cameras(2)
    rendered = cpu.harmonics(means, coefficients, cameras.viewmats, degree)
    centers = torch.linalg.inv(cameras.viewmats)[:, :3, 3]
    directions = (means - centers[:, None]).double()
    expected = _spherical_harmonics(degree, directions, coefficients.double().expand(2, -1, -1, -1))
    assert torch.allclose(rendered.double(), (expected + 0.5).clamp_min(0), atol=1e-5)


def test_tile_lists_are_exact_and_sorted() -> None:
    """Every list is in order of depth and equals the splats that reach a pixel of the tile with alpha >= 1/255."""
    scene, cameras = make_scene(300), make_cameras(2, 37, 29)
    _, _, info = render(scene, cameras, tile_size=8)
    offsets = torch.cat([info["isect_offsets"].flatten(), torch.tensor([info["flatten_ids"].numel()])]).tolist()
    depths, missing, extra = info["depths"].flatten(), 0, 0
    means2d, conics = info["means2d"].view(-1, 2).double(), info["conics"].view(-1, 3).double()
    y, x = torch.meshgrid(torch.arange(29), torch.arange(37), indexing="ij")
    dx, dy = x + 0.5 - means2d[:, 0, None, None], y + 0.5 - means2d[:, 1, None, None]
    a, b, c = (conics[:, k, None, None] for k in range(3))
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (
        info["opacities"].reshape(-1, 1, 1) * torch.exp(-sigma) * (info["radii"].view(-1, 2) > 0).all(-1)[:, None, None]
    )
    for tile in range(2 * 4 * 5):
        ids = info["flatten_ids"][offsets[tile] : offsets[tile + 1]].long()
        assert (depths[ids].diff() >= 0).all()
        view, row, column = tile // 20, tile % 20 // 5, tile % 5
        block = alpha[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten(1).amax(1)
        block = torch.where(torch.arange(600) // 300 == view, block, 0.0)
        listed = torch.zeros(600, dtype=torch.bool)
        listed[ids] = True
        missing += int((~listed & (block >= 1 / 255)).sum())
        extra += int((listed & (block < 0.99 / 255)).sum())
    assert missing == 0 and extra <= 0.05 * info["flatten_ids"].numel()
    assert info["tiles_per_gauss"].sum() == info["flatten_ids"].numel()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_any_number_of_threads_gives_identical_bits(isa: str) -> None:
    widest, threads = native.instruction_set(), torch.get_num_threads()
    try:
        native.set_instruction_set(isa)
    except ValueError:
        pytest.skip(f"this CPU has no {isa}")
    try:
        results = []
        for n in (1, 2, 3, 1, 3):
            torch.set_num_threads(n)
            images, gradients = outputs_and_gradients(
                rasterization, make_scene(3000), make_cameras(3, 100, 75), torch.float32, absgrad=True
            )
            results.append(images | gradients)
        for other in results[1:]:
            assert all(torch.equal(results[0][name], other[name]) for name in other)
    finally:
        torch.set_num_threads(threads)
        native.set_instruction_set(widest)


def test_default_type_of_torch_does_not_matter() -> None:
    expected, _ = outputs_and_gradients(rasterization, make_scene(), make_cameras(), torch.float32)
    scene, cameras = make_scene(), make_cameras()
    torch.set_default_dtype(torch.float64)
    try:
        rendered, _, _ = render(scene, cameras)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(rendered, expected["colors"])


def test_tile_size_changes_only_rounding() -> None:
    scene, cameras = make_scene(500), make_cameras()
    small, _ = outputs_and_gradients(rasterization, scene, cameras, torch.float32, tile_size=8)
    large, _ = outputs_and_gradients(rasterization, scene, cameras, torch.float32, tile_size=16)
    assert all(torch.allclose(small[k], large[k], atol=1e-6) for k in small)


@pytest.mark.parametrize("absgrad", [False, True])
def test_default_strategy_densifies_unchanged(absgrad: bool) -> None:
    """gsplat's own strategy duplicates, splits and prunes on what the rasterizer reports."""
    scene, cameras = make_scene(150, size=0.05), make_cameras(2, 48, 48)
    params = torch.nn.ParameterDict(
        {
            "means": scene["means"],
            "quats": scene["quats"],
            "scales": scene["scales"].log(),
            "opacities": scene["opacities"].logit(),
            "colors": scene["colors"],
        }
    )
    optimizers: dict[str, torch.optim.Optimizer] = {
        name: torch.optim.Adam([value], 1e-2) for name, value in params.items()
    }
    strategy = DefaultStrategy(
        refine_start_iter=3, refine_every=5, grow_grad2d=1e-5, grow_scale3d=0.05, prune_opa=0.1, absgrad=absgrad
    )
    strategy.check_sanity(params, optimizers)
    state = strategy.initialize_state(scene_scale=1.0)
    target = torch.rand(2, 48, 48, 3, generator=torch.Generator().manual_seed(8))
    for step in range(12):
        activated = dict(params) | {"scales": params["scales"].exp(), "opacities": params["opacities"].sigmoid()}
        rendered, _, info = render(activated, cameras, absgrad=absgrad)
        strategy.step_pre_backward(params, optimizers, state, step, info)
        (rendered[..., :3] - target).square().mean().backward()
        if step == 5:
            assert state["count"].max() > 2 and state["grad2d"].max() > 0
        strategy.step_post_backward(params, optimizers, state, step, info)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
    assert len(params["means"]) > 200
    assert all(len(value) == len(params["means"]) for value in params.values())


def test_optimization_recovers_an_image() -> None:
    scene, cameras = make_scene(100, size=0.15), make_cameras(1, 32, 32)
    with torch.no_grad():
        target, _, _ = render(scene, cameras, render_mode="RGB")
    colors = torch.full((100, 3), 0.5, requires_grad=True)
    means = (scene["means"] + 0.02).requires_grad_()
    optimizer = torch.optim.Adam([colors, means], 0.02)
    losses = []
    for _ in range(60):
        image, _, _ = render(scene | {"means": means, "colors": colors}, cameras, render_mode="RGB")
        loss = (image - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_rasterize_reads_stored_parameters() -> None:
    scene, cameras = make_scene(50), make_cameras()
    sh = 0.3 * torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(9))
    stored = (scene["means"], scene["quats"], scene["scales"].log(), scene["opacities"].logit(), sh[:, :1], sh[:, 1:])
    gaussians = Gaussians(*stored)
    image = rasterize(gaussians, cameras)
    images, _ = outputs_and_gradients(
        reference.rasterization, scene | {"colors": sh}, cameras, torch.float64, sh_degree=1
    )
    rendered, alphas = images["colors"], images["alphas"]
    assert torch.allclose(image.rgb.double(), rendered[..., :3], atol=1e-5)
    assert torch.allclose(image.depth.double(), rendered[..., 3:], atol=1e-4)
    assert torch.allclose(image.opacity.double(), alphas, atol=1e-5)
    assert image.median_depth is not None and torch.allclose(
        image.median_depth.double(), images["median_depth"], atol=1e-4
    )
    image.rgb.sum().backward()
    assert gaussians.means.grad is not None and gaussians.params["shN"].grad is not None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "means": ({"means": torch.zeros(150, 2)}, r"means: expected \[N, 3\], got \[150, 2\]"),
    "quats": ({"quats": torch.zeros(150, 3)}, r"quats: expected \[150, 4\]"),
    "scales": ({"scales": torch.zeros(149, 3)}, r"scales: expected \[150, 3\]"),
    "opacities": ({"opacities": torch.zeros(150, 1)}, r"opacities: expected \[150\]"),
    "colors": ({"colors": torch.zeros(100, 3)}, r"colors: expected \[150, D\]"),
    "sh": ({"colors": torch.zeros(150, 3, 3), "sh_degree": 1}, "K >= 4"),
    "degree": ({"sh_degree": 4}, "sh_degree: expected None or 0 to 3, got 4"),
    "viewmats": ({"viewmats": torch.eye(4)}, "viewmats: expected"),
    "Ks": ({"Ks": torch.eye(3)}, "Ks: expected"),
    "type": ({"scales": torch.zeros(150, 3, dtype=torch.float64)}, r"scales: expected torch.float32 .* use .float"),
    "device": ({"opacities": torch.zeros(150, device="meta")}, "opacities: expected device cpu"),
    "mode": ({"render_mode": "rgb"}, "render_mode: expected one of"),
    "width": ({"width": 0}, "width, height"),
    "near": ({"near_plane": 0.0}, "near_plane"),
    "far": ({"far_plane": 0.001}, "far_plane: expected a depth beyond near_plane"),
    "blur": ({"eps2d": -1.0}, "eps2d: expected a finite number of at least 0, got -1"),
    "clip": ({"radius_clip": float("nan")}, "radius_clip: expected a finite number"),
    "skew": ({"Ks": torch.tensor([[40.0, 1, 20], [0, 40, 20], [0, 0, 1]]).repeat(2, 1, 1)}, "Ks: .* got skew"),
    "not rigid": (
        {"viewmats": 2 * torch.eye(4).repeat(2, 1, 1), "colors": torch.zeros(150, 4, 3), "sh_degree": 1},
        "viewmats: expected rotations with sh_degree",
    ),
    "not finite": ({"viewmats": torch.full((2, 4, 4), torch.nan)}, "viewmats, Ks: expected finite numbers"),
    "no colors": ({"colors": None}, "colors: expected a tensor with render_mode 'RGB"),
    "sparse": ({"sparse_grad": True}, "sparse_grad: expected False on the CPU"),
    "tile": ({"tile_size": 12}, "tile_size: expected None, 8 or 16"),
    "packed": ({"packed": True}, "packed: expected False on the CPU.* packed=False"),
    "blurring": ({"rasterize_mode": "mip"}, "rasterize_mode: expected one of .*'antialiased'.*, got 'mip'"),
    "fisheye": ({"camera_model": "fisheye"}, "camera_model: expected one of .*'ortho'.*call gsplat.rasterization"),
    "chunk": ({"channel_chunk": 0}, "channel_chunk: expected at least 1"),
    "distributed": ({"distributed": True}, "distributed: expected False"),
    "background": ({"backgrounds": torch.zeros(3)}, r"backgrounds: expected \[2, 3\]"),
    "camera gradient": (
        {"viewmats": torch.eye(4).repeat(2, 1, 1).requires_grad_()},
        "viewmats: .* pass viewmats.detach",
    ),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_arguments_are_named(case: str) -> None:
    changed, message = WRONG[case]
    cameras = make_cameras()
    arguments: dict[str, Any] = {
        **make_scene(),
        "viewmats": cameras.viewmats,
        "Ks": cameras.Ks,
        "width": 45,
        "height": 37,
    }
    with pytest.raises(ValueError, match=message):
        rasterization(**(arguments | changed))


def test_depth_needs_no_colors() -> None:
    scene, cameras = make_scene(), make_cameras()
    with_colors = render(scene, cameras, render_mode="ED")[0]
    assert torch.equal(render({**scene, "colors": None}, cameras, render_mode="ED")[0], with_colors)


def test_arguments_stand_in_the_order_of_gsplat() -> None:
    ours, theirs = (list(signature(f).parameters) for f in (rasterization, gsplat.rasterization))
    assert ours == theirs[: len(ours)] and "camera_model" in ours


@pytest.mark.requires_cuda
def test_cpu_and_cuda_agree() -> None:
    scene, cameras = make_scene(), make_cameras()
    host, host_gradients = outputs_and_gradients(rasterization, scene, cameras, torch.float32)
    leaves = {name: value.cuda().requires_grad_() for name, value in scene.items()}
    rendered, alphas, _ = render(leaves, cameras.to("cuda"))
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=g).cuda() for t in (rendered, alphas)]
    ((rendered * weights[0]).sum() + (alphas * weights[1]).sum()).backward()
    assert torch.allclose(rendered.cpu(), host["colors"], atol=1e-4)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        error = (leaf.grad.cpu() - host_gradients[name]).norm() / host_gradients[name].norm()
        assert error < 1e-3, name


def test_colors_of_degree_zero_and_their_gradients_are_those_of_the_harmonics() -> None:
    generator = torch.Generator().manual_seed(0)
    means, viewmats = torch.randn(50, 3, generator=generator), turntable(2, size=16).viewmats
    coefficients = (2 * torch.randn(50, 1, 3, generator=generator)).requires_grad_()
    wanted = cpu.harmonics(means, coefficients, viewmats, 0)
    found = degree_zero(coefficients).expand_as(wanted)
    weights = torch.randn(wanted.shape, generator=generator)
    first, second = (torch.autograd.grad((colors * weights).sum(), coefficients)[0] for colors in (wanted, found))
    assert torch.allclose(found, wanted, atol=1e-6) and torch.allclose(first, second, atol=1e-6)
    assert (wanted == 0).any(), "some are clamped"
