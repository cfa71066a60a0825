"""A run that goes wrong returns to its last good state, takes smaller steps, and gives up with a reason."""

import math
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from present import present
from test_state import continued, same, states_of
from tiny import drawn, stage_config, tiny_stage
from torch import Tensor

from gscfd.config import Config, LearningRates, StageConfig, StageName, WatchdogConfig, flat, plain
from gscfd.distil.protocols import Noise
from gscfd.distil.stage import StageError, StepReport
from gscfd.distil.state import StageState
from gscfd.distil.watchdog import Trouble, due, find_trouble
from gscfd.gaussians import ball
from gscfd.types import Cameras, Render

SEEN = torch.full((2, 4, 4, 1), 0.3)


def sound_state() -> StageState:
    gaussians = ball(20, radius=0.5, opacity=0.3, generator=torch.Generator().manual_seed(0))
    state = StageState(gaussians, stage_config(), seed=0, keep_every=4)
    for name, optimizer in state.optimizers.items():
        gaussians.params[name].grad = torch.ones_like(gaussians.params[name])
        optimizer.step()
    return state


def trouble_of(state: StageState, opacity: Tensor = SEEN, loss: float = 1.0, **limits: Any) -> Trouble | None:
    return find_trouble(state, opacity, torch.tensor(loss), name="coarse", limits=WatchdogConfig(**limits))


def spoil(state: StageState, name: str, value: float) -> None:
    state.tensors()[name].view(-1)[0] = value


def test_a_sound_state_is_no_trouble() -> None:
    assert trouble_of(sound_state()) is None


@pytest.mark.parametrize(
    "name, said",
    [("params/means", "means is"), ("adam/opacities/exp_avg", "opacities is"), ("adam/sh0/exp_avg_sq", "sh0 is")],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named(name: str, said: str, value: float) -> None:
    state = sound_state()
    spoil(state, name, value)
    trouble = present(trouble_of(state))
    assert trouble.what == f"{said} not finite" and "--coarse.lr.*" in trouble.advice


def test_a_loss_that_is_not_finite_is_named() -> None:
    assert present(trouble_of(sound_state(), loss=math.nan)).what == "loss is not finite"


@pytest.mark.parametrize(
    "opacity, what",
    [
        (torch.zeros(2, 4, 4, 1), "empty"),
        (torch.stack([torch.ones(4, 4, 1), torch.full((4, 4, 1), 0.3)]), "filled"),
        (torch.stack([torch.zeros(4, 4, 1), torch.full((4, 4, 1), 0.3)]), None),
        (torch.stack([torch.ones(4, 4, 1).index_fill_(0, torch.tensor(0), 0.0), torch.zeros(4, 4, 1)]), None),
    ],
)
def test_collapse_is_an_object_that_is_gone_or_fog_that_fills_one_view(opacity: Tensor, what: str | None) -> None:
    trouble = trouble_of(sound_state(), opacity)
    assert (trouble is None) if what is None else (what in present(trouble).what)


def test_an_exploding_size_is_trouble_and_one_large_gaussian_is_not() -> None:
    state = sound_state()
    with torch.no_grad():
        state.gaussians.params["scales"][0] = math.log(5)
        assert trouble_of(state) is None
        state.gaussians.params["scales"][0] = 200.0
        assert "mean size is inf" in present(trouble_of(state)).what
        state.gaussians.params["scales"].fill_(math.log(5))
        assert "mean size is 5" in present(trouble_of(state)).what


@pytest.mark.parametrize("stage, named", [("coarse", 2), ("polish", 1)])
def test_advice_names_settings_that_the_stage_has(stage: StageName, named: int) -> None:
    """The polish has no regularizer of sizes."""
    config, gaussians = Config().stage(stage), ball(20, radius=0.5, opacity=0.3, generator=torch.Generator())
    gaussians.params["scales"].data.fill_(math.log(5))
    state = StageState(gaussians, config, seed=0, keep_every=4)
    trouble = present(find_trouble(state, SEEN, torch.tensor(1.0), name=stage, limits=WatchdogConfig()))
    options = re.findall(rf"--({stage}[.\w-]+)", trouble.advice)
    assert len(options) == named and {name.replace("-", "_") for name in options} <= flat(plain(Config())).keys()


def test_an_exploding_count_is_trouble_unless_the_stage_began_with_as_many() -> None:
    state = sound_state()
    assert isinstance(state.config, StageConfig)
    state.config.densify.max_count = 10
    assert trouble_of(state) is None, "20 at the last good state"
    state.good["params/means"] = state.good["params/means"][:10]
    assert "20 Gaussians are more than 15" in present(trouble_of(state)).what
    assert trouble_of(state, max_growth=2.0) is None


def test_no_gaussians_are_trouble() -> None:
    state = sound_state()
    for name, value in state.gaussians.params.items():
        state.gaussians.params[name] = torch.nn.Parameter(value.detach()[:0])
    assert "no Gaussians are left" in present(trouble_of(state)).what


def poisoned(bad: int, times: int) -> Noise:
    """Noise that is NaN in its first `times` draws for the step `bad`."""
    left = [times]

    def noise(cameras: Cameras, render: Render, step: int) -> Tensor:
        left[0] -= step == bad
        return drawn(cameras, render, step) * (math.nan if step == bad and left[0] >= 0 else 1)

    return noise


def test_a_poisoned_step_is_taken_back_and_the_stage_ends_sound_with_half_the_step_size() -> None:
    reports = []
    rates = []

    def on_step(report: StepReport) -> None:
        reports.append((report.step, report.trouble != "", report.state.step))
        rates.append(report.state.optimizers["sh0"].param_groups[0]["lr"])

    gaussians = tiny_stage(noise=poisoned(6, 1), on_step=on_step)
    assert [step for step, _, _ in reports] == [0, 1, 2, 3, 4, 5, 6, *range(4, 12)]
    assert [trouble for _, trouble, _ in reports].index(True) == 6 and reports[6][2] == 4
    falls = [LearningRates(end=0.5).end ** (step / 12) for step, _, _ in reports]
    sizes = [rate / rates[0] / fall for rate, fall in zip(rates, falls, strict=True)]
    assert sizes == pytest.approx([1.0] * 7 + [0.5] * 8)
    assert all(value.isfinite().all() for value in gaussians.tensors().values())


def test_a_stage_without_trouble_is_never_taken_back() -> None:
    """The control: the same noise, not poisoned."""
    assert [saved.numbers["step"] for saved in states_of(noise=poisoned(6, 0))] == list(range(1, 13))


def test_trouble_that_stays_stops_the_stage_with_its_last_good_gaussians_and_advice() -> None:
    states, seen = [], []

    def on_step(report: StepReport) -> None:
        states.append(report.state.state_dict())
        seen.append(report.gaussians)

    said = r"coarse: loss, .*means.* are not finite at step 6; try a smaller --coarse.cfg .*went back 2 times"
    with pytest.raises(StageError, match=said):
        tiny_stage(noise=poisoned(6, 99), on_step=on_step, watchdog=WatchdogConfig(rollbacks=2))
    assert torch.equal(seen[0].means, states[3].tensors["now/params/means"])


def test_a_limit_of_none_stops_at_the_first_trouble() -> None:
    with pytest.raises(StageError, match="step 6"):
        tiny_stage(noise=poisoned(6, 1), watchdog=WatchdogConfig(rollbacks=0))


def test_a_stage_that_was_taken_back_continues_exactly_from_before_and_after_it() -> None:
    """Scales explode by themselves, so that the trouble depends on nothing but the state."""
    options = {
        "config": stage_config(lr=LearningRates(scales=0.4)),
        "watchdog": WatchdogConfig(max_scale=0.3, rollbacks=50),
        "keep_every": 3,
    }
    states = states_of(**options)
    steps = [saved.numbers["step"] for saved in states]
    assert states[-1].numbers["rollbacks"] >= 2 and steps != sorted(steps)
    for saved in states[:-1]:
        last = continued(saved, **options)
        assert last.numbers == states[-1].numbers and same(last.tensors, states[-1].tensors)


def test_on_cuda_the_watchdog_looks_every_tenth_step_before_it_keeps_a_state_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gaussians = SimpleNamespace(device=torch.device("cuda"))
    state = SimpleNamespace(keep_every=4, config=stage_config(steps=13), gaussians=gaussians)

    looks = []
    for state.step in range(13):
        looks.append(due(cast(StageState, state)))
    assert [step + 1 for step, look in enumerate(looks) if look] == [4, 8, 10, 12, 13]
    gaussians.device = torch.device("cpu")
    for state.step in range(13):
        assert due(cast(StageState, state))


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gscfd.distil.watchdog.due", lambda state: (state.step + 1) % 4 == 0)


def test_trouble_that_is_noticed_late_is_taken_back_to_before_it(seldom: None) -> None:
    reports = []
    gaussians = tiny_stage(
        noise=poisoned(5, 1), on_step=lambda report: reports.append((report.step, bool(report.trouble)))
    )
    assert [step for step, _ in reports] == [*range(8), *range(4, 12)]
    assert [step for step, trouble in reports if trouble] == [7]
    assert all(value.isfinite().all() for value in gaussians.tensors().values())


def test_a_stage_that_is_looked_at_seldom_continues_exactly(seldom: None) -> None:
    options = {
        "config": stage_config(lr=LearningRates(scales=0.4)),
        "watchdog": WatchdogConfig(max_scale=0.3, rollbacks=50),
        "keep_every": 4,
    }
    states = states_of(**options)
    assert states[-1].numbers["rollbacks"] >= 1
    for saved in states[:-1]:
        last = continued(saved, **options)
        assert last.numbers == states[-1].numbers and same(last.tensors, states[-1].tensors)
