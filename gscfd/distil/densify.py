"""Growth and pruning of Gaussians: gsplat's strategies behind one interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from gsplat.strategy import DefaultStrategy, MCMCStrategy
from torch import Tensor
from torch.nn import ParameterDict

from gscfd.config import DensifyConfig
from gscfd.deferred import moved
from gscfd.gaussians import Gaussians


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds the global generators, which gsplat uses, inside the block, and restores their state afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


Optimizers = dict[str, torch.optim.Adam]
"""Optimizers by parameter name."""


class WithoutWaits(DefaultStrategy):  # type: ignore[misc]  # gsplat has no types
    """gsplat's DefaultStrategy, whose statistics of a step are gathered without a wait for the device, and in a fixed
    order: gsplat selects the visible Gaussians by their indices, which the host must know, and adds them up atomically.
    A round adds no more Gaussians than there is room for, at the largest gradients.
    """

    max_count = 2**31
    grow_grad2d: float

    def _update_state(
        self, params: dict[str, Tensor], state: dict[str, Any], info: dict[str, Any], packed: bool = False
    ) -> None:
        gradients = info[self.key_for_gradient].grad
        scale = torch.tensor([info["width"], info["height"]]) / 2.0 * info["n_cameras"]
        seen = (info["radii"] > 0).all(-1)  # [V, N]
        norms = (gradients * moved(scale, gradients.device)).norm(dim=-1)
        for name in ("grad2d", "count"):
            if state[name] is None:
                state[name] = torch.zeros(gradients.shape[1], device=gradients.device)
        for visible, norm in zip(seen, norms, strict=True):
            state["grad2d"] += torch.where(visible, norm, 0.0)
            state["count"] += visible

    def _grow_gs(
        self, params: ParameterDict, optimizers: Optimizers, state: dict[str, Any], step: int
    ) -> tuple[int, int]:
        gradients, threshold = state["grad2d"] / state["count"].clamp_min(1), self.grow_grad2d
        room = max(self.max_count - len(gradients), 0)
        if int((gradients > threshold).sum()) > room:
            self.grow_grad2d = gradients.topk(room + 1).values[-1].item()
        try:
            grown: tuple[int, int] = super()._grow_gs(params, optimizers, state, step)
        finally:
            self.grow_grad2d = threshold
        return grown


class Densifier:
    """gsplat's DefaultStrategy (Kerbl et al. 2023, section 5), with the gradients of all views of the batch."""

    def __init__(self, config: DensifyConfig, steps: int):
        self.strategy = WithoutWaits(
            prune_opa=config.prune_opacity,
            grow_grad2d=config.grad_threshold,
            grow_scale3d=0.03,
            refine_scale2d_stop_iter=0,
            refine_start_iter=int(config.start * steps),
            refine_stop_iter=int(config.stop * steps),
            refine_every=config.every,
            reset_every=steps + 1,
            pause_refine_after_reset=0,
            key_for_gradient="means2d",
            verbose=False,
        )
        self.strategy.max_count = config.max_count
        self.state: dict[str, Any] = self.strategy.initialize_state(scene_scale=1.0)

    def statistics(self) -> dict[str, Tensor]:
        """Returns the [N] tensors accumulated since the last round, by name; empty before the first step."""
        return {name: value for name, value in self.state.items() if isinstance(value, Tensor)}

    def load_statistics(self, statistics: dict[str, Tensor]) -> None:
        """Continues from the result of `statistics`."""
        self.state = {**self.strategy.initialize_state(scene_scale=1.0), **statistics}

    def before_backward(self, gaussians: Gaussians, optimizers: Optimizers, step: int, info: dict[str, Any]) -> None:
        self.strategy.step_pre_backward(gaussians.params, optimizers, self.state, step, info)

    def after_backward(
        self, gaussians: Gaussians, optimizers: Optimizers, step: int, info: dict[str, Any], seed: int
    ) -> None:
        """Runs a round if one is due; call it after the optimizers' step. seed: for the positions of split
        Gaussians."""
        strategy = self.strategy
        due = strategy.refine_start_iter < step < strategy.refine_stop_iter and step % strategy.refine_every == 0
        with seeded(gaussians.device, seed) if due else nullcontext():
            strategy.step_post_backward(gaussians.params, optimizers, self.state, step, info, packed=False)


class MCMCDensifier:
    """gsplat's MCMCStrategy (Kheradmand et al. 2024), which treats the Gaussians as Markov chain samples. CUDA only.

    Each round moves faint Gaussians to opaque ones and adds 5 %. Every step adds noise to all positions, most to those
    of faint Gaussians.
    """

    def __init__(self, config: DensifyConfig, steps: int):
        self.strategy = MCMCStrategy(
            cap_max=config.max_count,
            noise_lr=config.noise_lr,
            refine_start_iter=int(config.start * steps),
            refine_stop_iter=int(config.stop * steps),
            refine_every=config.every,
            min_opacity=config.prune_opacity,
            verbose=False,
        )
        self.state: dict[str, Any] = self.strategy.initialize_state()

    def statistics(self) -> dict[str, Tensor]:
        """Returns {}: a round depends only on the Gaussians, and gsplat's state is a table of constants."""
        return {}

    def load_statistics(self, statistics: dict[str, Tensor]) -> None:
        """Does nothing: there are no statistics."""

    def before_backward(self, gaussians: Gaussians, optimizers: Optimizers, step: int, info: dict[str, Any]) -> None:
        """Does nothing: the strategy uses no gradients."""

    def after_backward(
        self, gaussians: Gaussians, optimizers: Optimizers, step: int, info: dict[str, Any], seed: int
    ) -> None:
        """Moves, adds and perturbs Gaussians; call it after the optimizers' step. seed: for the moves and the noise."""
        moves = step % self.strategy.refine_every == 0
        if moves and not (gaussians.opacities.sigmoid() > self.strategy.min_opacity).any():
            return  # gsplat has no target for the moves; the watchdog reports the empty views
        lr = optimizers["means"].param_groups[0]["lr"]
        with seeded(gaussians.device, seed):
            self.strategy.step_post_backward(gaussians.params, optimizers, self.state, step, info, lr=lr)


class NoDensifier:
    """Keeps the number of Gaussians."""

    def statistics(self) -> dict[str, Tensor]:
        return {}

    def load_statistics(self, statistics: dict[str, Tensor]) -> None:
        """Does nothing: there are no statistics."""

    def before_backward(self, gaussians: Gaussians, optimizers: Optimizers, step: int, info: dict[str, Any]) -> None:
        """Does nothing."""

    def after_backward(
        self, gaussians: Gaussians, optimizers: Optimizers, step: int, info: dict[str, Any], seed: int
    ) -> None:
        """Does nothing."""


def make_densifier(config: DensifyConfig | None, steps: int) -> Densifier | MCMCDensifier | NoDensifier:
    """Returns the densifier for config.strategy; for None, one that does nothing. steps: steps of the stage."""
    if config is None:
        return NoDensifier()
    return MCMCDensifier(config, steps) if config.strategy == "mcmc" else Densifier(config, steps)
