"""Is the splat still sound? Looked at after every step, so that a run that went wrong goes back in time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gscfd.config import WatchdogConfig
from gscfd.state import StageState, part


@dataclass(frozen=True)
class Trouble:
    """Why a step cannot be kept."""

    what: str
    advice: str
    """What the user can try."""


def find_trouble(
    state: StageState, opacity: Tensor, loss: Tensor, *, name: str, limits: WatchdogConfig
) -> Trouble | None:
    """The first trouble of a step that is done, or None.

    state: after the step. opacity: [V, H, W, 1] of the views it rendered. name: of the stage, for the advice.
    """
    count = len(state.gaussians)
    if count == 0:
        return Trouble(
            "no Gaussians are left", f"try a smaller --{name}.densify.prune-opacity, or a larger --init.opacity"
        )
    broken = not_finite(state.tensors() | {"loss": loss.detach()})
    if broken:
        verb = "is" if len(broken) == 1 else "are"
        return Trouble(
            f"{', '.join(broken)} {verb} not finite", f"try a smaller --{name}.cfg or smaller --{name}.lr.* values"
        )
    most = limits.max_growth * max(state.config.densify.max_count, len(state.good["params/means"]))
    if count > most:
        return Trouble(
            f"{count} Gaussians are more than {most:.0f}",
            f"try a larger --{name}.densify.grad-threshold, or a larger --{name}.densify.max-count if they are meant",
        )
    size = state.gaussians.scales.detach().exp().amax(-1).mean().item()
    if size > limits.max_scale:
        return Trouble(
            f"the Gaussians' mean size is {size:.3g}, more than {limits.max_scale:g}",
            f"try a smaller --{name}.lr.scales, or a larger --{name}.scale-reg",
        )
    covered = opacity.detach().mean((1, 2, 3))
    if covered.max().item() < limits.min_foreground:
        return Trouble(
            f"the views are empty (mean opacity below {limits.min_foreground:g})",
            f"try a smaller --{name}.lr.opacities, or a larger --init.opacity",
        )
    if covered.max().item() > limits.max_filled:
        return Trouble(
            f"a view is filled to its edges (mean opacity above {limits.max_filled:g})",
            f"try a smaller --{name}.lr.scales, a larger --{name}.radius, or a smaller --init.radius",
        )
    return None


def not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """Names with a NaN or an infinity, sorted. A parameter, its gradient and its moments have one name: a gradient
    that is not finite makes Adam's moments so. The densifier's statistics come from the positions' gradients."""
    named = {"loss": tensors["loss"], **part(tensors, "params/"), **part(tensors, "adam/"), **part(tensors, "densify/")}
    finite = torch.stack([value.isfinite().all().cpu() for value in named.values()]).tolist()
    return sorted({name.split("/")[0] for name, good in zip(named, finite, strict=True) if not good})
