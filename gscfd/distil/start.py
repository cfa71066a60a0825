"""A splat that is there already as the start of a run: `--init PLY`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from gscfd.config import InitConfig
from gscfd.errors import UserError, warn
from gscfd.export.transform import with_degree
from gscfd.gaussians import Gaussians

INSIDE_SHARE = 0.99
"""Share of the Gaussians that must lie in the unit ball; the others may be the floaters of a capture."""
FITTING_RADII = (0.5, 1.2)
"""Radii at which a splat stays as it is: gscfd's own have about 0.9."""


def read_start(config: InitConfig) -> Gaussians | None:
    """The splat of config.ply, in the unit ball and with harmonics of degree config.sh_degree; None where it is unset.

    Says so where it had to be moved. Raises UserError when the file is not a 3DGS .ply.
    """
    if config.ply is None:
        return None
    gaussians, center, scale = in_unit_ball(with_degree(read_splat(config.ply), config.sh_degree))
    if scale != 1:
        place = ", ".join(f"{value:.3g}" for value in center)
        warn(f"init: {config.ply} is scaled by {scale:.3g} about ({place}), to fill the unit ball")
    return gaussians


def read_splat(path: Path) -> Gaussians:
    """The splat of a 3DGS .ply. Raises UserError when it is not one."""
    try:
        return Gaussians.load_ply(path)
    except UserError as error:
        raise UserError(f"init: {str(error).removeprefix('ply: ')}") from None


def in_unit_ball(gaussians: Gaussians) -> tuple[Gaussians, list[float], float]:
    """The splat, what of it has gone to the origin, and how many times as large it is now.

    Scale 1: it fills the unit ball as it is. Otherwise the median position goes to the origin, and the ball holds 99 %
    of the Gaussians, each with one standard deviation.
    """
    if FITTING_RADII[0] <= reach(gaussians) <= FITTING_RADII[1]:
        return gaussians, [0.0, 0.0, 0.0], 1.0
    values = gaussians.tensors()
    center = values["means"].median(0).values
    values["means"] -= center
    scale = 1 / reach(Gaussians(**values))
    values["means"] *= scale
    values["scales"] += math.log(scale)
    return Gaussians(**values), center.tolist(), scale


def reach(gaussians: Gaussians) -> float:
    """Radius of the ball about the origin that holds 99 % of the Gaussians, each with one standard deviation."""
    values = {name: value.double() for name, value in gaussians.tensors().items()}
    distance = values["means"].norm(dim=1) + values["scales"].amax(1).exp()
    return float(np.quantile(distance.numpy(), INSIDE_SHARE))
