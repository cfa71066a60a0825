"""Starting a run from an existing splat or mesh: `--init FILE`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from gscfd.config import InitConfig
from gscfd.distil.meshes import MESHES, mesh_gaussians
from gscfd.errors import UserError, warn
from gscfd.export.transform import change_of_axes, transformed, with_degree
from gscfd.gaussians import Gaussians

LINEAR_SIZES = (
    "init: {path} has a median size of {size:.3g}, larger than the whole splat ({extent:.3g}), and no negative value "
    "in its scale_*: a 3DGS .ply holds the natural logarithms of the sizes, this one probably the sizes; store their "
    "logarithms"
)
INSIDE_SHARE = 0.99
"""Share of the Gaussians that must lie in the unit ball; the rest may be floaters of a capture."""
FITTING_RADII = (0.7, 1.2)
"""Range of radii at which a splat is left unchanged; gscfd's splats have a radius of about 0.9, those of generators
that fill a cube of edge 1 about 0.5."""


def read_start(config: InitConfig) -> Gaussians | None:
    """Returns the splat or mesh in config.ply as Gaussians with z up, fitted to the unit ball, with spherical harmonics
    of degree config.sh_degree, or None if config.ply is unset.

    Warns if it had to be moved and scaled. Raises UserError if the file is not a 3DGS .ply, one whose sizes are not
    logarithms, or a mesh that `mesh_gaussians` refuses.
    """
    if config.ply is None:
        return None
    if config.ply.suffix.lower() in MESHES:
        read, axes = mesh_gaussians(config.ply, config.count), config.axes or "y-up"
    else:
        read, axes = read_splat(config.ply), config.axes or "z-up"
        check_logarithms(read, config.ply)
    turned = transformed(read, change_of_axes(axes, "z-up"))
    gaussians, center, scale = in_unit_ball(with_degree(turned, config.sh_degree))
    if scale != 1:
        place = ", ".join(f"{value:.3g}" for value in center)
        warn(f"init: {config.ply} is scaled by {scale:.3g} about ({place}), to fill the unit ball")
    return gaussians


def read_splat(path: Path) -> Gaussians:
    """Returns the splat in a 3DGS .ply. Raises UserError, naming init, if the file is not one."""
    known = f"init: expected a 3DGS .ply or a mesh ({', '.join(MESHES)}), got"
    if path.is_dir():
        raise UserError(f"{known} the folder {path}; name a file, such as {path / 'splat.ply'}")
    try:
        return Gaussians.load_ply(path)
    except UserError as error:
        if path.is_file() and path.suffix.lower() != ".ply":
            raise UserError(f"{known} {path}; convert it to one of these first") from None
        raise UserError(f"init: {str(error).removeprefix('ply: ')}") from None


def check_logarithms(gaussians: Gaussians, path: Path) -> None:
    """Raises UserError if the splat's sizes make sense only if they are not logarithms."""
    means, scales = gaussians.means.detach(), gaussians.scales.detach()
    extent = (means - means.median(0).values).norm(dim=1).quantile(INSIDE_SHARE).item()
    size = scales.amax(1).exp().median().item()
    if len(gaussians) > 1 and (scales > 0).all() and size > extent:
        raise UserError(LINEAR_SIZES.format(path=path, size=size, extent=extent))


def in_unit_ball(gaussians: Gaussians) -> tuple[Gaussians, list[float], float]:
    """Returns the splat, the point moved to the origin, and the scale factor.

    A splat that already fills the unit ball is unchanged, with a scale factor of 1. Otherwise the median position moves
    to the origin, and the unit ball contains 99 % of the Gaussians, each extended by one standard deviation.
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
    """Returns the radius of the ball about the origin that contains 99 % of the Gaussians, each extended by its largest
    standard deviation."""
    values = {name: value.double() for name, value in gaussians.tensors().items()}
    distance = values["means"].norm(dim=1) + values["scales"].amax(1).exp()
    return float(np.quantile(distance.numpy(), INSIDE_SHARE))
