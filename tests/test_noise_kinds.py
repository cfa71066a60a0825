"""The other noise functions with a view's geometry: world_map (FSD Eq. 16) and radial (one map of directions).

Thresholds and measured values: docs/noise.md. Every random number is counter-based: these tests are deterministic.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_as_oracle
from scenes import Hit, ellipsoid, figure, render_scene, sphere, torus, union, views, wing
from torch import Tensor
from whiteness import View, assert_white_pixels, consistency, ks_normal, ks_uniform, morans_i, owner_views, shared

from gscfd import native
from gscfd.cameras import orbit
from gscfd.noise import field as noise_field
from gscfd.noise import kinds
from gscfd.noise.field import NoiseField
from gscfd.noise_kernels import reference
from gscfd.types import Cameras, Render

SCENES = {"sphere": sphere(), "figure": figure(), "torus": torus(), "wing": wing()}
EMPTY = sphere((0.0, 0.0, -50.0), 0.1)
KINDS = {"world_map": kinds.world_map, "radial": kinds.radial}
T = 4096

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@functools.cache
def scene(name: str, *azimuths: float, size: int = 256) -> tuple[Cameras, Render]:
    cameras = views(*azimuths, size=size)
    return cameras, render_scene(SCENES[name], cameras)


@functools.cache
def radial_views(name: str) -> list[View]:
    """A first view, and views 10 and 60 degrees to either side of it."""
    return owner_views(NoiseField(0, 4, 64, 64), *scene(name, 20, 30, 80, 10, -40), radial=True)


# Laws


@every_kind
def test_every_view_is_white(kind: kinds.Kind) -> None:
    field = NoiseField(1, T, 32, 32, gamma=0.0)
    fields = kind(field, *scene("figure", 20, size=128), 0)[0]
    assert_white_pixels(fields)
    assert 5.0 < fields.abs().max() < 6.7


@every_kind
def test_seeds_and_steps_are_white_images(kind: kinds.Kind) -> None:
    cameras, render = scene("figure", 20, size=128)
    fields = torch.cat([kind(NoiseField(s, 4, 64, 64), cameras, render, 100 * s) for s in range(64)]).flatten(0, 1)
    value, p = morans_i(fields)
    ks = [ks_normal(image) for image in fields]
    print(f"Moran's I {value.mean():.5f}, p < .01: {(p < 0.01).double().mean():.3f}, {ks_uniform(p):.3f}")
    assert abs(value.mean()) <= 0.0028
    assert (p < 0.01).double().mean() <= 0.03
    assert ks_uniform(p) > 1e-3 and ks_uniform(ks) > 1e-3


@every_kind
@pytest.mark.parametrize("background", noise_field.BACKGROUNDS)
def test_it_ages_exactly_once_per_step_and_blends(kind: kinds.Kind, background: str) -> None:
    """Lags 1 to 4 correlate by (1 - gamma)^(lag / 2), on the surface and off it; beta scales what lasts."""
    cameras, render = scene("figure", 20, size=64)
    field = NoiseField(7, 512, 16, 16, gamma=0.1, beta=0.8, background=background, span=8)
    images = [kind(field, cameras, render, step)[0] for step in range(5)]
    opacity = torch.nn.functional.avg_pool2d(render.opacity[0, ..., 0][None], 4)[0]
    for part, inside in (("surface", opacity == 1), ("background", opacity == 0)):
        kept = 0.0 if part == "background" and background == "fresh" else 0.8
        for lag in range(1, 5):
            found = (images[0] * images[lag])[:, inside].mean().item()
            assert abs(found - kept * 0.9 ** (lag / 2)) < 4.5 / math.sqrt(512 * inside.sum().item()), (part, lag)


@every_kind
def test_without_injection_it_is_constant(kind: kinds.Kind) -> None:
    field = NoiseField(7, 4, 16, 16, gamma=0.0)
    assert torch.equal(kind(field, *scene("figure", 20, size=64), 1), kind(field, *scene("figure", 20, size=64), 999))


@every_kind
def test_it_depends_on_neither_batch_nor_threads_nor_instruction_set(kind: kinds.Kind) -> None:
    cameras, render = scene("figure", 20, 110, 200, 290, size=64)
    field = NoiseField(2, 5, 16, 16, background="direction", beta=0.9)
    together = kind(field, cameras, render, 3)
    assert torch.equal(together, kind(field, cameras, render, 3))
    for v in range(4):
        one = Render(render.rgb[v : v + 1], render.depth[v : v + 1], render.opacity[v : v + 1])
        assert torch.equal(together[v : v + 1], kind(field, cameras[v : v + 1], one, 3))
    few = kind(NoiseField(2, 2, 16, 16, background="direction", beta=0.9), cameras, render, 3)
    assert torch.equal(together[:, :2], few)
    threads, widest = torch.get_num_threads(), native.instruction_set()
    try:
        torch.set_num_threads(3)
        native.set_instruction_set("baseline")
        assert torch.equal(together, kind(field, cameras, render, 3))
    finally:
        torch.set_num_threads(threads)
        native.set_instruction_set(widest)


@every_kind
@pytest.mark.parametrize("latent, image", [((48, 80), (96, 160)), ((30, 48), (100, 160)), ((64, 64), (40, 40))])
def test_any_shape_and_coverage_is_white(kind: kinds.Kind, latent: tuple[int, int], image: tuple[int, int]) -> None:
    for hit in (figure(), EMPTY, sphere((0.0, 0.0, 0.0), 1.2)):
        cameras = views(20, size=image)
        fields = kind(NoiseField(4, 64, *latent), cameras, render_scene(hit, cameras), 0)[0]
        assert fields.shape == (64, *latent)
        assert abs(fields.var() - 1) < 5 * math.sqrt(2 / fields.numel())
        assert abs(morans_i(fields)[0].mean()) < 5 / math.sqrt(2 * fields.numel()) + 1 / fields[0].numel()


@every_kind
def test_sizes_that_disagree_are_named(kind: kinds.Kind) -> None:
    cameras, render = scene("figure", 20, size=64)
    field = NoiseField(0, 4, 16, 16)
    with pytest.raises(ValueError, match=r"render.*: expected \[1, 32, 32, 1\].*cameras.resized"):
        kind(field, cameras.resized(32, 32), render, 0)
    with pytest.raises(ValueError, match="step: expected"):
        kind(field, cameras, render, -1)
    with pytest.raises(ValueError, match="theta: expected"):
        NoiseField(0, 4, 16, 16, theta=0.0)


# World map


def _patches(field: NoiseField, azimuths: list[float], elevations: list[float]) -> Tensor:
    """[V, C, h, w] of cameras that see nothing but surface."""
    a, e = torch.tensor(azimuths).double(), torch.tensor(elevations).double()
    cameras = orbit(a, e, torch.full_like(a, 3.0), torch.full_like(a, 30.0), 32, 32)
    full = torch.ones(len(a), 32, 32, 1)
    return kinds.world_map(field, cameras, Render(full.expand(-1, -1, -1, 3), full, full), 0)


@pytest.mark.parametrize("theta", [60.0, 115.0, 180.0, 360.0])
def test_the_world_map_is_periodic_in_azimuth(theta: float) -> None:
    field = NoiseField(0, 4, 16, 24, theta=theta)
    a, b, c = _patches(field, [-170.0, 190.0, 190.0 + 360.0], [10.0] * 3)
    assert torch.equal(a, b) and torch.equal(a, c)


def test_the_world_map_moves_with_the_camera_by_whole_cells() -> None:
    """Going round by theta / w degrees moves the patch by a column to the left, rising moves it down."""
    field = NoiseField(0, 4, 16, 24)
    a, round_by_5, below_by_3, nearly = _patches(field, [30.0, 30.0 + 5 * 7.5, 30.0, 32.0], [0.0, 0.0, 3 * 11.25, 1.0])
    assert torch.equal(round_by_5[:, :, :-5], a[:, :, 5:])
    assert torch.equal(below_by_3[:, 3:], a[:, :-3])
    assert torch.equal(nearly, a), "motion of less than half a cell is rounded away, not interpolated"


def test_opposite_cameras_read_different_parts_of_the_world_map() -> None:
    """With theta = 180 the map is two images wide; with 360 it is one, and the opposite view is half a turn away."""
    a, b = _patches(NoiseField(0, 1024, 16, 16), [0.0, 180.0], [0.0, 0.0])
    assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())
    a, b = _patches(NoiseField(0, 4, 16, 16, theta=360.0), [0.0, 180.0], [0.0, 0.0])
    assert torch.equal(b, a.roll(8, -1))


def test_the_world_map_reaches_the_poles() -> None:
    fields = _patches(NoiseField(0, 256, 16, 16), [10.0, 10.0], [89.9, -89.9])
    assert fields.isfinite().all() and abs(fields.var() - 1) < 0.02
    assert abs((fields[0] * fields[1]).mean()) < 4 / math.sqrt(fields[0].numel())


def test_the_foreground_of_the_world_map_is_decided_over_the_latent_footprint() -> None:
    cameras = views(0, size=4)
    opacity = torch.zeros(1, 4, 4, 1)
    opacity[0, :2, :2, 0] = torch.tensor([[1.0, 1.0], [0.1, 0.0]])
    opacity[0, :2, 2:, 0] = torch.tensor([[1.0, 0.4], [0.4, 0.1]])
    render = Render(opacity.expand(-1, -1, -1, 3), opacity, opacity)
    field = NoiseField(0, 4, 2, 2)
    full = torch.ones_like(opacity)
    surface_only = kinds.world_map(field, cameras, Render(full, full, full), 0)[0]
    empty_only = kinds.world_map(field, cameras, Render(0 * full, full, 0 * full), 0)[0]
    found = kinds.world_map(field, cameras, render, 0)[0]
    assert torch.equal(found[:, 0, 0], surface_only[:, 0, 0]), "an average of .525"
    assert torch.equal(found[:, 0, 1], empty_only[:, 0, 1]), "an average of .475"
    assert torch.equal(found[:, 1], empty_only[:, 1])


def test_the_world_map_agrees_between_near_views_but_not_where_the_surface_went() -> None:
    """A sphere 7.5 degrees on, one column of the map: the patch moves as one. After 45 degrees the patch has moved by
    six columns, the middle of the sphere by more."""
    cameras = views(20, 27.5, size=96, elevation=0)
    render = render_scene(sphere(), cameras)
    field = NoiseField(0, 4096, 24, 24, gamma=0.0)
    best = {}
    for kind in (kinds.world_map, kinds.surface):
        a, b = kind(field, cameras, render, 0)[:, :, 9:15, 9:15]
        correlation = torch.einsum("chw,cij->hwij", a, b) / len(a)
        best[kind.__name__] = (correlation**2 - 1 / 4096).sum((2, 3)).mean().item()
    print(f"E in the middle of a sphere, 7.5 degrees on: {best}")
    assert best["world_map"] > 0.7, "neighbors predict each other"
    cameras = views(20, 65, size=96, elevation=0)
    render = render_scene(sphere(), cameras)
    a, b = kinds.world_map(field, cameras, render, 0)
    moved = [(a[:, 12, x] * b[:, 12, 12]).mean().item() for x in range(24)]
    points_moved = 0.9 * 12 * math.sin(math.radians(45))
    assert max(moved) > 0.9 and abs(moved.index(max(moved)) - 12 - points_moved) > 1, "but not where the surface went"


# Radial


@pytest.mark.parametrize("name", SCENES)
def test_every_radial_cell_has_one_owner(name: str) -> None:
    first = radial_views(name)[0]
    assert len(np.unique(first.cells)) == len(first.cells)
    assert np.array_equal(np.bincount(first.pixels, minlength=64 * 64), first.counts)
    itself = shared(first, first).tocoo()
    assert np.array_equal(itself.row, itself.col), "no cell is shared within a view"


@pytest.mark.parametrize("name, at_10, at_60", [("sphere", 0.42, 0.14), ("figure", 0.4, 0.165), ("torus", 0.38, 0.15)])
def test_near_views_agree_on_radial_noise(name: str, at_10: float, at_60: float) -> None:
    first, *others = radial_views(name)
    e = [consistency(first, view) for view in others]
    e_10, e_60 = (e[0] + e[2]) / 2, (e[1] + e[3]) / 2
    print(f"{name}: E {e_10:.3f} at 10 degrees, {e_60:.3f} at 60")
    assert e_10 >= at_10 and e_60 >= at_60


def test_opposite_radial_views_of_a_sphere_share_nothing() -> None:
    azimuth = torch.tensor([30.0, 210.0, 30.0]).double()
    elevation = torch.tensor([15.0, -15.0, -15.0]).double()
    ones = torch.ones(3).double()
    cameras = orbit(azimuth, elevation, 2.92 * ones, 40 * ones, 256, 256)
    first, opposite, _ = owner_views(NoiseField(0, 4, 64, 64), cameras, render_scene(sphere(), cameras), radial=True)
    assert consistency(first, opposite) < 0.001


def _starved(hit: Hit, radial: bool) -> float:
    """Share of covered pixels without cells, camera 40 degrees up."""
    cameras = views(20, size=128, elevation=40)
    (view,) = owner_views(NoiseField(0, 4, 32, 32), cameras, render_scene(hit, cameras), radial=radial)
    return float(((view.counts == 0) & (view.coverage > 0)).sum() / (view.coverage > 0).sum())


def test_radial_noise_starves_on_flat_parts_and_surface_noise_does_not() -> None:
    """A thin plate through the origin, seen from the origin edge-on, has no cells to give. A ball has."""
    plate, ball = ellipsoid((0.0, 0.0, 0.0), (0.9, 0.9, 0.005)), sphere()
    starved = {(name, r): _starved(hit, r) for name, hit in (("plate", plate), ("ball", ball)) for r in (True, False)}
    print(f"covered pixels without cells: {starved}")
    assert starved["plate", True] > 0.3
    assert max(starved["ball", True], starved["plate", False], starved["ball", False]) <= 0.01


@pytest.mark.parametrize("name", SCENES)
def test_the_radial_core_agrees_with_the_oracle(name: str) -> None:
    """No whole degrees: rays of the map then pass between two samples, and rounding decides."""
    field = NoiseField(2**63 + 5, 4, 32, 32, gamma=1e-2)
    assert_as_oracle(field, *scene(name, 23.37, 141.61, size=64), radial=True)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    place=st.tuples(st.floats(-180, 180), st.floats(-60, 80), st.floats(0.9, 4), st.floats(20, 70)),
    image=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    latent=st.tuples(st.integers(4, 24), st.integers(4, 24)),
    center=st.tuples(*[st.floats(-0.4, 0.4)] * 3),
)
def test_the_radial_core_agrees_with_the_oracle_anywhere(
    place: tuple[float, float, float, float],
    image: tuple[int, int],
    latent: tuple[int, int],
    center: tuple[float, float, float],
) -> None:
    azimuth, elevation, distance, fov = (torch.tensor([value + 0.01234]).double() for value in place)
    cameras = orbit(azimuth, elevation, distance, fov, width=image[1], height=image[0])
    render = render_scene(
        union(
            sphere((center[0] + 0.0123, center[1] + 0.0234, center[2] + 0.0345), 0.35), sphere((0.0, 0.5, 0.6), 0.15)
        ),
        cameras,
    )
    assert_as_oracle(NoiseField(6, 2, *latent), cameras, render, radial=True)


def test_the_radial_map_is_one_to_one_and_equal_area() -> None:
    u, v = (x.ravel() for x in np.meshgrid(np.linspace(-0.999, 0.999, 81), np.linspace(-0.997, 0.997, 80)))
    for side in (-1, 1):
        direction = reference._unsquare(u, v, side)
        assert np.allclose(np.linalg.norm(direction, axis=1), 1) and (side * direction[:, 2] >= 0).all()
        back = reference._square(direction, side)
        assert np.allclose(back[0], u) and np.allclose(back[1], v)
        # Solid angle per area of the square: |d_u x d_v| = 2 pi / 4, off the creases on the diagonals.
        smooth = np.abs(np.abs(u) - np.abs(v)) > 1e-3
        du, dv = ((reference._unsquare(u + a, v + b, side) - direction) / 1e-6 for a, b in ((1e-6, 0), (0, 1e-6)))
        area = np.linalg.norm(np.cross(du, dv), axis=1)
        assert np.allclose(area[smooth], math.pi / 2, rtol=1e-3)
