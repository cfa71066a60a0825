"""The pipeline alone, without a teacher's errors: `gscfd bench pipeline`, with the ideal teacher.

Variants of the default's settings are run against assets that the teacher knows exactly, and their splats are compared
with these assets.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import torch

from gscfd.cameras import turntable
from gscfd.config import Config, PolishConfig, TeacherStage, check, merged
from gscfd.devices import choose_device, choose_dtype
from gscfd.gaussians import Gaussians
from gscfd.lab.assets import Asset, find_assets
from gscfd.lab.options import PipelineOptions
from gscfd.lab.report import Curve, Report, Sheet, Table, check_report, write_report
from gscfd.lab.trials import (
    SIZE,
    VIEWS,
    Figures,
    compared,
    images_of,
    kept_run,
    run,
    seen,
    settings_of,
    space_of,
    stem_of,
)
from gscfd.pictures import as_bytes
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import load_teacher

SPACING = 0.035
"""Distance between neighboring discs of a toybox asset, as in the teachers' training data at 64 pixels."""
SHOWN = 128
"""Pixels of the views in the page."""

Networks = dict[str, GuidedTeacher]
"""Teachers by name."""


@dataclass(frozen=True)
class Variant:
    """One way to run the pipeline."""

    space: str = "vae"
    """vae: that of the stage's own teacher. pixels. cosines: a linear space with the shape of the VAE's."""
    changes: dict[str, Any] | None = None
    """Of the default's settings."""


def steps(coarse: int, polish: int) -> dict[str, Any]:
    return {"coarse": {"steps": coarse}, "polish": {"steps": polish}}


COARSE_POLISH = {
    "teacher": "toybox/multiview",
    "views": 4,
    "cfg": 2.0,
    "t_max": 0.4,
    "t_min": 0.25,
    "elevation": [0.0, 30.0],
    "asks": 3,
    "album": 16,
    "fits": 10,
}
"""A polish in pictures of 64 pixels."""
VARIANTS = {
    "default": Variant(),
    "no polish": Variant(changes=steps(300, 0)),
    "pixels": Variant("pixels"),
    "pixels, no polish": Variant("pixels", steps(300, 0)),
    "linear space": Variant("cosines"),
    "quarter of the steps": Variant(changes=steps(75, 8)),
    "half of the steps": Variant(changes=steps(150, 16)),
    "polish by the coarse stage's teacher": Variant(changes={"polish": COARSE_POLISH}),
    "twice the steps": Variant(changes=steps(600, 64)),
    "half coarse, twice polish": Variant(changes=steps(150, 64)),
    "opacity_reg 3": Variant(changes={"coarse": {"opacity_reg": 3.0}}),
    "4000 at the start": Variant(changes={"init": {"count": 4000}}),
    "half of the noise fresh": Variant(changes={"noise": {"beta": 0.5}}),
    "sds": Variant(changes={"guidance": "sds"}),
}
"""Variants by name. The noise and the method matter only if the teacher knows several assets."""
CURVES = {
    "all steps": ("quarter of the steps", "half of the steps", "default", "twice the steps"),
    "polish alone": ("no polish", "default"),
}
"""Variants that differ in their number of steps alone."""


# ----------------------------------------------------------------------------------------------------------------- runs


def config_of(variant: Variant, source: str, seed: int) -> Config:
    return merged(replace(Config(), prompt=source, seed=seed), variant.changes or {})


def measured(
    name: str, variant: Variant, source: str, options: PipelineOptions, real: Networks
) -> tuple[Gaussians, Figures]:
    """Returns the splat of a variant and its figures, from an earlier call if it has the same settings."""
    config, assets = config_of(variant, source, options.seed), find_assets(source, options.known, spacing=SPACING)
    stem = stem_of(options.out, name, source, known=options.known, seed=options.seed)
    settings = settings_of(config, assets, space=variant.space)
    spaces = {name: space_of(variant.space, real[stage.teacher]) for name, stage in config.stages().items()}
    return kept_run(stem, settings, Figures, lambda: run(config, assets, spaces, real[config.coarse.teacher].schedule))


def load_networks(configs: Iterable[Config]) -> Networks:
    """Returns the configs' teachers, whose spaces, schedules and times per call the ideal ones have."""
    dtype = choose_dtype("auto", choose_device("cpu"))
    names = sorted({stage.teacher for config in configs for stage in config.stages().values()})
    return {name: load_teacher(name, device="cpu", dtype=dtype) for name in names}


def network_seconds(config: Config, real: Networks) -> float:
    """Returns the processor time that networks would take in a run."""
    asks = [stage.asks if isinstance(stage, PolishConfig) else 1 for stage in config.stages().values()]
    stages = zip(asks, config.stages().values(), strict=True)
    return sum(ask * stage.steps * call_seconds(stage, real[stage.teacher]) for ask, stage in stages)


def call_seconds(stage: TeacherStage, real: GuidedTeacher, repeats: int = 5) -> float:
    """Returns the median processor time of one call of a network, for all views of the stage."""
    real.set_prompt(stage_prompt("a yellow duck", stage))
    cameras, x = turntable(stage.views, size=real.image_size), torch.randn(stage.views, *real.latent_shape)
    spent = []
    for _ in range(repeats + 1):
        start = time.process_time()
        real.predict_eps(x, real.timesteps // 2, cameras)
        spent.append(time.process_time() - start)
    return median(spent[1:])


# --------------------------------------------------------------------------------------------------------------- report


FORMS = {
    "psnr": ("PSNR, dB ↑", ".2f"),
    "speckle": ("speckle, × ↓", ".2f"),
    "holes": ("holes ↓", ".2%"),
    "floaters": ("floaters ↓", ".2%"),
    "haze": ("haze ↓", ".1%"),
    "gaussians": ("Gaussians", ".0f"),
    "steps": ("steps", ".0f"),
    "calls": ("calls", ".0f"),
    "seconds": ("seconds ↓", ".1f"),
}
"""Title and format of every figure."""


def mean_row(runs: Sequence[Figures]) -> list[str]:
    return [format(fmean(getattr(one, name) for one in runs), form) for name, (_, form) in FORMS.items()]


def asset_row(asset: Asset) -> list[str]:
    """Returns the figures of the asset itself, which no splat should need to beat."""
    own = compared(asset.gaussians, [asset]) | {"gaussians": float(len(asset.gaussians))}
    return [format(own[name], form) if name in own else "" for name, (_, form) in FORMS.items()]


def variant_tables(
    runs: dict[str, dict[str, Figures]], assets: dict[str, list[Asset]], networks: dict[str, float]
) -> tuple[Table, Table]:
    """Returns the mean figures of every variant, and the figures of every run. networks: seconds of every variant's
    networks."""
    titles = [title for title, _ in FORMS.values()]
    total = [
        [name, *mean_row(list(own.values())), f"{fmean(one.seconds for one in own.values()) + networks[name]:.1f}"]
        for name, own in runs.items()
    ]
    single = [[source, "the asset itself", *asset_row(known[0])] for source, known in assets.items()]
    single += [[source, name, *mean_row([one])] for name, own in runs.items() for source, one in own.items()]
    mean = Table(
        title="Variants",
        note=f"Mean over {', '.join(assets)}. The last column adds the processor time of the teachers' networks.",
        columns=["variant", *titles, "seconds with a network ↓"],
        rows=total,
    )
    return mean, Table(title="Runs", note="", columns=["asset", "variant", *titles], rows=single)


def curves(runs: dict[str, dict[str, Figures]], networks: dict[str, float]) -> Curve:
    """Returns PSNR against seconds with a network: a point per variant, lines through those of CURVES."""
    points = {
        name: (fmean(one.seconds for one in own.values()) + networks[name], fmean(one.psnr for one in own.values()))
        for name, own in runs.items()
    }
    lines = {
        title: present
        for title, names in CURVES.items()
        if len(present := [name for name in names if name in runs]) > 1
    }
    return Curve(
        title="Quality against time", x_title="processor seconds", y_title="PSNR, dB", points=points, lines=lines
    )


def sheet_of(source: str, known: Sequence[Asset], splats: dict[str, Gaussians]) -> Sheet:
    """Returns a sheet with a row for the asset and one for every variant."""
    rows = [known[0].gaussians, *splats.values()]
    images = [as_bytes(images_of(seen(one, size=SHOWN)).permute(0, 2, 3, 1)) for one in rows]
    labels = ["the asset", *splats]
    return Sheet(title=source, frames=[frame for row in images for frame in row[:6]], columns=6, labels=labels)


def notes(options: PipelineOptions) -> list[str]:
    """Returns sentences on what the figures are."""
    one = "one asset" if options.known == 1 else f"{options.known} assets"
    return [
        f"The teacher is ideal: it knows {one} per run and denoises exactly (a softmax over their views). Space, "
        f"schedule and time of a call are those of each stage's teacher; other settings are the defaults, seed "
        f"{options.seed}. With one asset the target of every step is that asset, whatever the noise, the guidance and "
        "the method.",
        f"PSNR: of {VIEWS} views of {SIZE} pixels, to the nearest known asset. Speckle: in multiples of the asset's. "
        "Holes and haze: as in docs/metrics.md; those of the asset are not 0. Floaters: share of the splat's pixels "
        "that show something away from the asset's outline, from all sides, above and below.",
        "Seconds: processor time of all threads, without the ideal teacher's calls, so that other programs on the "
        "machine change little.",
    ]


def check_options(options: PipelineOptions) -> None:
    """Raises UserError."""
    for name in options.variants:
        check(name in VARIANTS, "variants", f"some of {', '.join(map(repr, VARIANTS))}", name)
    check(len(options.assets) >= 1, "assets", "at least one caption or .ply file", options.assets)
    check(0 <= options.seed < 2**63, "seed", "a value in [0, 2^63)", options.seed)


def pipeline(options: PipelineOptions) -> Report:
    """Makes the missing runs, measures them and writes the report. Raises UserError."""
    check_options(options)
    chosen = {name: VARIANTS[name] for name in options.variants or VARIANTS}
    check_report(options.out, "out")
    assets = {source: find_assets(source, options.known, spacing=SPACING) for source in options.assets}
    configs = {name: config_of(variant, "a yellow duck", options.seed) for name, variant in chosen.items()}
    real = load_networks(configs.values())
    runs: dict[str, dict[str, Figures]] = {}
    splats: dict[str, dict[str, Gaussians]] = {source: {} for source in assets}
    for name, variant in chosen.items():
        for source in assets:
            splats[source][name], figures = measured(name, variant, source, options, real)
            runs.setdefault(name, {})[source] = figures
            print(f"{name}, {source}: {figures.psnr:.2f} dB, {figures.seconds:.0f} s", flush=True)
    networks = {name: network_seconds(config, real) for name, config in configs.items()}
    tables = [*variant_tables(runs, assets, networks)]
    report = Report(
        title="The pipeline with an ideal teacher",
        notes=notes(options),
        warnings=[],
        tables=tables,
        plots=[curves(runs, networks)],
        sheets=[sheet_of(source, assets[source], own) for source, own in splats.items()],
    )
    write_report(report, options.out)
    return report
