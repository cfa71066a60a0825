"""Assets that the laboratory measures against: toybox objects and any splat on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gscfd.distil.start import in_unit_ball
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.harmonics import rgb_to_sh0
from gscfd.toybox.objects import ToyObject, sample_object
from gscfd.toybox.words import Caption, parse_caption

SPARSE = 0.3
"""Spacing of objects that are drawn only to read their captions."""
TRIES = 1000
"""Seeds among which objects of a caption are looked for."""


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


def single_caption(text: str) -> Caption:
    """Returns the caption of one toybox object. Raises UserError if the text is none."""
    said = parse_caption(text)
    if said is None or said.on_kind is not None:
        raise UserError(
            f"assets: expected the caption of a single toybox object, such as 'a yellow duck', or a .ply file, got "
            f"{text!r}; gscfd train --list-words prints the words"
        )
    return said


def toybox_assets(caption: str, count: int, *, spacing: float) -> list[Asset]:
    """Returns the first `count` objects, by seed, that the caption describes.

    spacing: distance between neighboring discs in world units. Raises UserError if the caption is not one of a single
    object, or fewer objects are found.
    """
    if count < 1:
        raise UserError(f"known: expected at least 1 object, got {count}; give a larger number")
    said = single_caption(caption)
    found: list[Asset] = []
    for seed in range(TRIES):
        draw = partial(sample_object, seed, kind=said.kind, color=said.color, allow_withheld=True)
        if caption in draw(spacing=SPARSE).captions:
            found.append(Asset(caption, as_gaussians(draw(spacing=spacing))))
        if len(found) == count:
            return found
    raise UserError(
        f"assets: expected {count} objects of {caption!r}, found {len(found)} among {TRIES}; write the caption as the "
        "toybox does, or ask for fewer"
    )


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
        return [read_asset(Path(source))]
    return toybox_assets(source, count, spacing=spacing)
