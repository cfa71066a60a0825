"""Trials: runs of the pipeline with the ideal teacher, measured against the assets that it knows."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

import gscfd
from gscfd.cameras import turntable
from gscfd.config import Config, StageName, plain
from gscfd.distil.pipeline import distil
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians
from gscfd.lab.assets import Asset
from gscfd.lab.ideal import Cosines, IdealDenoiser, ideal_teacher
from gscfd.lab.metrics import haze, hole_share, psnr, speckle, strays
from gscfd.lab.references import BACKGROUND
from gscfd.ply import ply_bytes
from gscfd.runs.names import SLUG_LETTERS, slug
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.schedules import Schedule
from gscfd.teachers.spaces import Pixels, Space
from gscfd.types import Render

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Measured = TypeVar("Measured", bound="DataclassInstance")
"""Figures of a run."""
SIZE, VIEWS = 256, 8
"""Pixels and number of the views that are measured."""
ELEVATIONS = (-30.0, 15.0, 60.0)
"""Of the views in which strays are looked for, degrees."""


# -------------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one run came to."""

    psnr: float
    """dB of 8 views of 256 pixels, to the nearest known asset."""
    speckle: float
    """In multiples of the asset's."""
    holes: float
    floaters: float
    """Share of the splat's pixels that show something away from the asset, seen from all sides, above and below."""
    haze: float
    gaussians: int
    steps: int
    calls: int
    """How often the teacher was asked."""
    seconds: float
    """Processor time of all threads, without the ideal teacher's calls."""


def seen(gaussians: Gaussians, *, size: int, elevation: float = 15.0) -> Render:
    """Returns the views that are measured, on the CPU. size: pixels. elevation: degrees."""
    return gaussians.render(turntable(VIEWS, size=size, elevation=elevation)).to("cpu")


def images_of(render: Render) -> Tensor:
    """Returns the images [V, 3, H, W] over the gray of everything that is judged."""
    return render.over(torch.tensor(BACKGROUND)).clamp(0, 1).permute(0, 3, 1, 2)


def compared(gaussians: Gaussians, assets: Sequence[Asset], *, size: int = SIZE) -> dict[str, float]:
    """Returns the figures of a splat that do not depend on how it was made, against the nearest of the assets.

    size: pixels of the views, both ways.
    """
    render = seen(gaussians, size=size)
    images, known = images_of(render), [images_of(seen(asset.gaussians, size=size)) for asset in assets]
    best = max(range(len(assets)), key=lambda k: psnr(images, known[k]))
    sides = [
        [seen(one, size=size, elevation=e).opacity for e in ELEVATIONS] for one in (gaussians, assets[best].gaussians)
    ]
    stray = [strays(own, true) for own, true in zip(*sides, strict=True)]
    return {
        "psnr": psnr(images, known[best]),
        "speckle": speckle(images, background=BACKGROUND) / speckle(known[best], background=BACKGROUND),
        "holes": hole_share(render),
        "floaters": fmean(stray),
        "haze": haze(render.opacity),
    }


# ----------------------------------------------------------------------------------------------------------------- runs


def space_of(name: str, real: GuidedTeacher) -> Space:
    """Returns the space of a variant, for images as large as the teacher's."""
    if name == "pixels":
        return Pixels(real.image_size)
    if name == "cosines":
        return Cosines(real.image_size, patch=real.image_size // real.latent_shape[1], channels=6)
    return real.space


def teachers_of(
    config: Config,
    assets: Sequence[Asset],
    spaces: Mapping[StageName, Space],
    schedule: Schedule,
) -> dict[StageName, GuidedTeacher]:
    """Returns an ideal teacher for every stage of the config, with its prompt set. It sees the views of a group as
    views of one asset."""
    teachers = {}
    for name, stage in config.stages().items():
        known = [asset.gaussians for asset in assets]
        teachers[name] = ideal_teacher(known, space=spaces[name], schedule=schedule, multiview=True)
        teachers[name].set_prompt(stage_prompt(config.prompt, stage))
    return teachers


def calls_of(teachers: dict[StageName, GuidedTeacher]) -> tuple[int, float]:
    """Returns the number of calls of all ideal teachers, and their processor time."""
    denoisers = [teacher.denoiser for teacher in teachers.values()]
    ideal = [denoiser for denoiser in denoisers if isinstance(denoiser, IdealDenoiser)]
    return sum(denoiser.calls for denoiser in ideal), sum(denoiser.seconds for denoiser in ideal)


def run(
    config: Config, assets: Sequence[Asset], spaces: Mapping[StageName, Space], schedule: Schedule
) -> tuple[Gaussians, Figures]:
    """Makes a splat with the ideal teacher and measures it. spaces: of the stages."""
    teachers = teachers_of(config, assets, spaces, schedule)
    start = time.process_time()
    gaussians = distil(config, teachers, lambda report: None)
    spent = time.process_time() - start
    calls, inside = calls_of(teachers)
    return gaussians, Figures(
        **compared(gaussians, assets),
        gaussians=len(gaussians),
        steps=sum(stage.steps for stage in config.stages().values()),
        calls=calls,
        seconds=spent - inside,
    )


# -------------------------------------------------------------------------------------------------------------- results


def kept(path: Path, settings: dict[str, Any]) -> Any:
    """Returns the result that the file has for these settings, as json has it; None if it has none."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return None
    same = isinstance(content, dict) and content.get("settings") == json.loads(json.dumps(settings))
    return content["result"] if same else None


def keep(path: Path, settings: dict[str, Any], result: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps({"settings": settings, "result": result}, indent=1).encode())


def settings_of(config: Config, assets: Sequence[Asset], **others: object) -> dict[str, Any]:
    """Returns what a result depends on."""
    digest = hashlib.sha256(b"".join(ply_bytes(asset.gaussians.tensors()) for asset in assets)).hexdigest()
    return {"version": gscfd.__version__, "config": plain(config), "assets": digest, **others}


def stem_of(out: Path, *told: str, known: int, seed: int) -> Path:
    """Returns the path of a run's files without the ending, another one for each of its options.

    told: what the run is, such as a preset and an asset; what is too long for a file name ends in its checksum.
    """
    parts = [*told, *([str(known)] if known > 1 else []), *([f"seed {seed}"] if seed else [])]
    names = [slug(part) for part in parts]
    for i, part in enumerate(parts):
        if len(names[i]) >= SLUG_LETTERS - 1:
            names[i] += "-" + hashlib.sha256(part.encode()).hexdigest()[:8]
    return out / "runs" / "-".join(names)


def kept_run(
    stem: Path,
    settings: dict[str, Any],
    kind: Callable[..., Measured],
    make: Callable[[], tuple[Gaussians, Measured]],
) -> tuple[Gaussians, Measured]:
    """Returns a splat and its figures, from an earlier call if it had the same settings; otherwise makes and
    keeps them.

    stem: path of the .ply and the .json, without the ending. kind: class of the figures.
    """
    file, splat = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.ply")
    found = kept(file, settings)
    if found is not None and splat.is_file():
        return Gaussians.load_ply(splat), kind(**found)
    gaussians, figures = make()
    splat.parent.mkdir(parents=True, exist_ok=True)
    gaussians.save_ply(splat)
    keep(file, settings, asdict(figures))
    return gaussians, figures
