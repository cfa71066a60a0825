"""The methods by name: when they ask, and that each of them pulls towards what the text asks for."""

import math
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
    StageConfig,
    coarse_stage,
    load_preset,
    merged,
    refine_stage,
    rescaled_gamma,
)
from gscfd.distil import guidance, preflight
from gscfd.distil.methods import method
from gscfd.errors import UserError
from gscfd.runs import options as runs_options
from gscfd.teachers import load_teacher
from gscfd.types import Cameras

NAMES = get_args(MethodName)


def test_every_method_has_its_noise_and_its_gamma() -> None:
    assert set(NOISE_OF) == set(NAMES)
    kinds = {name: Config(guidance=name).noise_kind for name in NAMES}
    consistent = {"cfd": "surface", "fsd": "world_map", "cds": "fixed"}
    assert kinds == {**dict.fromkeys(NAMES, "iid"), **consistent}
    assert {name for name in NAMES if Config(guidance=name).noise_gamma("coarse") > 0} == {"cfd"}
    assert merged(Config(), {"guidance": "fsd", "noise": {"gamma": 0.5}}).noise_gamma("coarse") == 0.5


@pytest.mark.parametrize("steps", [1, 40, 300, 10_000])
def test_as_much_of_the_first_noise_is_left_after_a_stage_however_many_steps_it_has(steps: int) -> None:
    config = merged(Config(), {"coarse": {"steps": steps}, "refine": {"steps": 2 * steps}})
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
    with pytest.raises(UserError, match="guidance: expected cfd or sds or fsd or cds or ism or sdi or vsd, got 'dds'"):
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
    stage.cfg = 50.0
    go, generator = method("cds", stage, 1000), torch.Generator().manual_seed(0)
    for done, root in ((0.0, 0.0), (0.25, 0.5), (1.0, 1.0)):
        target = start - (start - end) * root
        gaps = []
        for _ in range(200):
            t, guided = go(done, generator)
            way = as_a(partial, guided)
            assert way.keywords["target"] == pytest.approx(1000 * target, abs=1)
            assert way.keywords["cfg"] == pytest.approx(50 - 30 * done)
            gaps.append(t - target)
        low, high = stage.cds.gap
        assert low - 1e-9 <= min(gaps) <= max(gaps) <= high + 1e-9
        assert sum(gaps) / len(gaps) == pytest.approx((low + high) / 2, abs=0.01)


def test_cds_with_random_times_draws_them_from_its_own_range() -> None:
    stage = coarse_stage()
    stage.t_schedule = "uniform"
    go, generator = method("cds", stage, 1000), torch.Generator().manual_seed(0)
    early, late = (
        [as_a(partial, go(done, generator)[1]).keywords["target"] for _ in range(300)] for done in (0.0, 0.9)
    )
    for targets in (early, late):
        assert 100 <= min(targets) < 150 and 650 < max(targets) <= 700
        assert sum(targets) / 300 == pytest.approx(400, abs=40)


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"guidance": "fsd", "noise": {"kind": "iid"}}, "noise.kind"),
        ({"guidance": "cds", "noise": {"kind": "surface"}}, "noise.kind"),
        ({"coarse": {"cds": {"gap": [0.0, 0.1]}}}, "cds.gap"),
        ({"coarse": {"cds": {"t_max": 0.9}}}, "cds.t_max"),
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
    monkeypatch.setattr(preflight, "load_teacher", lambda name, **placed: teachers[name])
    short = ["--coarse.steps", "1", "--refine.steps", "1", "--refine.views", "1", "--init.count", "100"]
    short += ["--polish.steps", "0"]
    splats = {}
    for name in NAMES:
        config = runs_options.parse([*short, "--guidance", name])
        splats[name] = gscfd.generate("a mug", config=config).means
        assert splats[name].isfinite().all()
    for first in NAMES:
        assert not any(torch.equal(splats[first], splats[other]) for other in NAMES if other != first), first
