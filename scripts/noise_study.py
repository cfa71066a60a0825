"""Agreement between views on splats during a run: the study behind docs/noise.md. Prints a Markdown table.

    python scripts/noise_study.py OUT [--prompts ...]

Runs each prompt with the default settings and saves the splat at five moments of each stage (OUT/PROMPT/*.ply; existing
files are reused, so the script can be interrupted and restarted). For each splat and each way to find its surface, the
table shows E (the share of a pixel's noise that another view predicts) at 10 and 60 degrees of azimuth, the mean over
prompts and both directions of rotation, and the share of covered pixels without cells. Latents and renders have the
sizes of the stage. OUT/stages.png shows each prompt's splats: the front, a view 10 degrees away, and E of the first
given the second as heat (black 0, white 1).
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from gscfd.cameras import orbit
from gscfd.distil.loading import load_teachers
from gscfd.distil.pipeline import distil
from gscfd.distil.stage import StepReport
from gscfd.gaussians import Gaussians
from gscfd.lab.noise_pictures import correlation_picture, predicted_share
from gscfd.noise import kinds
from gscfd.noise.field import NoiseField
from gscfd.noise_kernels import cpu
from gscfd.pictures import write_contact_sheet
from gscfd.runs.names import default_folder
from gscfd.runs.options import parse
from gscfd.types import Cameras, Render

PROMPTS = ("a yellow duck", "a green chair", "a white house with a red roof")
MOMENTS = (0.1, 0.3, 0.5, 0.75, 1.0)
"""Fractions of a stage's steps after which the splat is saved."""
AZIMUTHS = (20.0, 30.0, 80.0, 10.0, -40.0)
"""The first view, and views 10 and 60 degrees to either side of it."""


@dataclass(frozen=True)
class Way:
    """Settings for finding the surface and dividing it into cells."""

    depth: str = "expected"
    normal_radius: int = 1
    pitch: float = 1 / 4
    """Pitch of the cells in footprints."""
    layer: float = 8.0
    """Depth of a layer in footprints."""
    smoothing: int = 2
    """Rounds of depth smoothing."""


WAYS = {
    "default": Way(),
    "not smoothed": Way(smoothing=0),
    "1 round": Way(smoothing=1),
    "4 rounds": Way(smoothing=4),
    "median": Way(depth="median"),
    "median, not smoothed": Way(depth="median", smoothing=0),
    "normals of 5 x 5": Way(normal_radius=2),
    "pitch 1/3": Way(pitch=1 / 3),
    "pitch 1/6": Way(pitch=1 / 6),
    "layers of 4": Way(layer=4.0),
    "layers of 16": Way(layer=16.0),
    "not smoothed, layers of 4": Way(smoothing=0, layer=4.0),
}


def views(size: int) -> Cameras:
    azimuth = torch.tensor(AZIMUTHS)
    ones = torch.ones_like(azimuth)
    return orbit(azimuth, 15 * ones, ones / math.sin(math.radians(20)), 40 * ones, size, size)


@dataclass
class Agreement:
    near: float
    """E at 10 degrees."""
    far: float
    """E at 60 degrees."""
    starved: float
    """Share of the covered pixels without cells."""


def agreement(gaussians: Gaussians, way: Way, latent: int, size: int) -> Agreement:
    """Returns the mean over both directions of rotation."""
    cameras, field = views(size), NoiseField(0, 1, latent, latent, depth=way.depth)
    field.normal_radius, field.smoothing = way.normal_radius, way.smoothing
    render = gaussians.render(cameras)
    cells = replace(kinds.grid(field), pitch=way.pitch * field.footprint, layer_depth=way.layer * field.footprint)
    depth, opacity = kinds.surface_images(field, cameras, render)
    parts = cpu.surface(
        cells, depth, opacity, cameras.viewmats, cameras.Ks, channels=1, seed=0, stream=0, nodes=[(0, 1.0)]
    )
    filled, found = parts.coverage[0] == 1, []
    for other in range(1, len(AZIMUTHS)):
        pair = torch.tensor([0, other])
        images = Render(render.rgb[pair], render.depth[pair], render.opacity[pair])
        if render.median_depth is not None:
            images.median_depth = render.median_depth[pair]
        both = Cameras(cameras.viewmats[pair], cameras.Ks[pair], size, size)
        found.append(predicted_share(field, cells, both, images)[filled].mean().item())
    covered = parts.coverage > 0
    starved = (covered & (parts.counts == 0)).sum() / covered.sum().clamp_min(1)
    return Agreement((found[0] + found[2]) / 2, (found[1] + found[3]) / 2, starved.item())


def snapshots(prompt: str, folder: Path) -> dict[str, Path]:
    """Returns the splat's path for each moment, by name: "coarse 10 %", ..."""
    config = parse(["--prompt", prompt, "--no-viewer"])
    stages = {name: stage.steps for name, stage in config.stages().items() if name in SIZES}
    wanted = {(s, max(round(m * steps), 1) - 1): f"{s} {m:.0%}" for s, steps in stages.items() for m in MOMENTS}
    paths = {name: folder / f"{name.replace(' ', '-').replace('%', '')}.ply" for name in wanted.values()}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)

        def on_step(report: StepReport) -> None:
            name = wanted.get((report.stage, report.step))
            if name:
                report.gaussians.save_ply(paths[name])

        distil(config, load_teachers(config), on_step)
    return paths


SIZES = {"coarse": (16, 64), "refine": (32, 128)}
"""Size of latents and render of each stage."""
PICTURE = 128


def mean_agreement(splats: list[Path], way: Way, latent: int, size: int) -> Agreement:
    found = [agreement(Gaussians.load_ply(splat), way, latent, size) for splat in splats]
    return Agreement(*(float(np.mean([getattr(f, a.name) for f in found])) for a in fields(Agreement)))


def table(columns: dict[str, list[Path]]) -> str:
    """Returns a table with a row for each way and a column for each moment's splats."""
    lines = ["| surface | " + " | ".join(columns) + " | starved |", "|---" * (len(columns) + 2) + "|"]
    for name, way in WAYS.items():
        row = [mean_agreement(splats, way, *SIZES[moment.split()[0]]) for moment, splats in columns.items()]
        cells = [f"{found.near:.3f}/{found.far:.3f}" for found in row]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {max(found.starved for found in row):.2%} |")
    return "\n".join(lines)


def write_sheet(paths: list[dict[str, Path]], path: Path) -> None:
    rows = []
    for of in paths:
        for splat in of.values():
            latent = PICTURE // 4
            rows.append(
                correlation_picture(Gaussians.load_ply(splat), NoiseField(0, 3, latent, latent), False, PICTURE)[0]
            )
    write_contact_sheet(np.concatenate(rows), path, columns=5)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS))
    arguments = parser.parse_args()
    paths = [snapshots(prompt, arguments.out / default_folder(prompt, 0).name) for prompt in arguments.prompts]
    print(table({moment: [of[moment] for of in paths] for moment in paths[0]}))
    write_sheet(paths, arguments.out / "stages.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
