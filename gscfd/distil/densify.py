"""Growth and pruning of Gaussians: gsplat's strategies behind one signature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gsplat.strategy import DefaultStrategy, MCMCStrategy
from torch import Tensor

from gscfd.config import DensifyConfig
from gscfd.gaussians import Gaussians


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The global generators, from which gsplat draws, start at `seed` in the block and go on as if it had not been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Densifier:
    """gsplat's DefaultStrategy (Kerbl et al. 2023, section 5), fed by every view of the batch."""

    def __init__(self, config: DensifyConfig, steps: int):
        self.max_count = config.max_count
        self.strategy = DefaultStrategy(
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
        self.state: dict[str, Any] = self.strategy.initialize_state(scene_scale=1.0)

    def statistics(self) -> dict[str, Tensor]:
        """[N] tensors gathered since the last round; none before the first step."""
        return {name: value for name, value in self.state.items() if isinstance(value, Tensor)}

    def load_statistics(self, statistics: dict[str, Tensor]) -> None:
        """Continue from what statistics() gave."""
        self.state = {**self.strategy.initialize_state(scene_scale=1.0), **statistics}

    def before_backward(self, gaussians: Gaussians, optimizers: dict, step: int, info: dict[str, Any]) -> None:
        self.strategy.step_pre_backward(gaussians.params, optimizers, self.state, step, info)

    def after_backward(
        self, gaussians: Gaussians, optimizers: dict, step: int, info: dict[str, Any], seed: int
    ) -> None:
        """Call after the optimizers' step. seed: of the positions of split Gaussians."""
        grow = self.strategy.grow_grad2d
        if len(gaussians) >= self.max_count:
            self.strategy.grow_grad2d = float("inf")
        with seeded(gaussians.device, seed):
            self.strategy.step_post_backward(gaussians.params, optimizers, self.state, step, info, packed=False)
        self.strategy.grow_grad2d = grow


class MCMCDensifier:
    """gsplat's MCMCStrategy (Kheradmand et al. 2024), on CUDA alone: Gaussians are samples that wander. The faint ones
    move to where others are opaque, 5 % are added each round, and all positions get noise, the faint ones' the most."""

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
        """None: what a round does depends on the Gaussians alone. (gsplat's own state is a table of constants.)"""
        return {}

    def load_statistics(self, statistics: dict[str, Tensor]) -> None:
        """There are none to continue from."""

    def before_backward(self, gaussians: Gaussians, optimizers: dict, step: int, info: dict[str, Any]) -> None:
        """Nothing is gathered."""

    def after_backward(
        self, gaussians: Gaussians, optimizers: dict, step: int, info: dict[str, Any], seed: int
    ) -> None:
        """Call after the optimizers' step. seed: of the moves and the noise."""
        moves = step % self.strategy.refine_every == 0
        if moves and not (gaussians.opacities.sigmoid() > self.strategy.min_opacity).any():
            return  # gsplat has none to move the others to; the watchdog says so when nothing is seen any more
        lr = optimizers["means"].param_groups[0]["lr"]
        with seeded(gaussians.device, seed):
            self.strategy.step_post_backward(gaussians.params, optimizers, self.state, step, info, lr=lr)


class NoDensifier:
    """Leaves the Gaussians as many as they are."""

    def statistics(self) -> dict[str, Tensor]:
        return {}

    def load_statistics(self, statistics: dict[str, Tensor]) -> None:
        """There are none to continue from."""

    def before_backward(self, gaussians: Gaussians, optimizers: dict, step: int, info: dict[str, Any]) -> None:
        """Nothing is gathered."""

    def after_backward(
        self, gaussians: Gaussians, optimizers: dict, step: int, info: dict[str, Any], seed: int
    ) -> None:
        """Nothing changes."""


def make_densifier(config: DensifyConfig | None, steps: int) -> Densifier | MCMCDensifier | NoDensifier:
    """What config.strategy names; None: none."""
    if config is None:
        return NoDensifier()
    return MCMCDensifier(config, steps) if config.strategy == "mcmc" else Densifier(config, steps)
