"""State of a stage between two steps. It holds everything on which the next step depends, so a copy continues the stage
exactly.

Nothing else needs to be saved: the noise and the time t are functions of the step, the cameras, the settings and this
state, and no part draws from the global random generators.
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
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians


@dataclass(frozen=True)
class StateDict:
    """A StageState in a form that can be written to a file."""

    tensors: dict[str, Tensor]
    """Tensors in main memory. Copies from a CUDA device are complete only after `wait`."""
    numbers: dict[str, int]
    """step, rollbacks and good_step."""
    arrival: torch.cuda.Event | None = None
    """Event that marks the end of the copies from a CUDA device."""

    def wait(self) -> None:
        """Waits until the tensors are complete."""
        if self.arrival is not None:
            self.arrival.synchronize()


class StageState:
    """The Gaussians, Adam's moments, the densifier's statistics, the method's learner, the random generator and the
    step, and a copy of the last good state for rollbacks.

    Tensors have names such as params/means, adam/means/exp_avg, densify/grad2d, learner/... and generator.
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
        """seed: for the random generator. keep_every: steps between two good states. learner: the method's learner, or
        the album of the polish."""
        self.gaussians, self.config, self.seed, self.keep_every = gaussians, config, seed, keep_every
        self.learner = learner
        self.optimizers = make_optimizers(gaussians, {name: getattr(config.lr, name) for name in gaussians.params})
        densify = config.densify if isinstance(config, StageConfig) else None
        self.densifier = make_densifier(densify, config.steps)
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0
        """Index of the next step, from 0, which is also the number of steps done."""
        self.rollbacks = 0
        """Number of rollbacks so far."""
        self.keep()

    def set_step_sizes(self) -> None:
        """Sets Adam's step sizes for the next step: they decay exponentially, and each rollback halves them."""
        lr = self.config.lr
        left = lr.end ** (self.step / self.config.steps) * 0.5**self.rollbacks
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = getattr(lr, name) * left

    def advance(self) -> None:
        """Moves to the next step, after a sound one; keeps the state as good every keep_every steps."""
        self.step += 1
        if self.step % self.keep_every == 0:
            self.keep()

    def roll_back(self) -> None:
        """Returns to the last good state, to continue with half the step size and other views."""
        rollbacks = self.rollbacks + 1
        self.load(self.good_step, self.good)
        self.rollbacks = rollbacks
        self.generator.manual_seed(self.seed + rollbacks)

    def keep(self) -> None:
        """Makes the current state the last good one."""
        self.good_step = self.step
        self.good = {name: value.clone() for name, value in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the state's tensors by name, detached but not copied."""
        named = {f"params/{name}": value.detach() for name, value in self.gaussians.params.items()}
        for name, optimizer in self.optimizers.items():
            moments = optimizer.state.get(self.gaussians.params[name], {})
            named |= {f"adam/{name}/{key}": value for key, value in moments.items()}
        named |= {f"densify/{key}": value for key, value in self.densifier.statistics().items()}
        if self.learner is not None:
            named |= {f"learner/{key}": value for key, value in self.learner.tensors().items()}
        return named | {"generator": self.generator.get_state()}

    def load(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Restores the state before `step` from the result of `tensors`, copying it."""
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
        """Returns a copy of the state and of the last good one, if different, without waiting for a CUDA device."""
        # Copies from CUDA with non_blocking go to pinned memory.
        tensors = {f"now/{name}": v.to("cpu", non_blocking=True, copy=True) for name, v in self.tensors().items()}
        if self.good_step != self.step:
            # These tensors are replaced but never modified: on the CPU no copy is needed.
            tensors |= {f"good/{name}": v.to("cpu", non_blocking=True) for name, v in self.good.items()}
        numbers = {"step": self.step, "rollbacks": self.rollbacks, "good_step": self.good_step}
        return StateDict(tensors, numbers, event() if self.gaussians.device.type == "cuda" else None)

    def load_state_dict(self, saved: StateDict) -> None:
        """Restores the state from the result of `state_dict`. Raises UserError for tensors of another kind of run."""
        step, good_step = saved.numbers["step"], saved.numbers["good_step"]
        now = part(saved.tensors, "now/")
        good = now if good_step == step else part(saved.tensors, "good/")
        try:
            for tensors in (good, now):
                self.check(tensors)
            self.load(good_step, good)
            self.keep()
            self.load(step, now)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"resume: expected the tensors of this stage in its checkpoint, got others ({str(error)[:200]}); start "
                "again with the run's config.yaml as --preset and another --out"
            ) from error
        self.rollbacks = saved.numbers["rollbacks"]

    def check(self, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError or KeyError unless the result of `tensors` can be one of this stage's."""
        count = len(tensors["params/means"])
        for name, value in self.gaussians.params.items():
            shape = (count, *value.shape[1:])
            expected = {f"params/{name}": shape}
            if any(key.startswith(f"adam/{name}/") for key in tensors):
                moments = {f"adam/{name}/{key}": shape for key in ("exp_avg", "exp_avg_sq")}
                expected |= {f"adam/{name}/step": (), **moments}
            for key, wanted in expected.items():
                found = tensors[key]
                if tuple(found.shape) != wanted or found.dtype != value.dtype:
                    raise ValueError(f"{key}: expected {list(wanted)} {value.dtype}, got {describe(found)}")
        for key, found in part(tensors, "densify/").items():
            if found.shape != (count,):
                raise ValueError(f"densify/{key}: expected {[count]}, got {describe(found)}")


def load_moments(optimizer: torch.optim.Optimizer, parameter: Tensor, moments: dict[str, Tensor]) -> None:
    """Copies Adam's moments of a parameter to the optimizer, which has no state. Before the first step, `moments` is
    empty."""
    if moments:
        # On the CPU, and in the fused version on CUDA, Adam's step counter is on the same device as the moments.
        optimizer.state[parameter] = {k: v.to(parameter.device, copy=True) for k, v in moments.items()}


def describe(tensor: Tensor) -> str:
    """Returns the shape and type of a tensor, for messages."""
    return f"{list(tensor.shape)} {tensor.dtype}"


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names start with the prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Checkpoint:
    """State from which a run continues."""

    stage: StageName
    state: StateDict
    rows: int
    """Number of rows of stats.jsonl written so far."""
    device: str
    """Device type of the run: cpu or cuda."""
    config: dict[str, Any]
    """The run's settings, by `config.plain`."""


def make_optimizers(gaussians: Gaussians, lr: dict[str, float]) -> dict[str, torch.optim.Adam]:
    """Returns one Adam optimizer per parameter, as gsplat's strategies expect, fused on CUDA.

    lr: step sizes by parameter name.
    """
    fused = gaussians.device.type == "cuda"
    return {
        name: torch.optim.Adam(
            [{"params": value, "name": name}], lr=lr[name], betas=(0.9, 0.99), eps=1e-15, fused=fused
        )
        for name, value in gaussians.params.items()
    }


def scaled_gradient_variance(optimizer: torch.optim.Adam) -> Tensor:
    """Returns sqrt(sum(v - m^2) / sum(v)) over all entries of Adam's bias-corrected moments m and v (CFD Eq. 15, with
    the root over the whole fraction), in [0, 1], as a float64 scalar on the device of the moments, without waiting for
    CUDA.

    0 means that the gradient is the same at every step, 1 that the gradients cancel out. Because m averages over only
    1 / (1 - beta1) steps, pure noise gives sqrt(1 - (1 - beta1) / (1 + beta1)): .973 for beta1 = .9. NaN before the
    first step and if all gradients were 0.
    """
    spread, total = moment_sums(optimizer)
    return (spread / total).sqrt()


def paper_gradient_variance(optimizer: torch.optim.Adam) -> Tensor:
    """Returns sqrt(sum(v - m^2)) / sum(v) of the same moments: CFD Eq. 15 with the root over the numerator alone,
    since the paper's values of 4.5 to 5.2 cannot be a share. Its unit is that of 1 / gradient: it compares methods
    whose gradients are equally large. NaN as above.
    """
    spread, total = moment_sums(optimizer)
    return spread.sqrt() / total


def moment_sums(optimizer: torch.optim.Adam) -> tuple[Tensor, Tensor]:
    """Returns sum(v - m^2) and sum(v) over all entries of Adam's bias-corrected moments, float64 scalars."""
    spread = total = torch.zeros((), dtype=torch.float64)
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "exp_avg" in state:
                step = state["step"].double()
                m, v = state["exp_avg"].double() / (1 - beta1**step), state["exp_avg_sq"].double() / (1 - beta2**step)
                spread, total = spread + (v - m**2).sum(), total + v.sum()
    return spread.clamp_min(0), total
