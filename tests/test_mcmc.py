"""gsplat's MCMC strategy behind the same signature. Its two kernels run on CUDA alone: stand-ins take their place."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gsplat.strategy.ops
import pytest
import torch
from tiny import stage_config, tiny_stage
from torch import Tensor

from gscfd import train
from gscfd.config import DensifyConfig
from gscfd.distil.densify import make_densifier
from gscfd.distil.state import StateDict, make_optimizers
from gscfd.gaussians import Gaussians, ball

RATES = {"means": 1e-3, "quats": 1e-3, "scales": 1e-3, "opacities": 1e-2, "sh0": 1e-2, "shN": 1e-3}


def covariances(
    quats: Tensor, scales: Tensor, compute_covar: bool, compute_preci: bool, triu: bool
) -> tuple[Tensor, None]:
    """[N, 3, 3] R S S R^T."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    rows += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    rows += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    half = torch.stack(rows, -1).reshape(-1, 3, 3) * scales[:, None, :]
    return half @ half.transpose(1, 2), None


def relocated(opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor) -> tuple[Tensor, Tensor]:
    """Opacities and scales of n Gaussians that look like one (Kheradmand et al. 2024, Eq. 9)."""
    new_opacities, new_scales = opacities.clone(), scales.clone()
    for i, (old, n) in enumerate(zip(opacities.tolist(), ratios.tolist(), strict=True)):
        new = 1 - (1 - old) ** (1 / n)
        terms = [
            math.comb(j - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1)
            for j in range(1, n + 1)
            for k in range(j)
        ]
        new_opacities[i], new_scales[i] = new, scales[i] * old / sum(terms)
    return new_opacities, new_scales


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat.strategy.ops, "compute_relocation", relocated)
    monkeypatch.setattr(gsplat.strategy.ops, "quat_scale_to_covar_preci", covariances)


def settings(**changes: Any) -> DensifyConfig:
    return DensifyConfig(
        **{"strategy": "mcmc", "start": 0.0, "stop": 1.0, "every": 4, "noise_lr": 0.0, "prune_opacity": 0.01, **changes}
    )


def splat(faint: int = 0) -> Gaussians:
    """100 Gaussians, the first of them so faint that nobody sees them."""
    gaussians = ball(100, radius=0.5, opacity=0.3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gaussians.opacities[:faint] = -9.0
    return gaussians


def rounds(
    gaussians: Gaussians, config: DensifyConfig, *, steps: Iterable[int] = (4,), seed: int = 0, device: str = "cpu"
) -> Gaussians:
    gaussians.params.to(device)
    optimizers = make_optimizers(gaussians, RATES)
    densifier = make_densifier(config, 12)
    for step in steps:
        densifier.after_backward(gaussians, optimizers, step, {}, seed=seed + step)
    return gaussians


def faintest(gaussians: Gaussians) -> float:
    return gaussians.opacities.sigmoid().min().item()


def test_faint_gaussians_move_to_opaque_ones_and_none_is_lost() -> None:
    moved = rounds(splat(faint=10), settings(max_count=100))
    assert len(moved) == 100 and faintest(moved) > 0.01
    assert len(torch.unique(moved.means.detach(), dim=0)) < 100, "they stand where others do"
    untouched = rounds(splat(faint=10), settings(max_count=100), steps=(3,))
    assert faintest(untouched) < 0.01 and torch.equal(untouched.means, splat().means), "the control: no round is due"


def test_each_round_adds_a_twentieth_up_to_the_cap() -> None:
    assert len(rounds(splat(), settings())) == 105
    assert len(rounds(splat(), settings(), steps=(4, 8))) == 110
    assert len(rounds(splat(), settings(max_count=103), steps=(4, 8))) == 103


def test_noise_shakes_the_faint_and_not_the_opaque() -> None:
    before = splat(faint=10)
    shaken = (rounds(splat(faint=10), settings(noise_lr=5e5), steps=(3,)).means - before.means).norm(dim=-1)
    assert shaken[:10].min() > 100 * shaken[10:].max()
    assert torch.equal(rounds(splat(faint=10), settings(), steps=(3,)).means, before.means), "the control: no noise"


def test_a_splat_without_an_opaque_gaussian_is_left_to_the_watchdog() -> None:
    assert len(rounds(splat(faint=100), settings())) == 100


def test_rounds_are_reproducible_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = rounds(splat(), settings(noise_lr=5e5))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.means, rounds(splat(), settings(noise_lr=5e5)).means)
    assert not torch.equal(first.means, rounds(splat(), settings(noise_lr=5e5), seed=100).means)


def states_of(**options: Any) -> list[StateDict]:
    saved = []
    densify = settings(every=3, noise_lr=100.0)
    tiny_stage(stage_config(densify=densify), on_step=lambda r: saved.append(r.state.state_dict()), **options)
    return saved


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_stage_continued_after_any_step_ends_in_the_same_state_bit_for_bit() -> None:
    states = states_of()
    last = states[-1].tensors
    assert len(last["now/params/means"]) > 60 and not any("densify" in name for name in last)
    for saved in states[:-1]:
        assert same(states_of(resume=saved)[-1].tensors, last)
    states[4].tensors["now/adam/means/exp_avg"].zero_()
    assert not same(states_of(resume=states[4])[-1].tensors, last), "the control"


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_the_cpu_is_refused_with_the_way_out(
    extra: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["--prompt", "a mug", "--device", "cpu", "--refine.steps", "1", "--refine.densify.strategy", "mcmc"]
    asked += ["--out", str(tmp_path / "x")]
    assert train.main([*asked, *extra]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--refine.densify.strategy default" in error


@pytest.mark.requires_cuda
def test_the_stand_ins_are_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    stood_in = rounds(splat(faint=10), settings(noise_lr=5e5), device="cuda")
    monkeypatch.undo()
    real = rounds(splat(faint=10), settings(noise_lr=5e5), device="cuda")
    for name, value in real.params.items():
        assert torch.allclose(value, stood_in.params[name], atol=1e-3), name
