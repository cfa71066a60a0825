"""The toybox world keeps its promises: what it says is what it made, evenly sampled, the same for every seed."""

from __future__ import annotations

import colorsys
import re
from typing import Any

import numpy as np
import pytest
from scipy.spatial import KDTree

from gscfd.toybox.kinds import CATALOGUE, COLORS
from gscfd.toybox.objects import KINDS, WITHHELD, ToyObject, sample_object
from gscfd.toybox.truth import KNOWN_PROMPTS, WITHHELD_PROMPTS, true_objects
from gscfd.toybox.words import Caption, parse_caption, unknown_words, vocabulary, write_caption

ARRAYS = ("means", "quats", "scales", "opacities", "colors", "normals")


@pytest.fixture(scope="module")
def one_of_each() -> list[ToyObject]:
    return [sample_object(seed, kind=kind) for seed, kind in enumerate(KINDS)]


@pytest.fixture(scope="module")
def many() -> list[ToyObject]:
    """Coarse objects, for what is said rather than for what is seen."""
    return [sample_object(seed, spacing=0.5) for seed in range(3000)]


# Seeds


def test_same_seed_same_object() -> None:
    for seed in range(20):
        one, two = sample_object(seed), sample_object(seed)
        assert one.captions == two.captions
        assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ARRAYS)


def test_another_seed_is_another_object() -> None:
    shapes = {sample_object(seed, kind="mug", color="red").means.tobytes() for seed in range(10)}
    assert len(shapes) == 10


def test_spacing_changes_the_sampling_but_not_the_object() -> None:
    for seed in range(10):
        fine, coarse = sample_object(seed, spacing=0.03), sample_object(seed, spacing=0.06)
        assert fine.captions == coarse.captions
        assert 2.5 < len(fine.means) / len(coarse.means) < 5.5
        assert np.abs(fine.means.max(0) - coarse.means.max(0)).max() < 0.06


# Arrays


def test_arrays_have_the_promised_shapes_and_ranges(one_of_each: list[ToyObject]) -> None:
    for thing in one_of_each:
        count = len(thing.means)
        shapes = {"means": (3,), "quats": (4,), "scales": (3,), "opacities": (), "colors": (3,), "normals": (3,)}
        for name, shape in shapes.items():
            array = getattr(thing, name)
            assert array.shape == (count, *shape) and array.dtype == np.float32 and np.isfinite(array).all(), name
        assert thing.opacities.min() > 0 and thing.opacities.max() < 1
        assert thing.colors.min() >= 0 and thing.colors.max() <= 1
        assert (thing.scales[:, 2] < 0.3 * thing.scales[:, 0]).all()


def test_objects_fill_the_unit_ball_and_stay_inside(one_of_each: list[ToyObject]) -> None:
    for thing in one_of_each:
        radius = np.linalg.norm(thing.means, axis=1).max()
        assert 0.88 < radius < 0.99, f"{thing.kind}: {radius}"
        middle = (thing.means.max(0) + thing.means.min(0)) / 2
        assert np.abs(middle).max() < 0.05, f"{thing.kind}: {middle}"


def test_normals_are_unit_and_are_the_third_axis_of_the_discs(one_of_each: list[ToyObject]) -> None:
    for thing in one_of_each:
        w, x, y, z = thing.quats.T
        third = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1)
        assert np.allclose(np.linalg.norm(thing.normals, axis=1), 1, atol=1e-5)
        assert np.allclose(third, thing.normals, atol=1e-3), thing.kind


@pytest.mark.parametrize("kind", ["apple", "ball", "duck", "penguin", "tree", "cactus", "car", "house"])
def test_normals_point_outward(kind: str) -> None:
    """Most rays along the normals leave the object, and nearly all against them meet its far side."""
    thing = sample_object(3, kind=kind)
    some = np.random.default_rng(0).choice(len(thing.means), 400, replace=False)
    start, normal = thing.means[some], thing.normals[some]
    assert blocked(start + 0.05 * normal, normal, thing.means).mean() < 0.45
    assert blocked(start - 0.05 * normal, -normal, thing.means).mean() > 0.9


def blocked(start: np.ndarray, direction: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """[N] whether a ray from each start meets the sampled surface within 2.5 world units."""
    tree, met = KDTree(surface), np.zeros(len(start), bool)
    for distance in np.arange(0, 2.5, 0.03):
        met |= tree.query(start + distance * direction)[0] < 0.03
    return met


# Evenness


def spacing_ratio(points: np.ndarray) -> float:
    """5th percentile of the nearest-neighbor distances over their median: 1 for a lattice."""
    nearest = KDTree(points).query(points, k=2)[0][:, 1]
    return float(np.percentile(nearest, 5) / np.median(nearest))


@pytest.mark.parametrize("kind", KINDS)
def test_surface_samples_are_evenly_spaced(kind: str) -> None:
    """On every large part; inside tight bends and where parts meet, their lattices come as close as they happen to."""
    rng, gray = np.random.default_rng(0), np.full(3, 0.5)
    for part in CATALOGUE[kind].build(rng, gray, gray):
        points, _ = part.sample(0.03)
        if len(points) > 500:
            assert spacing_ratio(points) > 0.4, f"{part.shape}: {spacing_ratio(points)}"


def test_uniform_random_points_would_fail_the_spacing_test() -> None:
    points = np.random.default_rng(0).normal(size=(6000, 3))
    assert spacing_ratio(points / np.linalg.norm(points, axis=1, keepdims=True)) < 0.4


def test_spacing_is_in_world_units(one_of_each: list[ToyObject]) -> None:
    for thing in one_of_each:
        nearest = KDTree(thing.means).query(thing.means, k=2)[0][:, 1]
        assert 0.02 < np.median(nearest) < 0.04, thing.kind


def test_surfaces_have_no_holes() -> None:
    """A solid ball shows no gap: every direction has a disc within one spacing."""
    thing = sample_object(5, kind="ball")
    points = np.random.default_rng(1).normal(size=(4000, 3))
    points *= 0.95 / np.linalg.norm(points, axis=1, keepdims=True)
    assert KDTree(thing.means).query(points)[0].max() < 0.035


# Captions


def color_distance(rgb: np.ndarray, name: str) -> float:
    """Distance of a lit color to a color word that ignores brightness where there is hue."""
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    target_hue, target_saturation, target_value = colorsys.rgb_to_hsv(*COLORS[name])
    turn = abs(hue - target_hue)
    apart = min(turn, 1 - turn) * min(1.0, 2 * saturation, 2 * target_saturation)
    return 6 * apart + abs(saturation - target_saturation) + abs(value - target_value)


def share_of_color(thing: ToyObject, name: str) -> float:
    """Share of the surface that faces up, into the light, whose nearest color word is the given one."""
    lit = thing.colors[thing.normals[:, 2] > 0]
    words = [min(COLORS, key=lambda word: color_distance(rgb, word)) for rgb in lit[:: len(lit) // 60]]
    return float(np.mean([word == name for word in words]))


def stated(thing: ToyObject) -> str:
    """The first color word of the most specific caption, read without the package's own parser."""
    words: list[str] = re.findall(r"[a-z]+", thing.captions[0])
    return next(word for word in words if word in COLORS)


def test_caption_and_object_agree_on_the_color() -> None:
    things = [sample_object(100 + index, kind=kind) for index, kind in enumerate(KINDS * 3)]
    share = np.array([share_of_color(thing, stated(thing)) for thing in things])
    assert (share > 0.08).mean() > 0.97, [t.captions[0] for t, s in zip(things, share, strict=True) if s <= 0.08]
    assert share.mean() > 0.45


def test_shuffled_captions_would_fail_the_color_test() -> None:
    things = [sample_object(100 + index, kind=kind) for index, kind in enumerate(KINDS * 3)]
    others = [things[(7 * index + 5) % len(things)] for index in range(len(things))]
    share = np.array([share_of_color(thing, stated(other)) for thing, other in zip(things, others, strict=True)])
    assert (share > 0.08).mean() < 0.6 and share.mean() < 0.25


def test_a_second_color_in_the_caption_is_on_the_object() -> None:
    things = [sample_object(seed, kind="snowman", color="white") for seed in range(12)]
    for thing in things:
        hat = parse_caption(thing.captions[0])
        assert hat is not None and hat.part_color is not None
        top = thing.colors[thing.means[:, 2] > thing.means[:, 2].max() - 0.05].mean(0)
        rank = sorted(COLORS, key=lambda word: color_distance(top, word)).index(hat.part_color)
        assert rank <= 1, thing.captions[0]


def test_captions_go_from_specific_to_general(many: list[ToyObject]) -> None:
    for thing in many:
        assert len(set(thing.captions)) == len(thing.captions) >= 2
        first, last = parse_caption(thing.captions[0]), parse_caption(thing.captions[-1])
        assert first is not None and last is not None
        assert (first.kind, first.color) == (thing.kind, thing.color)
        assert last == Caption(kind=thing.kind, on_kind=first.on_kind)
        for text in thing.captions:
            said = parse_caption(text)
            assert said is not None
            assert said.color in (None, first.color) and said.part_color in (None, first.part_color)
            assert said.on_color in (None, first.on_color) and said.on_kind == first.on_kind


def test_articles_fit_the_words_that_follow(many: list[ToyObject]) -> None:
    for text in {text for thing in many for text in thing.captions}:
        for article, letter in re.findall(r"\b(an?) (\w)", text):
            assert (article == "an") == (letter in "aeiou"), text
        assert text.startswith(("a ", "an "))


def test_vocabulary_covers_every_caption(many: list[ToyObject]) -> None:
    known = vocabulary()
    assert known == sorted(set(known))
    assert {"front", "side", "back", "overhead", "view", ","} <= set(known)
    words = {word for thing in many for text in thing.captions for word in text.split()}
    assert words <= set(known)


# The world


def test_the_world_is_large_enough() -> None:
    assert len(KINDS) >= 30 and len(COLORS) >= 12


def test_every_kind_and_color_appears(many: list[ToyObject]) -> None:
    assert {thing.kind for thing in many} == set(KINDS)
    assert {thing.color for thing in many} == set(COLORS)
    stacked = sum(" on " in thing.captions[0] for thing in many)
    assert 0.08 < stacked / len(many) < 0.2


def test_withheld_pairs_are_a_tenth_and_spread_out() -> None:
    assert 0.08 <= len(WITHHELD) / (len(KINDS) * len(COLORS)) <= 0.1
    assert max(sum(color == name for _, color in WITHHELD) for name in COLORS) <= 5
    assert max(sum(kind == name for kind, _ in WITHHELD) for name in KINDS) <= 2
    assert ("duck", "yellow") not in WITHHELD


def test_withheld_pairs_are_never_drawn(many: list[ToyObject]) -> None:
    for thing in many:
        said = parse_caption(thing.captions[0])
        assert said is not None
        assert (thing.kind, thing.color) not in WITHHELD and (said.on_kind, said.on_color) not in WITHHELD


def test_withheld_pairs_are_drawn_when_allowed() -> None:
    things = [sample_object(seed, spacing=0.3, allow_withheld=True) for seed in range(400)]
    assert any((thing.kind, thing.color) in WITHHELD for thing in things)
    kind, color = sorted(WITHHELD)[0]
    assert sample_object(0, kind=kind, color=color, allow_withheld=True).color == color


def test_what_a_caption_leaves_open_varies() -> None:
    first = [sample_object(seed, kind="mushroom", color="red") for seed in range(30)]
    stems = {parse_caption(thing.captions[0]) for thing in first}
    heights = [np.ptp(thing.means[:, 2]) / np.ptp(thing.means[:, 0]) for thing in first]
    assert len(stems) >= 6 and np.std(heights) > 0.05


# Reading


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a yellow duck", Caption(kind="duck", color="yellow")),
        ("  Yellow   DUCK ", Caption(kind="duck", color="yellow")),
        ("duck", Caption(kind="duck")),
        ("a red mushroom with a white stem", Caption(kind="mushroom", color="red", part_color="white")),
        ("an airplane with red wings", Caption(kind="airplane", part_color="red")),
        ("cactus in an orange pot", Caption(kind="cactus", part_color="orange")),
        ("an orange ice cream in a blue cone", Caption(kind="ice cream", color="orange", part_color="blue")),
        ("a yellow duck on a brown table, back view",
         Caption(kind="duck", color="yellow", on_kind="table", on_color="brown")),
        ("a duck with a white stem", None),
        ("a duck on a mushroom", None),
        ("a yellow duck, Front View", Caption(kind="duck", color="yellow")),
        ("a yellow duck, a blue mug", None),
        ("a yellow duck, front view, red", None),
        ("a duck of gold", None),
        ("", None),
    ],
)  # fmt: skip
def test_phrases_are_read_back(text: str, expected: Caption | None) -> None:
    assert parse_caption(text) == expected


def test_unknown_words_come_with_the_nearest_known_one() -> None:
    assert unknown_words("a purpel duck, on a tabel") == [("purpel", "purple"), ("tabel", "table")]
    assert unknown_words("A Red mug on a brown table, front view") == []


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "dack"}, "kind: 'dack' is not known; the nearest are duck"),
        ({"color": "grey"}, "color: 'grey' is not known; the nearest are gray"),
        ({"kind": "duck", "color": "purple"}, "withheld"),
        ({"spacing": 0.0}, "spacing: expected a positive distance, got 0.0"),
        ({"spacing": float("nan")}, "spacing: expected a positive distance, got nan"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_object(0, **arguments)


@pytest.mark.parametrize("other", ["A Yellow  DUCK", "yellow duck", "an yellow duck, front view"])
def test_a_caption_in_another_spelling_has_the_same_true_objects(other: str) -> None:
    wanted, found = (list(true_objects(text, 2, spacing=0.2)) for text in ("a yellow duck", other))
    assert len(found) == 2
    assert all(np.array_equal(one.means, thing.means) for one, thing in zip(wanted, found, strict=True))
    (blue,) = true_objects("a blue duck", 1, spacing=0.2)
    assert blue.captions != wanted[0].captions, "control: another color"
    assert not list(true_objects(f"{other} and a mug", 2)), "control: what no caption says"


def test_the_known_prompts_are_spelled_as_captions() -> None:
    for prompt in KNOWN_PROMPTS + WITHHELD_PROMPTS:
        said = parse_caption(prompt)
        assert said is not None and write_caption(said) == prompt
