"""Checks of the splat after each step, which detect a failing run early enough to roll it back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gscfd.config import StageConfig, WatchdogConfig
from gscfd.distil.state import StageState, part


@dataclass(frozen=True)
class Trouble:
    """Problem that makes a rollback necessary."""

    what: str
    """Description of the problem."""
    advice: str
    """Settings that the user can try."""


CUDA_EVERY = 10
"""Steps between two full checks on CUDA, where each check waits for the device."""


def due(state: StageState) -> bool:
    """Returns whether a full check is due after the current step: always on the CPU; on CUDA every CUDA_EVERY steps,
    before a state is kept as good, and at the end of the stage."""
    done, every = state.step + 1, 1 if state.gaussians.device.type == "cpu" else CUDA_EVERY
    return done % every == 0 or done % state.keep_every == 0 or done == state.config.steps


def find_trouble(
    state: StageState, opacity: Tensor, loss: Tensor, *, name: str, limits: WatchdogConfig
) -> Trouble | None:
    """Returns the first problem after a step, or None. The number of Gaussians is checked after every step, the rest
    when `due`.

    state: state after the step. opacity: [V, H, W, 1] opacity of the step's views. loss: scalar. name: stage, for the
    advice.
    """
    count = len(state.gaussians)
    if count == 0:
        return Trouble(
            "no Gaussians are left", f"try a smaller --{name}.densify.prune-opacity, or a larger --init.opacity"
        )
    most = limits.max_growth * max(state.config.max_count, len(state.good["params/means"]))
    if count > most:
        return Trouble(
            f"{count} Gaussians are more than {most:.0f}",
            f"try a larger --{name}.densify.grad-threshold, or a larger --{name}.densify.max-count if this is intended",
        )
    if not due(state):
        return None
    finite = all_finite(state.tensors() | {"loss": loss.detach()})
    sizes, coverage = state.gaussians.scales.detach().exp().amax(-1), opacity.detach().mean((1, 2, 3))
    # A single copy from the device.
    *good, size, covered = torch.stack([*finite.values(), sizes.mean(), coverage.max()]).tolist()
    broken = sorted(name for name, is_good in zip(finite, good, strict=True) if not is_good)
    if broken:
        verb = "is" if len(broken) == 1 else "are"
        smaller = f"--{name}.cfg or smaller --{name}.lr.* values"
        if state.learner is not None and broken == [state.learner.name]:
            smaller = f"--{name}.{state.learner.remedy}"
        return Trouble(f"{', '.join(broken)} {verb} not finite", f"try a smaller {smaller}")
    if size > limits.max_scale:
        regularized = f", or a larger --{name}.scale-reg" if isinstance(state.config, StageConfig) else ""
        return Trouble(
            f"the Gaussians' mean size is {size:.3g}, more than {limits.max_scale:g}",
            f"try a smaller --{name}.lr.scales{regularized}",
        )
    if covered < limits.min_foreground:
        return Trouble(
            f"the views are empty (mean opacity below {limits.min_foreground:g})",
            f"try a smaller --{name}.lr.means or --{name}.lr.opacities, or a larger --init.opacity",
        )
    if covered > limits.max_filled:
        return Trouble(
            f"a view is filled to its edges (mean opacity above {limits.max_filled:g})",
            f"try a smaller --{name}.lr.scales, a larger --{name}.radius, or another --init.radius",
        )
    return None


def all_finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns, by name, 1 if all values are finite and 0 otherwise.

    A parameter and its moments share a name; a gradient that is not finite makes Adam's moments not finite. The
    densifier's statistics come from the positions' gradients. A learner's tensors share the learner's name.
    """
    named = [("loss", tensors["loss"])]
    for kind in ("params/", "adam/", "densify/", "learner/"):
        named += [(key.split("/")[0], value) for key, value in part(tensors, kind).items() if not key.endswith("/step")]
    finite: dict[str, Tensor] = {}
    for name, value in named:
        # x - x is 0, but nan where x is not finite. On a CPU this is 20 times as fast as isfinite.
        good = (value - value).sum().isfinite().float()
        finite[name] = finite[name] * good if name in finite else good
    return finite
