"""The methods by name: when they ask, and that each of them pulls towards what the text asks for."""

import math
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from present import as_a
from test_guidance import GaussianTeacher, latents
from torch import Tensor

import gscfd
from gscfd import train
from gscfd.cameras import turntable
from gscfd.config import (
    CFD_STEPS,
    NOISE_OF,
    Config,
    MethodName,
    NoiseConfig,
    StageConfig,
    Weight,
    coarse_stage,
    load_preset,
    merged,
    refine_stage,
    rescaled_gamma,
)
from gscfd.distil import guidance, loading
from gscfd.distil.methods import method
from gscfd.distil.noises import gammas
from gscfd.distil.protocols import Guidance
from gscfd.errors import UserError
from gscfd.runs import options as runs_options
from gscfd.teachers.load import load_teacher
from gscfd.types import Cameras

NAMES = get_args(MethodName)


def test_every_method_has_its_noise_and_its_gamma() -> None:
    assert set(NOISE_OF) == set(NAMES)
    kinds = {name: Config(guidance=name).noise_kind for name in NAMES}
    consistent = {"cfd": "surface", "fsd": "world_map", "cds": "fixed", "dsd": "fixed"}
    assert kinds == {**dict.fromkeys(NAMES, "iid"), **consistent}
    of_groups = {name: Config(guidance=name).noise_kind_for(multiview=True) for name in NAMES}
    assert of_groups == {**kinds, "cds": "per_view", "dsd": "per_view"}, "no teacher was trained on four equal noises"
    unset = {name: Config(guidance=name, noise=NoiseConfig()) for name in NAMES}
    assert {name for name, config in unset.items() if config.noise_gamma("coarse") > 0} == {"cfd"}
    assert not any(Config(guidance=name).noise_gamma("coarse") for name in NAMES), "the toybox has the clean flow"
    assert merged(Config(), {"guidance": "fsd", "noise": {"gamma": 0.5}}).noise_gamma("coarse") == 0.5


@pytest.mark.parametrize("steps", [1, 40, 300, 10_000])
def test_as_much_of_the_first_noise_is_left_after_a_stage_however_many_steps_it_has(steps: int) -> None:
    stages = {"coarse": {"steps": steps}, "refine": {"steps": 2 * steps}}
    config = merged(Config(), {**stages, "noise": {"gamma": None}})
    left = [(1 - config.noise_gamma(stage)) ** (config.stage(stage).steps / 2) for stage in CFD_STEPS]
    assert left == pytest.approx([(1 - 1e-4) ** 5_000, (1 - 1e-4) ** 10_000])
    paper = load_preset("paper")
    assert [paper.noise_gamma(stage) for stage in CFD_STEPS] == pytest.approx([1e-4, 1e-4])
    given = merged(config, {"noise": {"gamma": 1e-4}})
    assert given.noise_gamma("coarse") == given.noise_gamma("refine") == 1e-4
    assert config.noise_gamma("polish") == 0, "its groups are of one surface"


@pytest.mark.parametrize("gamma", [1e-4, 1e-3, 0.5])
@pytest.mark.parametrize("steps", [40, 300])
def test_rescaled_gamma_leaves_as_much_noise(gamma: float, steps: int) -> None:
    rescaled = partial(rescaled_gamma, steps=25_000, fewer=steps)
    left = steps * math.log1p(-min(rescaled(gamma), 1 - 1e-16))
    assert left == pytest.approx(25_000 * math.log1p(-gamma), rel=1e-6) or rescaled(gamma) == 1
    assert rescaled(0.0) == 0 and rescaled(1.0) == 1


def test_an_unknown_method_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UserError, match="guidance: expected cfd or sds or fsd or cds or ism or sdi or vsd or dsd, got 'dds'"
    ):
        merged(Config(), {"guidance": "dds"})
    with pytest.raises(SystemExit) as stopped:
        train.main(["--prompt", "a mug", "--guidance", "dds"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and all(name in error for name in NAMES)


class PerfectLearner:
    """Knows the last picture by heart: of a single one, the noise is all that x_t has besides."""

    name, remedy = "perfect", "vsd.lr"

    def __init__(self, teacher: GaussianTeacher, z: Tensor) -> None:
        self.teacher, self.z = teacher, z

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras) -> Tensor:
        alpha, sigma = self.teacher.alpha_sigma(t)
        return (x_t - alpha * self.z) / sigma

    def learn(self, z: Tensor, cameras: Cameras, generator: torch.Generator) -> None:
        self.z = z

    def tensors(self) -> dict[str, Tensor]:
        return {"z": self.z}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.z = tensors["z"].clone()


def test_vsd_with_a_perfect_learner_is_sds() -> None:
    """VSD of one particle is SDS (CFD section 1); of a learner that lags behind it is not."""
    teacher, z, noise, cameras = GaussianTeacher(), latents(0), latents(1), turntable(2, size=8)
    expected = guidance.sds(teacher, z, noise, 400, cameras)
    perfect, late = PerfectLearner(teacher, z), PerfectLearner(teacher, latents(2))
    assert torch.allclose(guidance.vsd(teacher, z, noise, 400, cameras, learner=perfect), expected, atol=1e-10)
    assert not torch.allclose(guidance.vsd(teacher, z, noise, 400, cameras, learner=late), expected, atol=0.1)


def test_vsd_without_a_learner_is_refused() -> None:
    with pytest.raises(ValueError, match="vsd: expected a learner"):
        method("vsd", coarse_stage(), 1000)


def descend(name: MethodName, teacher: GaussianTeacher, views: int, sign: float = 1.0) -> Tensor:
    """Plain gradient descent from 0 with the method's own noise policy."""
    z = torch.zeros(views, 4, 8, 8, dtype=torch.float64)
    learner = PerfectLearner(teacher, z) if name == "vsd" else None
    go = method(name, coarse_stage(), teacher.timesteps, learner)
    cameras, generator = turntable(views, size=8), torch.Generator().manual_seed(1)
    for step in range(60):
        t, way = go(step / 60, generator)
        noise = latents(step if NOISE_OF[name][0] == "iid" else 7)[:1].expand(views, -1, -1, -1)
        z = z - sign * 0.3 * way(teacher, z, noise, round(t * teacher.timesteps), cameras)
        if learner is not None:
            learner.learn(z, cameras, generator)
    return z


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["diffusion", "flow"])
@pytest.mark.parametrize("views", [1, 4])
def test_every_method_pulls_towards_what_the_text_asks_for(name: MethodName, schedule: str, views: int) -> None:
    teacher = GaussianTeacher(schedule)
    agreement = {
        sign: F.cosine_similarity(descend(name, teacher, views, sign).mean((0, 2, 3)), teacher.mean.flatten(), dim=0)
        for sign in (1.0, -1.0)
    }
    assert agreement[1.0] > 0.8 and agreement[-1.0] < -0.8, agreement


@pytest.mark.parametrize("stage, start, end", [(coarse_stage(), 0.7, 0.1), (refine_stage(), 0.5, 0.02)])
def test_cds_runs_down_the_curve_of_consistent3d(stage: StageConfig, start: float, end: float) -> None:
    stage.cfg = 51.0
    go, generator = method("cds", stage, 1000), torch.Generator().manual_seed(0)
    for done, root in ((0.0, 0.0), (0.25, 0.5), (1.0, 1.0)):
        target = start - (start - end) * root
        gaps = []
        for _ in range(200):
            t, guided = go(done, generator)
            asked = questions(guided, t)
            assert [cfg for _, cfg in asked] == pytest.approx([51 - 30 * done] * 2, abs=0.02)
            assert asked[1][0] == pytest.approx(1000 * target, abs=1)
            gaps.append(t - target)
        low, high = stage.cds.gap
        assert low - 1e-9 <= min(gaps) <= max(gaps) <= high + 1e-9
        if high + target < 0.98:
            assert sum(gaps) / len(gaps) == pytest.approx((low + high) / 2, abs=0.015)


def test_cds_never_starts_beyond_the_last_time_of_the_authors() -> None:
    stage = coarse_stage()
    stage.cds.gap = (0.2, 0.5)
    go, generator = method("cds", stage, 1000), torch.Generator().manual_seed(0)
    times = [go(0.0, generator)[0] for _ in range(100)]
    assert max(times) == 0.98 and min(times) < 0.95


def questions(way: Guidance, t: float) -> list[tuple[int, float]]:
    """Times and guidance scales that a step asks the teacher for."""
    teacher = GaussianTeacher()
    way(teacher, latents(0), latents(1), round(1000 * t), turntable(2, size=8))
    return [(asked, cfg) for asked, cfg in teacher.asked if cfg is not None]


def difference(way: Guidance, t: int) -> Tensor:
    return way(GaussianTeacher(), latents(0), latents(1), t, turntable(2, size=8))


@pytest.mark.parametrize("t", [100, 500, 900])
def test_the_weights_are_those_of_their_names(t: int) -> None:
    alpha, sigma = GaussianTeacher().alpha_sigma(t)
    eps = GaussianTeacher().predict_eps(alpha * latents(0) + sigma * latents(1), t, turntable(2, size=8)) - latents(1)
    weights: dict[Weight, float] = {"ratio": sigma / alpha, "uniform": 1.0, "variance": sigma**2}
    for weight, factor in weights.items():
        assert torch.allclose(difference(guidance.weighted(guidance.cfd, weight), t), factor * eps, atol=1e-10)


@pytest.mark.parametrize("weight", get_args(Weight))
def test_without_noise_there_is_no_gradient(weight: Weight) -> None:
    """A flow's time 0, which t_min = 0 reaches."""
    way, teacher = guidance.weighted(guidance.cfd, weight), GaussianTeacher("flow")
    assert not way(teacher, latents(0), latents(1), 0, turntable(2, size=8)).any()
    assert way(teacher, latents(0), latents(1), 1, turntable(2, size=8)).all(), "the control"


def test_the_methods_of_a_stage_have_its_weight() -> None:
    for name in ("cfd", "ism", "vsd"):
        learner = PerfectLearner(GaussianTeacher(), latents(0)) if name == "vsd" else None
        found = []
        for weight in ("ratio", "uniform"):
            stage = coarse_stage()
            stage.weight = weight
            found.append(difference(method(name, stage, 1000, learner)(0.5, torch.Generator())[1], 900))
        alpha, sigma = GaussianTeacher().alpha_sigma(900)
        assert torch.allclose(found[0], sigma / alpha * found[1], atol=1e-10), name


def test_cds_is_clipped_and_the_clip_widens() -> None:
    """Consistent3D's code: from 2 to 8; what lies within is untouched."""
    stage = coarse_stage()
    stage.cfg = 50_000.0
    largest = []
    for done in (0.0, 0.5, 0.999):
        t, way = method("cds", stage, 1000)(done, torch.Generator().manual_seed(0))
        largest.append(difference(way, round(1000 * t)).abs().max().item())
    assert largest == pytest.approx([2.0, 5.0, 8.0], abs=0.01)
    gradient = difference(guidance.cfd, 500)
    assert torch.equal(difference(guidance.clipped(guidance.cfd, gradient.abs().max().item()), 500), gradient)


def test_the_interval_of_ism_narrows_as_lucid_dreamers_does() -> None:
    """From twice delta_t to delta_t over the first three tenths (1500 of 5000 steps)."""
    go = method("ism", coarse_stage(), 1000)
    spans = [as_a(partial, go(done, torch.Generator())[1]).keywords["delta_t"] for done in (0.0, 0.15, 0.3, 0.9)]
    assert spans == [100, 75, 50, 50]


def test_large_teachers_are_guided_as_the_source_of_the_method_has_it() -> None:
    def guided(name: MethodName, preset: str) -> list[tuple[float | None, float | None]]:
        config = replace(load_preset(preset), guidance=name)
        return [(stage.cfg, stage.cfg_rescale) for stage in config.distillations().values()]

    assert guided("cfd", "mvdream-sd21") == [(50.0, 0.5), (75.0, 0.0)]
    assert guided("sds", "mvdream-sd21") == [(50.0, 0.5), (100.0, 0.0)]
    for name in ("ism", "sdi", "vsd", "dsd"):
        assert guided(name, "mvdream-sd21") == [(7.5, 0.0)] * 2
    assert guided("cds", "mvdream-sd21") == [(51.0, 0.0)] * 2
    assert guided("cfd", "paper") == [(50.0, 0.0), (70.0, 0.0)]
    assert guided("ism", "toybox") == [(6.0, 0.0)], "the toybox has one scale; no source speaks of it"
    asked = merged(load_preset("mvdream-sd21"), {"guidance": "ism", "coarse": {"cfg": 20.0, "cfg_rescale": 0.3}})
    assert asked.stage("coarse").cfg == 20.0 and asked.stage("coarse").cfg_rescale == 0.3, "what is set stays"


def test_the_paper_preset_weighs_as_the_public_code() -> None:
    paper, other = load_preset("paper"), load_preset("mvdream-sd21")
    assert [stage.weight for stage in paper.distillations().values()] == ["uniform", "ratio"]
    assert [stage.weight for stage in other.distillations().values()] == ["ratio", "ratio"]
    assert [stage.cds.weight for stage in paper.distillations().values()] == ["uniform", "variance"]


def test_gamma_follows_its_curve_and_leaves_as_much_noise_however_many_steps_there_are() -> None:
    """CFD's Stable Diffusion from scratch: .01 until step 5000 of 25 000, 1e-4 from 10 000 on."""
    left = []
    for steps in (2000, 20_000):
        config = merged(load_preset("sd21"), {"refine": {"steps": steps}})
        shares = gammas(config, "refine")
        assert isinstance(shares, list) and len(shares) == steps
        left.append(sum(math.log1p(-share) for share in shares))
        of_the_paper = [1 - (1 - share) ** (steps / 25_000) for share in shares]
        at = [of_the_paper[round(place * steps) - 1] for place in (0.1, 0.2, 0.3, 0.4, 1.0)]
        assert at == pytest.approx([0.01, 0.01, 0.00505, 1e-4, 1e-4], rel=0.02)
    assert left[0] == pytest.approx(left[1], rel=0.01)
    assert isinstance(gammas(Config(), "coarse"), float), "the control: no curve"


def drawn_target(step: tuple[float, Guidance]) -> float:
    t, way = step
    return questions(way, t)[1][0] / 1000


def test_cds_with_random_times_draws_them_from_its_own_range() -> None:
    stage = coarse_stage()
    stage.t_schedule = "uniform"
    go, generator = method("cds", stage, 1000), torch.Generator().manual_seed(0)
    early, late = ([1000 * drawn_target(go(done, generator)) for _ in range(300)] for done in (0.0, 0.9))
    for targets in (early, late):
        assert 100 <= min(targets) < 150 and 650 < max(targets) <= 700
        assert sum(targets) / 300 == pytest.approx(400, abs=40)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"guidance": "fsd", "noise": {"kind": "iid"}}, "noise.kind"),
        ({"guidance": "cds", "noise": {"kind": "surface"}}, "noise.kind"),
        ({"coarse": {"cds": {"gap": [0.0, 0.1]}}}, "cds.gap"),
        ({"coarse": {"cds": {"t_max": 1.0}}}, "cds.t_min, t_max"),
        ({"coarse": {"cds": {"clip": [0, 8]}}}, "cds.clip"),
        ({"coarse": {"cds": {"weight": "sigma"}}}, "cds.weight"),
        ({"coarse": {"weight": "sigma"}}, "coarse.weight"),
        ({"coarse": {"inversion": {"delta_t_points": []}}}, "inversion.delta_t_points"),
        ({"noise": {"gamma_points": [[0.5, 1], [0.2, 1]]}}, "noise.gamma_points"),
        ({"noise": {"gamma": 0.1, "gamma_points": [[0, 10]]}}, "noise.gamma_points"),
        ({"polish": {"cfg": None}}, "polish.cfg"),
        ({"coarse": {"normal_reg": -1}}, "normal_reg"),
        ({"coarse": {"cds": {"t_min": 0.8}}}, "cds.t_min"),
        ({"coarse": {"cds": {"cfg_end": 0}}}, "cds.cfg_end"),
        ({"coarse": {"inversion": {"delta_t": 0}}}, "inversion.delta_t"),
        ({"coarse": {"inversion": {"xs_delta_t": 2}}}, "inversion.xs_delta_t"),
        ({"coarse": {"inversion": {"xs_inv_steps": 0}}}, "inversion.xs_inv_steps"),
        ({"coarse": {"vsd": {"rank": 0}}}, "vsd.rank"),
        ({"coarse": {"vsd": {"lr": 0}}}, "vsd.lr"),
    ],
)
def test_bad_settings_of_a_method_are_named(changes: dict[str, object], name: str) -> None:
    with pytest.raises(UserError, match=name):
        merged(Config(), changes)


def test_every_method_runs_on_both_shipped_teachers_and_gives_another_splat(monkeypatch: pytest.MonkeyPatch) -> None:
    teachers = {name: load_teacher(name, device="cpu") for name in ("toybox/multiview", "toybox/singleview")}
    monkeypatch.setattr(loading, "load_teacher", lambda name, **placed: teachers[name])
    short = ["--coarse.steps", "1", "--refine.steps", "1", "--refine.views", "1", "--init.count", "100"]
    short += ["--polish.steps", "0"]
    splats = {}
    for name in NAMES:
        config = runs_options.parse([*short, "--guidance", name])
        splats[name] = gscfd.generate("a mug", config=config).means
        assert splats[name].isfinite().all()
    for first in NAMES:
        assert not any(torch.equal(splats[first], splats[other]) for other in NAMES if other != first), first
