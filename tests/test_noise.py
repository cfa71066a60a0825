"""Surface noise: exactly white in every view, consistent between views. Thresholds and measured values: docs/noise.md.

Channels are independent, so one call with thousands of channels gives thousands of independent noise images of the
same geometry. Every random number is counter-based: these tests are deterministic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_as_oracle
from scenes import Hit, capsule, figure, render_scene, sphere, torus, union, views, wing
from torch import Tensor
from whiteness import (
    View,
    assert_white_pixels,
    consistency,
    far_consistency,
    ks_normal,
    ks_uniform,
    morans_i,
    owner_views,
    shared,
)

import gscfd
from gscfd import native
from gscfd.cameras import camera_to_world, orbit
from gscfd.noise import field as noise_field
from gscfd.noise import kinds
from gscfd.noise.field import NoiseField
from gscfd.noise_kernels import reference
from gscfd.types import Cameras, Render

SCENES = {"sphere": sphere(), "figure": figure(), "torus": torus(), "wing": wing()}
EMPTY = sphere((0.0, 0.0, -50.0), 0.1)
FULL = sphere((0.0, 0.0, 0.0), 6.0)
T = 4096
AZIMUTHS = (20, 30, 80, 10, -40)
"""A first view, and views 10 and 60 degrees to either side of it."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Ray casting in many small steps is quicker on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def scene(name: str, *azimuths: float, size: int = 256) -> tuple[Cameras, Render]:
    cameras = views(*azimuths, size=size)
    return cameras, render_scene(SCENES[name], cameras)


@functools.cache
def scene_views(name: str) -> list[View]:
    return owner_views(NoiseField(0, 4, 64, 64), *scene(name, *AZIMUTHS))


# 1. Ownership


@pytest.mark.parametrize("name", SCENES)
def test_every_cell_has_one_owner(name: str) -> None:
    a, b = scene_views(name)[:2]
    for view in (a, b):
        assert len(np.unique(view.cells)) == len(view.cells)
        assert np.array_equal(np.bincount(view.pixels, minlength=64 * 64), view.counts)
    itself = shared(a, a).tocoo()
    assert np.array_equal(itself.row, itself.col), "no cell is shared within a view"
    assert np.allclose(itself.data, 1)
    ratios = shared(a, b)  # many singular values are close to 1: to more digits, the iteration may not converge
    norm = float(np.max(scipy.sparse.linalg.svds(ratios, k=1, tol=1e-8, v0=np.ones(min(ratios.shape)))[1]))
    print(f"norm of R, {name}: {norm:.6f}")
    assert norm <= 1 + 1e-6


# 2. to 4. Laws


def test_every_view_is_white() -> None:
    cameras, render = scene("figure", 20, size=128)
    field = NoiseField(1, T, 32, 32, gamma=0.0)
    fields = kinds.surface(field, cameras, render, 0)[0]
    assert_white_pixels(fields)
    assert (fields.mean(0) * math.sqrt(T)).square().mean().sqrt() < 1.05
    # Tails: the largest of N normals, and the fourth moment.
    assert 5.0 < fields.abs().max() < 6.7
    assert abs((fields**4).mean() / 3 - 1) < 0.005


def test_seeds_views_and_steps_are_white_images() -> None:
    cameras, render = scene("figure", 20)
    images = [kinds.surface(NoiseField(seed, 4, 64, 64), cameras, render, 100 * seed) for seed in range(64)]
    fields = torch.cat(images).flatten(0, 1)
    value, p = morans_i(fields)
    ks = [ks_normal(field) for field in fields]
    print(f"Moran's I {value.mean():.5f}, p < .01: {(p < 0.01).double().mean():.3f}")
    print(f"uniformity of p-values: Moran {ks_uniform(p):.3f}, Kolmogorov-Smirnov {ks_uniform(ks):.3f}")
    assert len(fields) == 256
    assert abs(value.mean()) <= 0.0028
    assert (p < 0.01).double().mean() <= 0.03
    assert ks_uniform(p) > 1e-3 and ks_uniform(ks) > 1e-3


@pytest.mark.parametrize(
    ("beta", "gamma", "step", "later"),
    [pytest.param(1.0, 0.0, 0, 0, id="same step"), pytest.param(0.8, 1e-3, 100, 500, id="blended, 400 steps apart")],
)
def test_views_correlate_as_their_shared_cells_say(beta: float, gamma: float, step: int, later: int) -> None:
    """Corr = beta rho [sqrt(alpha_p alpha_q) R_pq + sqrt((1 - alpha_p) (1 - alpha_q)) delta_pq], screen background."""
    cameras, render = scene("figure", 20, 45, size=128)
    field = NoiseField(3, T, 32, 32, gamma=gamma, beta=beta, span=1024)
    a, b = owner_views(NoiseField(3, 4, 32, 32), cameras, render)
    noise_a = kinds.surface(field, cameras[:1], _view(render, 0), step)[0].flatten(1)
    noise_b = kinds.surface(field, cameras[1:], _view(render, 1), later)[0].flatten(1)
    alpha_a, alpha_b = (np.where(v.counts > 0, v.coverage, 0) for v in (a, b))
    on_surface = scipy.sparse.diags(np.sqrt(alpha_a)) @ shared(a, b) @ scipy.sparse.diags(np.sqrt(alpha_b))
    on_screen = scipy.sparse.diags(np.sqrt((1 - alpha_a) * (1 - alpha_b)))
    pairs = (on_surface + on_screen).tocoo()
    expected = beta * (1 - gamma) ** ((later - step) / 2) * pairs.data
    found = (noise_a[:, pairs.row] * noise_b[:, pairs.col]).mean(0).numpy()
    z = (found - expected) / np.sqrt((1 + expected**2) / T)
    bound = scipy.stats.norm.isf(0.01 / 2 / len(z))
    print(f"z over {len(z)} pairs: mean {z.mean():.3f}, sd {z.std():.3f}, max {np.abs(z).max():.2f} < {bound:.2f}")
    assert abs(z.mean()) < 0.05
    assert 0.97 <= z.std() <= 1.03
    assert np.abs(z).max() < bound


# 5. Negative controls: the statistics above do find noise that is not white


def test_bilinear_warping_is_found_out() -> None:
    warped, seen = _warp("sphere", 20, 30, "bilinear")
    inside = warped[:, seen]
    moran = morans_i(warped)[1]
    print(f"bilinear: foreground variance {inside.var():.3f}, Moran p < .01: {(moran < 0.01).double().mean():.2f}")
    assert inside.var() < 0.6
    assert ks_normal(inside[0]) < 1e-6
    assert (moran < 0.01).double().mean() > 0.9


def test_nearest_at_twice_the_zoom_is_found_out_and_surface_noise_is_not() -> None:
    pattern = torch.randn(64, 32, 32, generator=torch.Generator().manual_seed(0))
    nearest = pattern.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (morans_i(nearest)[1] < 0.01).all()
    cameras, _ = scene("sphere", 20)
    near = Cameras(cameras.viewmats, cameras.Ks * torch.tensor([2.0, 2.0, 1.0])[:, None], 256, 256)
    near.Ks[:, :2, 2] = 128
    fields = kinds.surface(NoiseField(5, 64, 64, 64), near, render_scene(sphere(), near), 0)[0]
    assert (morans_i(fields)[1] < 0.01).double().mean() <= 0.05


def _warp(name: str, start: float, end: float, mode: str) -> tuple[Tensor, Tensor]:
    """([F, h, w] white noise of one view carried to another by interpolation, [h, w] where it was carried)."""
    cameras = views(start, end, size=64)
    render = render_scene(SCENES[name], cameras)
    point = _points(cameras, render)[1].reshape(64, 64, 3)
    camera = point @ cameras.viewmats[0, :3, :3].T + cameras.viewmats[0, :3, 3]
    pixel = (camera @ cameras.Ks[0].T)[..., :2] / camera[..., 2:]
    pattern = torch.randn(64, 1, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    where = (pixel / 32 - 1).expand(64, -1, -1, -1).nan_to_num(nan=-5.0)
    warped = torch.nn.functional.grid_sample(pattern, where, mode=mode, align_corners=False)[:, 0]
    seen = render.opacity[1, ..., 0] > 0
    fresh = torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    return torch.where(seen, warped, fresh), seen


# 6. to 8. Consistency


@pytest.mark.parametrize(
    ("name", "at_10", "at_60", "far"),
    [
        ("sphere", 0.44, 0.14, 0.006),
        ("figure", 0.40, 0.165, 0.006),
        ("torus", 0.38, 0.15, 0.006),
        ("wing", 0.36, 0.17, 0.012),
    ],
)
def test_near_views_agree(name: str, at_10: float, at_60: float, far: float) -> None:
    first, *others = scene_views(name)
    points = _latent_points(*scene(name, *AZIMUTHS))
    e = [consistency(first, view) for view in others]
    far_e = [far_consistency(first, view, points[0], p, 2 / 32) for view, p in zip(others, points[1:], strict=True)]
    e_10, e_60 = (e[0] + e[2]) / 2, (e[1] + e[3]) / 2
    print(f"{name}: E {e_10:.3f} at 10 degrees, {e_60:.3f} at 60; far {max(far_e):.5f}")
    assert e_10 >= at_10 and e_60 >= at_60
    assert max(far_e) <= far


def test_smoothing_makes_views_of_a_rough_surface_agree() -> None:
    cameras, render = scene("figure", 20, 30)
    wrong = 0.01 * torch.randn(render.depth.shape, generator=torch.Generator().manual_seed(0))
    e = {}
    for name, error in (("clean", 0), ("rough", wrong)):
        seen = Render(render.rgb, render.depth * (1 + error), render.opacity)
        for rounds in (0, 2):
            e[name, rounds] = consistency(*owner_views(NoiseField(0, 1, 64, 64, smoothing=rounds), cameras, seen))
    print(f"E at 10 degrees: {e}")
    assert e["rough", 2] > 1.5 * e["rough", 0]
    assert e["clean", 2] == pytest.approx(e["clean", 0], rel=0.01)


@pytest.mark.parametrize("size", [16, 64])
def test_smoothing_leaves_planes_as_they_are_up_to_their_edges(size: int) -> None:
    def kept(cameras: Cameras, render: Render) -> float:
        fields = (NoiseField(0, 1, size, size, smoothing=rounds) for rounds in (0, 2))
        first, second = (owner_views(field, cameras, render)[0].cells for field in fields)
        return len(np.intersect1d(first, second)) / max(len(first), len(second))

    cameras = views(20, size=128)
    x = (torch.arange(128) - 63.5) / cameras.Ks[0, 0, 0]
    depth = 1 / (0.35 + 0.3 * x[:, None] - 0.2 * x)
    depth[40:60, 50:90] = 0
    depth[:, :9] = 0
    image = depth[None, ..., None]
    assert kept(cameras, Render(image.expand(-1, -1, -1, 3), image, (image > 0).to(image.dtype))) > 0.99
    assert kept(*scene("torus", 20, size=128)) < 0.97, "the control: curved"


def test_opposite_and_mirrored_views_of_a_sphere_share_nothing() -> None:
    cameras = orbit(
        torch.tensor([30.0, 210.0, -30.0, 150.0, 30.0]).double(),
        torch.tensor([15.0, -15.0, 15.0, 15.0, -15.0]).double(),
        torch.full((5,), 2.92).double(),
        torch.full((5,), 40.0).double(),
        256,
        256,
    )
    render = render_scene(sphere(), cameras)
    first, opposite, *mirrored = owner_views(NoiseField(0, 4, 64, 64), cameras, render)
    assert consistency(first, opposite) < 0.001
    points = _latent_points(cameras, render)
    for v, view in enumerate(mirrored):
        assert far_consistency(first, view, points[0], points[v + 2], 2 / 32) < 0.001


def test_shells_a_layer_apart_share_no_cells() -> None:
    field = NoiseField(0, 4, 64, 64)
    cameras = views(20)
    gap = 1.001 * kinds.grid(field).layer_depth
    inner, outer = (owner_views(field, cameras, render_scene(sphere(radius=r), cameras))[0] for r in (0.6, 0.6 + gap))
    assert len(np.intersect1d(inner.cells, outer.cells)) == 0


@pytest.mark.parametrize("name", SCENES)
def test_covered_pixels_have_cells(name: str) -> None:
    for view in scene_views(name):
        starved = ((view.counts == 0) & (view.coverage > 0)).sum() / (view.coverage > 0).sum()
        print(f"{name}: covered pixels without cells {starved:.4f}")
        assert starved <= 0.01


def test_the_same_camera_and_surface_give_the_same_noise() -> None:
    cameras, render = scene("figure", 20)
    field = NoiseField(0, 4, 64, 64, gamma=0.0)
    assert torch.equal(kinds.surface(field, cameras, render, 0), kinds.surface(field, cameras, render, 900))


# 9. Injection of fresh noise


@pytest.mark.parametrize("span", [1, 7, 64, 4096])
@pytest.mark.parametrize(
    "gamma", [1e-4, 0.3, 1.0, [0.0, 0.5, 0.0, 0.0, 0.2], [0.1] * 50 + [0.0]], ids=["1e-4", ".3", "1", "gaps", "stops"]
)
def test_steps_correlate_by_the_product_of_their_injections(span: int, gamma: float | list[float]) -> None:
    field = NoiseField(0, 4, 8, 8, gamma=gamma, span=span)
    steps = [0, 1, 2, 3, 4, 5, 6, 7, 8, 63, 64, 100, 128]
    weights = [dict(field.nodes(step)) for step in steps]
    per_step = list(gamma) if isinstance(gamma, list) else [gamma]
    for s, a in zip(steps, weights, strict=True):
        for t, b in zip(steps, weights, strict=True):
            covariance = sum(weight * b.get(node, 0.0) for node, weight in a.items())
            kept = [1 - per_step[min(i, len(per_step)) - 1] for i in range(min(s, t) + 1, max(s, t) + 1)]
            assert covariance == pytest.approx(math.sqrt(math.prod(kept)), abs=1e-9)


def test_injected_noise_has_the_lag_correlations() -> None:
    cameras, render = scene("figure", 20, size=64)
    field = NoiseField(7, T, 16, 16, gamma=1e-3, span=1024)
    steps = [0, 1, 2, 10, 100, 500]
    fields = [kinds.surface(field, cameras, render, step)[0].flatten(1) for step in steps]
    for step, image in zip(steps, fields, strict=True):
        found = (fields[0] * image).mean(0)
        worst = (found.mean() - (1 - 1e-3) ** (step / 2)).abs().item()
        print(f"lag {step}: error {worst:.5f}, bound {4 / math.sqrt(T):.4f}")
        assert worst < 4 / math.sqrt(T * 256) * 2
        assert (found - (1 - 1e-3) ** (step / 2)).abs().max() < 5.5 * math.sqrt(2 / T)
        assert abs((image**2).mean() - 1) < 0.005


def test_without_injection_noise_is_constant() -> None:
    cameras, render = scene("figure", 20, size=64)
    for gamma in (0.0, [0.5, 0.0]):
        field = NoiseField(7, 4, 16, 16, gamma=gamma)
        assert torch.equal(kinds.surface(field, cameras, render, 1), kinds.surface(field, cameras, render, 12345))


@pytest.mark.parametrize("background", ["screen", "direction"])
def test_the_background_ages_exactly_once_per_step(background: str) -> None:
    cameras = views(20, size=64)
    render = render_scene(EMPTY, cameras)
    field = NoiseField(7, 1024, 16, 16, gamma=0.1, background=background)
    images = [kinds.surface(field, cameras, render, step)[0] for step in range(5)]
    for earlier, later in zip(images, images[1:], strict=False):
        assert abs((earlier * later).mean() - math.sqrt(0.9)) < 4 / math.sqrt(1024 * 256)


def test_a_restored_field_continues_bit_for_bit() -> None:
    cameras, render = scene("figure", 20, size=64)
    field = NoiseField(9, 4, 16, 16, gamma=[1e-3, 2e-3], beta=0.9, background="direction", span=77)
    other = NoiseField(0, 4, 16, 16)
    other.load_state_dict(field.state_dict())
    assert torch.equal(kinds.surface(field, cameras, render, 50), kinds.surface(other, cameras, render, 50))
    with pytest.raises(ValueError, match="channels, height, width"):
        NoiseField(0, 4, 32, 32).load_state_dict(field.state_dict())


# 10. Reproducibility, shapes, limits


def test_noise_depends_on_neither_batch_nor_threads_nor_instruction_set() -> None:
    cameras, render = scene("figure", 20, 110, 200, 290, size=64)
    field = NoiseField(2, 4, 16, 16, background="fresh", beta=0.9)
    together = kinds.surface(field, cameras, render, 3)
    assert torch.equal(together, kinds.surface(field, cameras, render, 3))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Cameras(cameras.viewmats[order], cameras.Ks[order], 64, 64)
    other = Render(render.rgb[order], render.depth[order], render.opacity[order])
    assert torch.equal(together[order], kinds.surface(field, shuffled, other, 3))
    for v in range(4):
        assert torch.equal(together[v : v + 1], kinds.surface(field, cameras[v : v + 1], _view(render, v), 3))
    threads, widest = torch.get_num_threads(), native.instruction_set()
    try:
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(together, kinds.surface(field, cameras, render, 3))
        for name in ("baseline", "avx2"):
            if name == "baseline" or widest == "avx512":
                native.set_instruction_set(name)
                assert torch.equal(together, kinds.surface(field, cameras, render, 3))
    finally:
        torch.set_num_threads(threads)
        native.set_instruction_set(widest)


@pytest.mark.parametrize("channels", [1, 3, 4, 16])
@pytest.mark.parametrize("background", noise_field.BACKGROUNDS)
def test_channels_do_not_depend_on_their_number(channels: int, background: str) -> None:
    cameras, render = scene("figure", 20, size=64)
    few, many = (
        kinds.surface(NoiseField(2, c, 16, 16, background=background), cameras, render, 3) for c in (channels, 16)
    )
    assert torch.equal(few, many[:, :channels])


@pytest.mark.parametrize(
    ("latent", "image"),
    [
        pytest.param((64, 64), (64, 64), id="s=1"),
        pytest.param((64, 64), (128, 128), id="s=2"),
        pytest.param((32, 32), (256, 256), id="s=8"),
        pytest.param((48, 80), (192, 320), id="48x80"),
        pytest.param((30, 48), (100, 160), id="no divisor"),
        pytest.param((64, 64), (40, 40), id="render smaller than latents"),
    ],
)
@pytest.mark.parametrize("scene_name", ["figure", "empty", "full"])
def test_any_shape_and_coverage_is_white(latent: tuple[int, int], image: tuple[int, int], scene_name: str) -> None:
    hit = {"figure": figure(), "empty": EMPTY, "full": FULL}[scene_name]
    cameras = views(20, size=image)
    if scene_name == "full":
        cameras = _camera(20.0, 15.0, 9.0, 40.0, image)
    render = render_scene(hit, cameras)
    field = NoiseField(4, 64, *latent)
    parts = kinds.surface_parts(field, cameras, render, 0)
    fields = kinds.surface(field, cameras, render, 0)[0]
    assert fields.shape == (64, *latent)
    assert abs(fields.var() - 1) < 5 * math.sqrt(2 / fields.numel())
    assert abs(morans_i(fields)[0].mean()) < 5 / math.sqrt(2 * fields.numel()) + 1 / fields[0].numel()
    if scene_name == "empty":
        assert parts.counts.sum() == 0 and parts.coverage.sum() == 0
    if scene_name == "full" and image[0] >= latent[0]:
        assert (parts.coverage == 1).all() and (parts.counts > 0).double().mean() > 0.999


def test_direction_background_follows_the_view() -> None:
    """Turning the camera moves the direction-keyed background with the world: a shift by 8 of 32 latent pixels."""
    cameras = views(0, 0, size=128)
    angle = 2 * math.atan(math.tan(math.radians(20)) / 4)
    turn = torch.eye(4, dtype=torch.float64)
    turn[0, 0] = turn[2, 2] = math.cos(angle)
    turn[0, 2], turn[2, 0] = math.sin(angle), -math.sin(angle)
    cameras.viewmats[1] = turn @ cameras.viewmats[1]
    render = render_scene(EMPTY, cameras)
    a, b = kinds.surface(NoiseField(0, 512, 32, 32, background="direction"), cameras, render, 0)
    found = [(a[:, 16, 16] * b[:, 16, column]).mean().item() for column in range(32)]
    assert max(found) == max(found[20:28]) and max(found) > 0.4
    assert morans_i(a)[1].min() > 1e-6 and abs(a.var() - 1) < 0.01


def test_none_is_no_noise_whatever_the_field() -> None:
    cameras, render = scene("figure", 20, 30, size=64)
    found = kinds.none(NoiseField(0, 4, 16, 16, gamma=0.5, beta=0.5), cameras, render, 3)
    assert found.shape == (2, 4, 16, 16) and not found.any()
    assert kinds.fixed(NoiseField(0, 4, 16, 16), cameras, render, 3).all(), "control"


def test_iid_is_new_in_every_view_and_step_and_fixed_is_not() -> None:
    cameras, render = scene("figure", 20, 30, size=64)
    field = NoiseField(0, 256, 16, 16, gamma=0.0)
    fresh, later = kinds.iid(field, cameras, render, 0), kinds.iid(field, cameras, render, 1)
    assert ks_normal(fresh) > 1e-3
    for a, b in ((fresh[0], fresh[1]), (fresh[0], later[0]), (fresh[0], later[1])):
        assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())
    each = kinds.per_view(field, cameras, render, 0)
    assert not torch.allclose(each[0], each[1]) and torch.equal(each, kinds.per_view(field, cameras, render, 1))
    same = kinds.fixed(field, cameras, render, 0)
    assert torch.equal(same[0], same[1]) and torch.equal(same, kinds.fixed(field, cameras, render, 1))


def test_the_surface_is_the_depth_that_was_chosen() -> None:
    cameras, render = scene("sphere", 20, size=64)
    expected, median = NoiseField(0, 4, 16, 16), NoiseField(0, 4, 16, 16, depth="median")
    both = Render(render.rgb, render.depth + 0.3, render.opacity, median_depth=render.depth)
    assert torch.equal(kinds.surface(expected, cameras, render, 0), kinds.surface(median, cameras, both, 0))
    assert not torch.equal(kinds.surface(expected, cameras, both, 0), kinds.surface(median, cameras, both, 0))
    with pytest.raises(ValueError, match=r"render.median_depth: .*got None"):
        kinds.surface(median, cameras, render, 0)


def test_undefined_depth_is_no_surface() -> None:
    cameras, render = scene("sphere", 20, size=64)
    depth = render.depth.clone()
    depth[:, :32] = torch.tensor([math.nan, math.inf, -1.0, 0.0]).repeat(16)[:, None]
    broken = Render(render.rgb, depth, render.opacity)
    parts = kinds.surface_parts(NoiseField(0, 4, 16, 16), cameras, broken, 0)
    assert parts.counts[:, :8].sum() == 0 and parts.counts[:, 8:].sum() > 0
    assert kinds.surface(NoiseField(0, 4, 16, 16), cameras, broken, 0).isfinite().all()


# The core against the oracle


@pytest.mark.parametrize("name", SCENES)
def test_core_agrees_with_the_oracle(name: str) -> None:
    assert_as_oracle(NoiseField(2**63 + 5, 4, 32, 32, gamma=1e-2), *scene(name, 23, 141, size=128))


def test_core_agrees_with_the_oracle_at_one_sample_per_pixel_and_wide_normals() -> None:
    assert_as_oracle(NoiseField(1, 4, 64, 64), *scene("figure", 23, 141, size=64))
    assert_as_oracle(NoiseField(1, 4, 32, 32, normal_radius=2), *scene("torus", 23, 141, size=64))
    assert_as_oracle(NoiseField(1, 4, 8, 8, normal_radius=2, smoothing=3), *scene("figure", 23, 141, size=64))
    assert_as_oracle(NoiseField(1, 4, 32, 32, smoothing=0), *scene("wing", 23, 141, size=64))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    place=st.tuples(st.floats(-180, 180), st.floats(-60, 80), st.floats(0.9, 4), st.floats(20, 70)),
    image=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    latent=st.tuples(st.integers(4, 24), st.integers(4, 24)),
    center=st.tuples(*[st.floats(-0.4, 0.4)] * 3),
)
def test_core_agrees_with_the_oracle_anywhere(
    place: tuple[float, float, float, float],
    image: tuple[int, int],
    latent: tuple[int, int],
    center: tuple[float, float, float],
) -> None:
    """Any camera, also one inside the object or before its near plane, any sizes."""
    hit: Hit = union(sphere(center, 0.35), capsule(center, (0.0, 0.5, 0.6), 0.15))
    cameras = _camera(*place, image)
    render = render_scene(hit, cameras)
    field = NoiseField(6, 2, *latent)
    assert_as_oracle(field, cameras, render)
    assert kinds.surface(field, cameras, render, 0).isfinite().all()


def test_counter_based_words_are_philox() -> None:
    """Known answers published with Philox4x32-10 (Random123)."""
    words = reference.philox4x32([np.array([0], np.uint64)] * 4, 0)
    assert [int(w[0]) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = np.array([0xFFFFFFFF], np.uint64)
    words = reference.philox4x32([ones] * 4, 2**64 - 1)
    assert [int(w[0]) for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


# Errors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("channels", 0),
        ("gamma", 1.5),
        ("gamma", []),
        ("beta", -0.1),
        ("background", "black"),
        ("depth", "mode"),
    ]
    + [("footprint", 0.0), ("span", 0), ("opacity_threshold", 1.0), ("normal_radius", 0), ("smoothing", -1)],
)
def test_settings_out_of_range_are_named(name: str, value: object) -> None:
    arguments: dict[str, Any] = {"seed": 0, "channels": 4, "height": 8, "width": 8, name: value}
    with pytest.raises(ValueError, match=rf"{name}.*expected .* got"):
        NoiseField(**arguments)


def test_sizes_that_disagree_are_named() -> None:
    cameras, render = scene("figure", 20, size=64)
    field = NoiseField(0, 4, 16, 16)
    with pytest.raises(ValueError, match=r"render.depth: expected \[1, 32, 32, 1\].*cameras.resized"):
        kinds.surface(field, cameras.resized(32, 32), render, 0)
    with pytest.raises(ValueError, match="step: expected"):
        kinds.surface(field, cameras, render, -1)


def test_public_names() -> None:
    assert gscfd.NoiseField is NoiseField and gscfd.surface is kinds.surface


def _camera(azimuth: float, elevation: float, distance: float, fov: float, image: tuple[int, int]) -> Cameras:
    a, e, d, f = torch.tensor([[azimuth], [elevation], [distance], [fov]], dtype=torch.float64)
    return orbit(a, e, d, f, width=image[1], height=image[0])


def _view(render: Render, v: int) -> Render:
    return Render(render.rgb[v : v + 1], render.depth[v : v + 1], render.opacity[v : v + 1])


def _latent_points(cameras: Cameras, render: Render) -> Tensor:
    """[V, 64 * 64, 16, 3] surface points of the 4 x 4 samples of each latent pixel."""
    return _points(cameras, render).reshape(-1, 64, 4, 64, 4, 3).transpose(2, 3).reshape(-1, 64 * 64, 16, 3)


def _points(cameras: Cameras, render: Render) -> Tensor:
    """[V, H * W, 3] float64 world points of the samples, NaN where there is no surface."""
    rows, columns = torch.meshgrid(
        torch.arange(cameras.height).double(), torch.arange(cameras.width).double(), indexing="ij"
    )
    pixels = torch.stack([columns + 0.5, rows + 0.5, torch.ones_like(rows)], -1).reshape(-1, 3)
    rays = pixels @ torch.linalg.inv(cameras.Ks.double()).transpose(1, 2)
    depth = torch.where(render.opacity > 0, render.depth, math.nan).double().flatten(1, 2)
    pose = camera_to_world(cameras).double()
    points: Tensor = (rays * depth) @ pose[:, :3, :3].transpose(1, 2) + pose[:, None, :3, 3]
    return points


def test_a_coarse_render_has_noise_as_white_and_mostly_the_same_as_a_fine_one() -> None:
    """Coarse to fine: where a stage goes from 64 to 256 pixels, latents of 32 cells keep most of their noise."""
    field, found = NoiseField(0, 16, 32, 32, gamma=0.0), {}
    for size in (64, 256):
        cameras = views(20.0, 80.0, size=size)
        render = render_scene(figure(), cameras)
        found[size] = kinds.surface(field, cameras, render, 0)
        covered = torch.nn.functional.adaptive_avg_pool2d(render.opacity[..., 0], 32) > 0.99
    coarse, fine = (found[size].permute(0, 2, 3, 1)[covered] for size in (64, 256))
    spread = 4 / math.sqrt(coarse.numel())
    for values in (coarse, fine):
        assert abs(values.mean()) < spread and abs(values.square().mean() - 1) < spread * math.sqrt(2)
    assert (coarse * fine).mean() > 0.8
    other = kinds.surface(NoiseField(1, 16, 32, 32, gamma=0.0), cameras, render, 0).permute(0, 2, 3, 1)[covered]
    assert abs((coarse * other).mean()) < spread, "the control: another seed"
