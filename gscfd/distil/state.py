"""A stage between two steps: all that the next step depends on, so that a copy of it continues the stage exactly.

The noise and the time t are functions of the step, the cameras and the settings, and no part draws from the global
random generators: there is nothing else to keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gscfd.config import StageConfig, StageName, TeacherStage
from gscfd.deferred import event
from gscfd.distil.densify import make_densifier
from gscfd.distil.protocols import Kept
from gscfd.gaussians import Gaussians


@dataclass(frozen=True)
class StateDict:
    """A StageState as what a file can hold."""

    tensors: dict[str, Tensor]
    """In main memory; those of a CUDA device are there after `wait`."""
    numbers: dict[str, int]
    arrival: torch.cuda.Event | None = None
    """Of the tensors, where a CUDA device copies them."""

    def wait(self) -> None:
        """Until the tensors are there."""
        if self.arrival is not None:
            self.arrival.synchronize()


class StageState:
    """The Gaussians, Adam's moments, the densifier's statistics, what the method trains, the random generator and the
    step; and the last good state, which the watchdog goes back to.

    Tensors go by name: params/means, adam/means/exp_avg, densify/grad2d, learner/..., generator.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        config: TeacherStage,
        *,
        seed: int,
        keep_every: int,
        learner: Kept | None = None,
    ):
        """keep_every: steps between two good states. learner: what the method trains, or the album of the polish."""
        self.gaussians, self.config, self.seed, self.keep_every = gaussians, config, seed, keep_every
        self.learner = learner
        self.optimizers = make_optimizers(gaussians, {name: getattr(config.lr, name) for name in gaussians.params})
        densify = config.densify if isinstance(config, StageConfig) else None
        self.densifier = make_densifier(densify, config.steps)
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0
        """Of the next step, from 0: as many are done."""
        self.rollbacks = 0
        """How often the watchdog went back."""
        self.keep()

    def set_step_sizes(self) -> None:
        """Adam's step sizes for the next step: they fall exponentially, and each rollback halves them."""
        lr = self.config.lr
        left = lr.end ** (self.step / self.config.steps) * 0.5**self.rollbacks
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = getattr(lr, name) * left

    def advance(self) -> None:
        """The step is done and sound."""
        self.step += 1
        if self.step % self.keep_every == 0:
            self.keep()

    def roll_back(self) -> None:
        """Return to the last good state, from there with half the step size and other views."""
        rollbacks = self.rollbacks + 1
        self.load(self.good_step, self.good)
        self.rollbacks = rollbacks
        self.generator.manual_seed(self.seed + rollbacks)

    def keep(self) -> None:
        """Make this the last good state."""
        self.good_step = self.step
        self.good = {name: value.clone() for name, value in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The state's own tensors, detached, not copied."""
        named = {f"params/{name}": value.detach() for name, value in self.gaussians.params.items()}
        for name, optimizer in self.optimizers.items():
            moments = optimizer.state.get(self.gaussians.params[name], {})
            named |= {f"adam/{name}/{key}": value for key, value in moments.items()}
        named |= {f"densify/{key}": value for key, value in self.densifier.statistics().items()}
        if self.learner is not None:
            named |= {f"learner/{key}": value for key, value in self.learner.tensors().items()}
        return named | {"generator": self.generator.get_state()}

    def load(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Become a copy of the tensors that a state had before `step`."""
        self.step = step
        for name, optimizer in self.optimizers.items():
            parameter = Parameter(tensors[f"params/{name}"].to(self.gaussians.device, copy=True))
            self.gaussians.params[name] = parameter
            optimizer.param_groups[0]["params"] = [parameter]
            optimizer.state.clear()
            load_moments(optimizer, parameter, part(tensors, f"adam/{name}/"))
        statistics = part(tensors, "densify/")
        self.densifier.load_statistics({k: v.to(self.gaussians.device, copy=True) for k, v in statistics.items()})
        if self.learner is not None:
            self.learner.load(part(tensors, "learner/"))
        self.generator.set_state(tensors["generator"].cpu())

    def state_dict(self) -> StateDict:
        """A copy of the state and, where it is another, of the last good one. A CUDA device is not waited for."""
        # From CUDA without waiting, the copies are in pinned memory.
        tensors = {f"now/{name}": v.to("cpu", non_blocking=True, copy=True) for name, v in self.tensors().items()}
        if self.good_step != self.step:
            # Never changed, only replaced: on the CPU no copy is needed.
            tensors |= {f"good/{name}": v.to("cpu", non_blocking=True) for name, v in self.good.items()}
        numbers = {"step": self.step, "rollbacks": self.rollbacks, "good_step": self.good_step}
        return StateDict(tensors, numbers, event() if self.gaussians.device.type == "cuda" else None)

    def load_state_dict(self, saved: StateDict) -> None:
        """Continue where state_dict() was taken."""
        step, good_step = saved.numbers["step"], saved.numbers["good_step"]
        self.load(good_step, part(saved.tensors, "now/" if good_step == step else "good/"))
        self.keep()
        self.load(step, part(saved.tensors, "now/"))
        self.rollbacks = saved.numbers["rollbacks"]


def load_moments(optimizer: torch.optim.Optimizer, parameter: Tensor, moments: dict[str, Tensor]) -> None:
    """Give the optimizer, which has none, a copy of Adam's moments of a parameter; there are none before its first
    step."""
    if moments:
        # On the CPU and by one kernel on CUDA, Adam counts its steps where the moments are.
        optimizer.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in moments.items()}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Checkpoint:
    """What continues a run."""

    stage: StageName
    state: StateDict
    rows: int
    """Rows of stats.jsonl written so far."""
    device: str
    """cpu or cuda."""
    config: dict[str, Any]
    """`config.plain` of the run's settings."""


def make_optimizers(gaussians: Gaussians, lr: dict[str, float]) -> dict[str, torch.optim.Adam]:
    """One Adam per parameter, as gsplat's strategies expect; on CUDA one kernel each. lr: by parameter name."""
    fused = gaussians.device.type == "cuda"
    return {
        name: torch.optim.Adam(
            [{"params": value, "name": name}], lr=lr[name], betas=(0.9, 0.99), eps=1e-15, fused=fused
        )
        for name, value in gaussians.params.items()
    }


def scaled_gradient_variance(optimizer: torch.optim.Adam) -> Tensor:
    """[] sqrt(sum(v - m^2) / sum(v)) over all entries of Adam's bias-corrected moments m and v (CFD Eq. 15), in [0, 1],
    in float64 where the moments are; a CUDA device is not waited for.

    0: every step the same gradient; 1: the gradients cancel out. m averages over 1 / (1 - beta1) steps only, so that of
    pure noise sqrt(1 - (1 - beta1) / (1 + beta1)) is seen: .973 for beta1 = .9. NaN before the first step, and where
    all gradients were 0.
    """
    spread = total = torch.zeros((), dtype=torch.float64)
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "exp_avg" in state:
                step = state["step"].double()
                m, v = state["exp_avg"].double() / (1 - beta1**step), state["exp_avg_sq"].double() / (1 - beta2**step)
                spread, total = spread + (v - m**2).sum(), total + v.sum()
    return (spread.clamp_min(0) / total).sqrt()
