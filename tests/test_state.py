"""A stage continues from a copy of its state exactly, and everything in the copy is needed for that."""

import dataclasses
from typing import Any

import pytest
import torch
from tiny import TinyLearner, stage_config, tiny_stage
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.config import MethodName
from gscfd.distil.state import StageState, StateDict
from gscfd.distil.watchdog import all_finite
from gscfd.gaussians import ball


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def states_of(**options: Any) -> list[StateDict]:
    """The state after every step."""
    saved = []
    tiny_stage(on_step=lambda report: saved.append(report.state.state_dict()), **options)
    return saved


def continued(saved: StateDict, **options: Any) -> StateDict:
    """The last state of a stage that continues from `saved`."""
    return states_of(resume=saved, **options)[-1]


@pytest.fixture(scope="module")
def states() -> list[StateDict]:
    return states_of()


def test_a_stage_continued_after_any_step_ends_in_the_same_state_bit_for_bit(states: list[StateDict]) -> None:
    assert len(states[-1].tensors["now/params/means"]) != 60, "densification is part of what must continue"
    for saved in states[:-1]:
        last = continued(saved)
        assert last.numbers == states[-1].numbers and same(last.tensors, states[-1].tensors)


@pytest.mark.parametrize(
    "kind", ["params/opacities", "adam/sh0/exp_avg", "adam/means/step", "densify/grad2d", "generator"]
)
def test_a_stage_continued_without_a_part_of_its_state_ends_elsewhere(states: list[StateDict], kind: str) -> None:
    """The control of the test above: each kind of state would be missed."""
    fresh = torch.Generator().manual_seed(5).get_state() if kind == "generator" else None
    tensors = dict(states[4].tensors)
    name = f"now/{kind}"
    tensors[name] = torch.zeros_like(tensors[name]) if fresh is None else fresh
    last = continued(dataclasses.replace(states[4], tensors=tensors))
    assert not same(last.tensors, states[-1].tensors)


@pytest.mark.parametrize("guidance", ["cds", "dsd", "ism", "sdi"])
def test_methods_with_times_of_their_own_continue_bit_for_bit(guidance: MethodName, states: list[StateDict]) -> None:
    whole = states_of(guidance=guidance)
    last = continued(whole[4], guidance=guidance)
    assert same(last.tensors, whole[-1].tensors) and not same(last.tensors, states[-1].tensors)
    fresh = {**whole[4].tensors, "now/generator": torch.Generator().manual_seed(5).get_state()}
    assert not same(continued(dataclasses.replace(whole[4], tensors=fresh), guidance=guidance).tensors, last.tensors)


@pytest.fixture(scope="module")
def learning() -> list[StateDict]:
    return states_of(guidance="vsd")


def test_a_method_that_learns_continues_after_any_step_bit_for_bit(
    learning: list[StateDict], states: list[StateDict]
) -> None:
    assert not same(learning[-1].tensors, states[-1].tensors)
    for saved in learning[:-1]:
        assert same(continued(saved, guidance="vsd").tensors, learning[-1].tensors)


@pytest.mark.parametrize("kind", ["mean", "count"])
def test_a_method_that_forgets_what_it_learned_ends_elsewhere(learning: list[StateDict], kind: str) -> None:
    """The control of the test above."""
    name = f"now/learner/{kind}"
    tensors = {**learning[4].tensors, name: torch.zeros_like(learning[4].tensors[name])}
    last = continued(dataclasses.replace(learning[4], tensors=tensors), guidance="vsd")
    assert not same(last.tensors, learning[-1].tensors)


def test_going_back_takes_back_what_was_learned() -> None:
    gaussians = ball(5, radius=0.5, opacity=0.3, generator=torch.Generator().manual_seed(0))
    learner = TinyLearner()
    state = StageState(gaussians, stage_config(), seed=0, keep_every=4, learner=learner)
    learner.learn(torch.ones(2, 3, 8, 8), turntable(2, size=16), state.generator)
    assert all_finite(state.tensors() | {"loss": torch.zeros(())})["mean"] == 1
    learner.mean[0] = torch.nan
    assert all_finite(state.tensors() | {"loss": torch.zeros(())})["mean"] == 0
    state.roll_back()
    assert torch.equal(learner.mean, torch.zeros(3, 8, 8)) and learner.count == 0


def test_a_stage_continued_at_another_step_ends_elsewhere(states: list[StateDict]) -> None:
    moved = dataclasses.replace(states[4], numbers={**states[4].numbers, "step": 6})
    assert not same(continued(moved).tensors, states[-1].tensors)


def test_a_stage_reads_no_global_random_numbers(states: list[StateDict]) -> None:
    torch.manual_seed(123)
    assert same(states_of()[-1].tensors, states[-1].tensors)


def test_a_copy_does_not_change_with_the_state() -> None:
    gaussians = ball(5, radius=0.5, opacity=0.3, generator=torch.Generator().manual_seed(0))
    state = StageState(gaussians, stage_config(), seed=0, keep_every=4)
    copy = state.state_dict().tensors["now/params/means"].clone()
    saved = state.state_dict()
    with torch.no_grad():
        gaussians.params["means"].add_(1)
    assert torch.equal(saved.tensors["now/params/means"], copy)
    state.load_state_dict(saved)
    with torch.no_grad():
        gaussians.params["means"].add_(1)
    assert torch.equal(saved.tensors["now/params/means"], copy)
    assert torch.equal(state.good["params/means"], copy)


def test_a_stage_that_shows_normal_maps_now_and_then_continues_bit_for_bit(states: list[StateDict]) -> None:
    config = stage_config(normal_prob=0.4, render_sizes=((0.0, 8), (0.4, 16)))
    whole = states_of(config=config)
    assert not same(whole[-1].tensors, states[-1].tensors)
    for saved in whole[:-1]:
        assert same(continued(saved, config=config).tensors, whole[-1].tensors)
