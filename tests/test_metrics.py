"""Every figure against a value known in closed form, with something that must score otherwise beside it."""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import pytest
import torch
from present import present
from scenes import render_scene, sphere
from scipy import stats
from scipy.linalg import sqrtm
from splats import two_faced
from torch import Tensor

from gscfd.cameras import azimuth_elevation, turntable
from gscfd.distil.state import paper_gradient_variance, scaled_gradient_variance
from gscfd.gaussians import Gaussians
from gscfd.lab import truths
from gscfd.lab.assets import as_gaussians
from gscfd.lab.intervals import benjamini_hochberg, bootstrap, holm, runs_needed, swap_test
from gscfd.lab.judges import SCORER, Judges, Scorer
from gscfd.lab.metrics import (
    Moments,
    diversity,
    frechet_distance,
    haze,
    hole_share,
    inception_score,
    janus,
    moments,
    psnr,
    r_precision,
    reprojection_error,
    speckle,
    win_rate,
)
from gscfd.lab.references import true_reference
from gscfd.toybox.data import make_group
from gscfd.toybox.models import CLIP_SIZE
from gscfd.toybox.objects import sample_object
from gscfd.types import Cameras, Render


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_r_precision_counts_the_views_that_find_their_caption() -> None:
    similarity = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6], [0.5, 0.1]])
    assert r_precision(similarity, 0) == 0.75 and r_precision(similarity, 1) == 0.25
    alike = similarity[:, [0, 1, 0]]
    assert [r_precision(alike, truth) for truth in range(3)] == [0.75, 0.25, 0.75], "a caption in another spelling"


# Fréchet distance


def normal(mean: list[float], covariance: list[list[float]]) -> Moments:
    return Moments(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    one, other = normal([0.0, 0.0], [[4.0, 0.0], [0.0, 9.0]]), normal([3.0, 4.0], [[1.0, 0.0], [0.0, 25.0]])
    assert frechet_distance(one, other) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 5) ** 2)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)


def test_the_frechet_distance_holds_for_covariances_that_do_not_commute() -> None:
    a, b = (torch.randn(5, 5, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    one, other = a @ a.T, b @ b.T
    expected = torch.trace(one + other).item() - 2 * sqrtm((one @ other).numpy()).trace().real
    found = frechet_distance(Moments(torch.zeros(5), one), Moments(torch.zeros(5), other))
    assert found == pytest.approx(expected) and found > 0.1


def test_samples_of_one_distribution_are_near_and_those_of_another_far() -> None:
    draws = torch.randn(3, 4000, 4, generator=seeded(3))
    near = frechet_distance(moments(draws[0]), moments(draws[1]))
    shifted = frechet_distance(moments(draws[0]), moments(draws[2] + 1))
    wider = frechet_distance(moments(draws[0]), moments(2 * draws[2]))
    assert near < 0.01
    assert shifted == pytest.approx(4, abs=0.3) and wider == pytest.approx(4, abs=0.3)


def test_fewer_samples_than_features_still_have_a_distance() -> None:
    few = torch.randn(5, 20, generator=seeded(4))
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0, abs=1e-6)


# Inception score


def test_the_inception_score_counts_sure_classes_and_is_one_for_unsure_or_equal_ones() -> None:
    sure = torch.eye(6).repeat(2, 1)
    assert inception_score(sure, 1) == pytest.approx(6)
    assert inception_score(sure, 2) == pytest.approx(6), "each half holds every class"
    assert inception_score(sure[:6], 2) == pytest.approx(3), "each half holds three classes"
    assert inception_score(torch.full((12, 6), 1 / 6), 2) == pytest.approx(1)
    assert inception_score(torch.eye(6)[:1].repeat(12, 1), 2) == pytest.approx(1)


def test_the_inception_score_between_is_exp_of_the_mutual_information() -> None:
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert inception_score(p, 1) == pytest.approx(math.exp(math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)))


# Diversity


def test_diversity_is_zero_for_equal_objects_and_one_for_unrelated_ones() -> None:
    side = torch.nn.functional.normalize(torch.randn(6, 5, generator=seeded()), dim=-1)
    assert diversity(side.expand(3, 6, 5)) == pytest.approx(0, abs=1e-6)
    apart = torch.eye(8).reshape(4, 2, 8)
    assert diversity(apart) == pytest.approx(1)
    # Sides are compared with the same side only, and pairs count once.
    mixed = torch.stack([apart[0], apart[0], apart[1]])
    assert diversity(mixed) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least 2"):
        diversity(apart[:1])


def test_copies_of_an_object_weigh_its_pairs_and_are_none_themselves() -> None:
    objects = torch.nn.functional.normalize(torch.randn(3, 4, 6, generator=seeded(1)), dim=-1)
    assert diversity(objects, torch.tensor([1, 1, 0])) == pytest.approx(diversity(objects[:2]))
    pairs = [diversity(objects[[i, j]]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert diversity(objects, torch.tensor([2, 1, 1])) == pytest.approx((2 * pairs[0] + 2 * pairs[1] + pairs[2]) / 5)
    assert math.isnan(diversity(objects, torch.tensor([3, 0, 0])))


# Janus score


def test_the_janus_score_is_the_share_of_views_from_behind_that_look_like_the_front() -> None:
    azimuths = torch.tensor([0.0, 90.0, 180.0, -170.0, 130.0, -120.0])
    sides = torch.eye(3)
    true_azimuths = torch.tensor([10.0, -90.0, 180.0])
    looks = torch.tensor([0, 0, 0, 2, 2, 1])  # the view at 180 degrees shows a front
    assert janus(sides[looks], azimuths, sides, true_azimuths) == pytest.approx(1 / 4)
    looks[2] = 2
    assert janus(sides[looks], azimuths, sides, true_azimuths) == 0
    assert math.isnan(janus(sides[:2], azimuths[:2], sides, true_azimuths))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(SCORER)


def test_an_object_of_two_fronts_has_a_worse_janus_score_than_the_true_one(scorer: Scorer) -> None:
    cameras = turntable(12, size=64)
    reference = present(true_reference("a yellow duck", 36, 64, Judges(scorers=[scorer])))
    scores = {}
    kinds: list[tuple[str, Callable[[Gaussians], Gaussians]]]
    kinds = [("true", lambda splat: splat), ("two-faced", two_faced)]
    for name, make in kinds:
        splat = make(as_gaussians(sample_object(100, kind="duck", color="yellow", spacing=0.06)))
        views = splat.render(cameras).over(torch.tensor(0.75)).clamp(0, 1).permute(0, 3, 1, 2)
        features, azimuths = scorer.image_features(views), azimuth_elevation(cameras)[0]
        scores[name] = janus(features, azimuths, reference.features, reference.azimuths)
    assert scores["true"] <= 0.2 and scores["two-faced"] >= 0.8, scores


# View consistency and holes


@pytest.fixture(scope="module")
def ball() -> tuple[Render, Cameras]:
    """A sphere of radius .6 from twelve sides."""
    cameras = turntable(12, size=64)
    return render_scene(sphere(), cameras), cameras


def points(render: Render, cameras: Cameras) -> Tensor:
    """[V, H, W, 3] world positions of what is seen."""
    pixels = torch.stack(torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="xy"), -1)
    rays = torch.cat([pixels, torch.ones(64, 64, 1)], -1) @ torch.linalg.inv(cameras.Ks[0]).T
    there = rays * render.depth - cameras.viewmats[:, None, None, :3, 3]
    return torch.einsum("vji,vhwj->vhwi", cameras.viewmats[:, :3, :3], there)


def painted(render: Render, rgb: Tensor, depth: Tensor | None = None) -> Render:
    return Render(rgb * render.opacity, render.depth if depth is None else depth, render.opacity)


def test_colors_that_stay_on_the_surface_agree_between_views_and_others_do_not(ball: tuple[Render, Cameras]) -> None:
    render, cameras = ball
    paint = 0.5 + 0.5 * torch.sin(6 * points(render, cameras))
    right = reprojection_error(painted(render, paint), cameras, background=0.0)
    slipped = reprojection_error(painted(render, paint, 0.8 * render.depth), cameras, background=0.0)
    sliding = reprojection_error(painted(render, paint[:1].expand_as(paint)), cameras, background=0.0)
    assert right < 0.03, right
    assert slipped > 3 * right and sliding > 3 * right, (right, slipped, sliding)


def test_the_reprojection_error_is_the_difference_of_color(ball: tuple[Render, Cameras]) -> None:
    render, cameras = ball
    gray = torch.linspace(0, 1, 12)[:, None, None, None].expand(-1, 64, 64, 3)
    found = reprojection_error(painted(render, gray), cameras, background=0.5)
    assert found == pytest.approx((11 * (1 / 11) + 1) / 12, abs=0.02), "eleven steps of 1/11 and one of 1"
    assert reprojection_error(painted(render, torch.ones(12, 64, 64, 3)), cameras, background=1.0) < 1e-6


def test_holes_are_counted_whether_one_sees_the_background_or_the_inside_and_wide_openings_are_not(
    ball: tuple[Render, Cameras],
) -> None:
    render, _ = ball
    whole = int((render.opacity > 0.5).sum())
    assert hole_share(render, width=0.1) < 0.01
    middle, open_, deep = slice(30, 34), render.opacity.clone(), render.depth.clone()
    open_[:, middle, middle] = 0
    deep[:, middle, middle] += 0.5
    through = hole_share(Render(render.rgb, render.depth, open_), width=0.1)
    inside = hole_share(Render(render.rgb, deep, render.opacity), width=0.1)
    assert through == pytest.approx(12 * 16 / whole, abs=0.005) and inside == pytest.approx(through, abs=0.005)
    wide = render.opacity.clone()
    wide[:, 26:38, 26:38] = 0
    assert hole_share(Render(render.rgb, render.depth, wide), width=0.1) < 0.01


def test_haze_is_none_for_a_solid_object_and_what_lets_light_through_for_fog() -> None:
    solid = torch.zeros(2, 8, 8, 1)
    solid[:, 2:6, 2:6] = 1.0
    assert haze(solid) == 0.0 and math.isnan(haze(0 * solid))
    assert haze(0.25 * solid) == pytest.approx(0.75)
    halves = solid.clone()
    halves[0] *= 0.5
    assert haze(halves) == pytest.approx(0.25 / 1.5)


def test_psnr_is_that_of_the_mean_square() -> None:
    images = torch.rand(2, 3, 8, 8, generator=seeded())
    assert psnr(images, images + 0.1) == pytest.approx(20, abs=1e-3) and psnr(images, images) == math.inf


def test_speckle_is_the_amplitude_of_what_is_finer_than_5_pixels() -> None:
    disk = torch.full((1, 3, 32, 32), 0.75)
    disk[..., 6:26, 6:26] = 0.3
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 0.2 - 0.1
    inside = disk < 0.5
    assert speckle(disk, background=0.75) < 1e-6
    assert speckle(disk + checks * inside, background=0.75) == pytest.approx(0.1, abs=0.005)
    wide = 0.1 * torch.sin(torch.arange(32) / 32 * math.pi)
    assert speckle(disk + wide * inside, background=0.75) < 0.005, "shading is none"
    assert math.isnan(speckle(torch.full((1, 3, 32, 32), 0.75), background=0.75))


def test_a_true_object_is_near_to_true_objects_of_its_prompt_and_far_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(truths, "OBJECTS", 12)
    truths.truths_of.cache_clear()
    ducks, mugs = (present(truths.truths_of(prompt, 32)) for prompt in ("a yellow duck", "a blue mug"))
    assert len(ducks.known) == 12 and len(ducks.fresh) == truths.FRESH
    assert ducks.nearest(ducks.known[3] / 255) == math.inf
    assert ducks.ceiling > 2 + ducks.nearest(mugs.fresh[0] / 255), "the control"
    assert 0 < ducks.speckle < 0.05
    assert truths.truths_of("a yellow duck on a brown table", 32) is None and truths.truths_of("a nonsense", 32) is None
    truths.truths_of.cache_clear()


def test_the_win_rate_counts_ties_half() -> None:
    assert win_rate(torch.tensor([2.0, 1.0, 1.0, 3.0]), torch.tensor([1.0, 1.0, 2.0, 0.0])) == 0.625


@pytest.mark.parametrize("noise, expected", [(0.0, 0.0), (1.0, 0.5**0.5), (1e6, 1.0)])
def test_the_gradient_variance_is_the_share_that_does_not_repeat(noise: float, expected: float) -> None:
    """Gradients 1 + noise n: sqrt(noise^2 / (1 + noise^2)), but for what ten steps do not average out."""
    generator = seeded()
    parameter = torch.nn.Parameter(torch.zeros(20_000))
    optimizer = torch.optim.Adam([parameter], lr=1e-3, betas=(0.9, 0.99))
    assert scaled_gradient_variance(optimizer).isnan()
    for _ in range(100):
        parameter.grad = 1 + noise * torch.randn(20_000, generator=generator)
        optimizer.step()
    seen = expected * (1 - 0.1 / 1.9) ** 0.5
    assert scaled_gradient_variance(optimizer).item() == pytest.approx(seen, abs=0.01)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_the_papers_gradient_variance_falls_as_the_gradient_grows_and_the_share_does_not(factor: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([parameter], lr=1e-3, betas=(0.5, 0.5))
    for sign in (1.0, -1.0):
        parameter.grad = factor * sign * torch.ones(2)
        optimizer.step()
    # Moments after two steps: m = -1/3, v = 1, in multiples of the factor; two entries.
    assert scaled_gradient_variance(optimizer).item() == pytest.approx((8 / 9) ** 0.5)
    assert paper_gradient_variance(optimizer).item() == pytest.approx((16 / 9) ** 0.5 / 2 / factor)


def test_the_scorer_finds_the_captions_of_unseen_objects_and_not_shuffled_ones(scorer: Scorer) -> None:
    groups = [make_group(seed, views=4, size=CLIP_SIZE, grouped=True) for seed in range(40)]
    captions = [group.captions[0] for group in groups]
    hits = [
        r_precision(scorer.similarity(group.images, captions), captions.index(caption))
        for group, caption in zip(groups, captions, strict=True)
    ]
    assert sum(hits) / len(hits) > 0.8
    shuffled = [r_precision(scorer.similarity(g.images, captions), (i + 7) % 40) for i, g in enumerate(groups)]
    assert sum(shuffled) / len(shuffled) < 0.1


# Intervals


def covered(
    groups: Sequence[Hashable],
    truth: float,
    draw: Callable[[torch.Generator], Tensor],
    *,
    shrink: float = 1.0,
    trials: int = 250,
) -> float:
    """Share of trials whose interval, or the inner share of it, holds the truth."""
    hits = 0
    for trial in range(trials):
        values = draw(seeded(trial)).numpy()

        def mean(chosen: np.ndarray, values: np.ndarray = values) -> float:
            return float(values[chosen].mean())

        found = bootstrap(mean, groups, draws=150, seed=trial)
        middle, half = (found.low + found.high) / 2, (found.high - found.low) / 2
        hits += abs(middle - truth) <= shrink * half
    return hits / trials


def test_intervals_of_few_runs_hold_the_truth_about_as_often_as_they_say() -> None:
    groups = ["a mug"] * 6
    share = covered(groups, 3.0, lambda g: 3 + torch.randn(6, generator=g))
    half = covered(groups, 3.0, lambda g: 3 + torch.randn(6, generator=g), shrink=0.5)
    assert 0.9 <= share <= 0.99 and half < 0.85, (share, half)


def test_prompts_are_taken_as_given_where_each_has_several_seeds() -> None:
    offsets = torch.tensor([0.0] * 6 + [100.0] * 6)
    groups = ["a mug"] * 6 + ["a duck"] * 6
    assert 0.9 <= covered(groups, 50.0, lambda g: offsets + torch.randn(12, generator=g)) <= 0.99
    values = (offsets + torch.randn(12, generator=seeded())).numpy()
    within = bootstrap(lambda chosen: float(values[chosen].mean()), groups)
    across = bootstrap(lambda chosen: float(values[chosen].mean()), list(range(12)))
    assert across.high - across.low > 20 * (within.high - within.low)


def test_fewer_than_five_runs_have_no_interval_and_five_have_one() -> None:
    values = np.arange(5.0)
    four, five = (bootstrap(lambda chosen: float(values[chosen].mean()), ["a mug"] * n) for n in (4, 5))
    assert four.value == 1.5 and math.isnan(four.low) and math.isnan(four.high) and math.isnan(four.error)
    assert five.low < five.value == 2 < five.high


def test_an_interval_stays_in_the_range_of_its_figure() -> None:
    shares = np.array([1.0] * 10 + [0.6, 0.7])

    def biased(chosen: np.ndarray) -> float:
        """Falls when runs repeat, as an inception score does, so that the shift leaves the range."""
        return float(shares[chosen].mean() * len(set(chosen)) / len(chosen))

    free, clipped = (bootstrap(biased, ["a mug"] * 12, bounds=b) for b in ((-math.inf, math.inf), (0.0, 1.0)))
    assert free.high > 1 == clipped.high and clipped.low == free.low


def test_a_statistic_that_resampling_biases_lies_within_its_interval() -> None:
    points = torch.randn(12, 3, generator=seeded()).numpy()
    spread = bootstrap(lambda chosen: float(points[chosen].var(0).sum() ** 3), ["a mug"] * 12)
    assert spread.low < spread.value < spread.high


def test_effect_of_a_mean_is_cohens_d() -> None:
    values = 0.7 + torch.randn(40, generator=seeded()).numpy()
    found = bootstrap(lambda chosen: float(values[chosen].mean()), ["a mug"] * 40, draws=4000)
    assert found.effect == pytest.approx(values.mean() / values.std(ddof=1), rel=0.05)


def test_p_values_of_exchanges_are_uniform_without_an_effect_and_small_with_one() -> None:
    def p_of(trial: int, shift: float) -> float:
        apart = shift + torch.randn(8, generator=seeded(trial)).numpy()
        return swap_test(lambda swap: float((apart * np.where(swap, -1, 1)).mean()), 8, draws=300)

    without = np.array([p_of(trial, 0.0) for trial in range(200)])
    assert stats.kstest(without, "uniform").pvalue > 0.01 and without.min() >= 2 / 256
    assert np.mean([p_of(trial, 2.0) < 0.05 for trial in range(40)]) > 0.9
    assert math.isnan(swap_test(lambda swap: 1.0, 4, draws=300))
    assert swap_test(lambda swap: float(not swap.any()), 20, draws=99) == 1 / 100


def test_corrections_are_those_of_the_literature() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p_values) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([0.5, 1.0]) == [1.0, 1.0] and holm([0.02]) == [0.02]


def test_the_runs_that_power_asks_for_find_the_effect_in_four_of_five_experiments() -> None:
    p = 2 * stats.norm.sf(0.5 * math.sqrt(16))  # 16 runs whose mean is half a standard deviation
    needed = runs_needed(p, 16, tests=1)
    assert needed == 32
    values = 0.5 + torch.randn(2000, 32, generator=seeded()).numpy()
    found = stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05
    assert 0.75 < found.mean() < 0.85
    assert present(runs_needed(p, 16, tests=25)) > 1.7 * 32
    assert runs_needed(1.0, 16, tests=1) is None
