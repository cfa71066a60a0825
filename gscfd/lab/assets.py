"""Assets that the laboratory measures against: toybox objects and any splat on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from gscfd.config import check
from gscfd.distil.start import in_unit_ball
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.harmonics import rgb_to_sh0
from gscfd.toybox.objects import ToyObject
from gscfd.toybox.truth import TRIES, true_objects
from gscfd.toybox.words import parse_caption


@dataclass(frozen=True)
class Asset:
    """One object whose every view is known."""

    name: str
    """Its caption, or the name of its file."""
    gaussians: Gaussians
    """In the unit ball, z up."""


def as_gaussians(thing: ToyObject) -> Gaussians:
    """Returns a toybox object as a splat."""
    opacities = torch.from_numpy(thing.opacities)
    return Gaussians(
        means=torch.from_numpy(thing.means),
        quats=torch.from_numpy(thing.quats),
        scales=torch.from_numpy(thing.scales).log(),
        opacities=opacities.logit(),
        sh0=rgb_to_sh0(torch.from_numpy(thing.colors))[:, None],
        shN=torch.zeros(len(opacities), 0, 3),
    )


def check_single(text: str) -> None:
    """Raises UserError if the text is not the caption of one toybox object."""
    said = parse_caption(text)
    if said is None or said.on_kind is not None:
        raise UserError(
            f"assets: expected the caption of a single toybox object, such as 'a yellow duck', or a .ply file, got "
            f"{text!r}; gscfd train --list-words prints the words"
        )


def toybox_assets(caption: str, count: int, *, spacing: float) -> list[Asset]:
    """Returns the first `count` objects, by seed, that the caption describes.

    spacing: distance between neighboring discs in world units. Raises UserError if the caption is not one of a single
    object, or fewer objects are found.
    """
    if count < 1:
        raise UserError(f"known: expected at least 1 object, got {count}; give a larger number")
    check_single(caption)
    found = [Asset(caption, as_gaussians(thing)) for thing in true_objects(caption, count, spacing=spacing)]
    if len(found) < count:
        raise UserError(
            f"assets: expected {count} objects of {caption!r}, found {len(found)} among {TRIES}; ask for fewer"
        )
    return found


def read_asset(path: Path) -> Asset:
    """Returns the splat in a 3DGS .ply, fitted to the unit ball. Raises UserError if it cannot be read."""
    try:
        gaussians = Gaussians.load_ply(path)
    except UserError as error:
        raise UserError(f"assets: {str(error).removeprefix('ply: ')}") from None
    return Asset(path.name, in_unit_ball(gaussians)[0])


def find_assets(source: str, count: int, *, spacing: float) -> list[Asset]:
    """Returns the assets that a command names: objects of a caption, or the one in a .ply file.

    count, spacing: of toybox objects. Raises UserError as the functions above do.
    """
    if source.endswith(".ply"):
        check(count == 1, "known", f"1, since {source} is one object", count)
        return [read_asset(Path(source))]
    return toybox_assets(source, count, spacing=spacing)
