"""The presets at full size, without weights: `gscfd bench full-size`, with ideal teachers.

Every stage's teacher is replaced by an ideal one with the size, the times and the views of the published model, and a
fixed linear encoder in place of its VAE. What then keeps a splat from its asset is the preset's. A run takes hours on a
CPU; it saves its state, and the same command goes on. `--timing` measures single steps and estimates the hours.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from gscfd.config import Config, StageConfig, StageName, check, load_preset, merged
from gscfd.devices import choose_dtype, run_device
from gscfd.distil.pipeline import distil
from gscfd.distil.stage import StepReport
from gscfd.distil.start import read_start
from gscfd.distil.state import Checkpoint
from gscfd.files import write_text
from gscfd.gaussians import Gaussians
from gscfd.lab.assets import Asset, find_assets
from gscfd.lab.degraded import degraded
from gscfd.lab.ideal import Cosines, ideal_teacher
from gscfd.lab.metrics import psnr
from gscfd.lab.options import FullSizeOptions
from gscfd.lab.report import Curve, Report, Sheet, Table, check_report, write_report
from gscfd.lab.textured import TEXTURED, VARIANTS, textured_asset
from gscfd.lab.trials import calls_of, compared, images_of, kept_run, seen, settings_of, stem_of
from gscfd.pictures import as_bytes
from gscfd.runs.checkpoint import Checkpoints
from gscfd.runs.folder import peak_memory, reset_peak_memory
from gscfd.teachers.adapters import SHIFT
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.find import MVDREAM_MIRROR, PLUS, SD21_MIRROR
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.kinds import reading
from gscfd.teachers.ldm import SCHEDULER
from gscfd.teachers.load import Vae, placed_vae, read_vae
from gscfd.teachers.schedules import Flow, Schedule, diffusion, shifted
from gscfd.teachers.spaces import Latents, Space

SIZE = 512
"""Pixels of the views that are measured, both ways."""
TRACED = 256
"""Pixels of the views that are measured during a run."""
POINTS = 10
"""How often that is done in a stage."""
SHOWN = 256
"""Pixels of the views in the page."""
SAVE_SECONDS = 120.0
"""Time between two saved states of a run."""
TIMED = 2
"""Steps of a timed stage; the last one counts."""


@dataclass(frozen=True)
class Model:
    """What an ideal teacher takes over from a published model."""

    size: int
    """Pixels of its images, both ways."""
    cells: int
    """Of its latents, both ways."""
    channels: int = 4
    multiview: bool = False
    schedule: Schedule = field(default_factory=lambda: diffusion(SCHEDULER))


SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
MODELS: dict[str, Model] = {
    MVDREAM_MIRROR: Model(256, 32, multiview=True),
    SD21_MIRROR: Model(512, 64),
    SDXL_BASE: Model(1024, 128),
    "black-forest-labs/FLUX.1-dev": Model(512, 64, 16, schedule=Flow(1000)),
    f"{SDXL_BASE}{PLUS}huanngzh/mv-adapter/mvadapter_t2mv_sdxl.safetensors": Model(
        768, 96, multiview=True, schedule=shifted(diffusion(SCHEDULER), SHIFT)
    ),
    "toybox/multiview": Model(64, 16, 16, multiview=True),
    "toybox/singleview": Model(64, 16, 16),
}
"""Models of the presets, by the names of their teachers."""


# ----------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True, kw_only=True)
class FullFigures:
    """What one run came to."""

    start_psnr: float | None
    """dB of the degraded asset that the run started from, None if of the ball."""
    psnr: float
    """dB of 8 views of 512 pixels."""
    ssim: float
    speckle: float
    """In multiples of the asset's."""
    holes: float
    floaters: float
    haze: float
    gaussians: int
    steps: int
    calls: int
    seconds: dict[str, float]
    """Of each part of a step, summed over the run."""
    memory: float
    """GB at most: of the process on a CPU, with the ideal teacher; of all tensors on a GPU."""
    trace: list[tuple[int, float]]
    """Steps done, and dB of 8 views of 256 pixels."""


def config_of(preset: str, asset: str, options: FullSizeOptions) -> Config:
    """Returns the preset with what an ideal teacher needs: it reads no words and knows no pictures of normals."""
    config = merged(load_preset(preset), {"prompt": asset, "seed": options.seed, "device": options.device})
    changes = {"perp_neg": False, "normal_prob": 0.0}
    return merged(config, {"coarse": changes, "refine": changes, "polish": {"perp_neg": False}})


def space_of(model: Model, vae: Vae | None) -> Space:
    """Returns the space of a model: of the VAE, or else `Cosines`. Raises UserError if the VAE has other sizes."""
    patch = model.size // model.cells
    if vae is None:
        return Cosines(model.size, patch=patch, channels=model.channels)
    space = Latents(vae, model.cells)
    own = space.latent_shape[0], space.image_size // model.cells
    wanted = f"{model.channels} channels and patches of {patch} pixels, as the preset's model has"
    check(own == (model.channels, patch), "vae", wanted, f"{own[0]} and {own[1]}")
    return space


def given_vae(folder: Path, config: Config) -> Vae:
    """Returns the VAE in the folder, in the precision of the config."""
    device = run_device(config)
    with reading(folder):
        return placed_vae(read_vae(folder), device, choose_dtype(config.dtype, device))


def teachers_of(config: Config, assets: Sequence[Asset], vae: Path | None = None) -> dict[StageName, GuidedTeacher]:
    """Returns an ideal teacher of the assets for every stage, with the size of the model that it stands for. vae:
    folder of its VAE."""
    device = run_device(config)
    known = [
        Gaussians(**{name: value.to(device) for name, value in asset.gaussians.tensors().items()}) for asset in assets
    ]
    network = None if vae is None else given_vae(vae, config)
    teachers = {}
    for name, stage in config.stages().items():
        model = MODELS[stage.teacher]
        space = space_of(model, network)
        teachers[name] = ideal_teacher(known, space=space, schedule=model.schedule, multiview=model.multiview)
        teachers[name].set_prompt(stage_prompt(config.prompt, stage))
    return teachers


class Progress:
    """State of a run on disk, and what was measured so far."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        assets: Sequence[Asset],
        settings: dict[str, Any],
        teachers: dict[StageName, GuidedTeacher],
    ):
        """folder: of the run's states. config: of the run. assets: that its teachers know. settings: all that the
        result depends on."""
        self.config, self.settings, self.teachers = config, json.loads(json.dumps(settings)), teachers
        self.checkpoints, self.file = Checkpoints(folder, 1), folder / "progress.json"
        self.seconds: dict[str, float] = {}
        self.trace: list[tuple[int, float]] = []
        self.earlier = 0
        """Questions to the teachers in earlier calls."""
        self.saved = time.monotonic()
        self.truths = [images_of(seen(asset.gaussians, size=TRACED)) for asset in assets]

    def newest(self) -> Checkpoint | None:
        """Returns the state of an earlier call with the same settings, and takes over its measurements."""
        found = self.checkpoints.newest()
        noted = json.loads(self.file.read_text()) if self.file.is_file() else {}
        if found is None or noted.get("settings") != self.settings:
            return None
        self.seconds, self.earlier = noted["seconds"], noted["calls"]
        self.trace = [(step, value) for step, value in noted["trace"]]
        return found

    def after_step(self, report: StepReport) -> None:
        for part, spent in report.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + float(spent)
        if (report.step + 1) % max(report.steps // POINTS, 1) == 0:
            images = images_of(seen(report.gaussians, size=TRACED))
            self.trace.append((self.done(report), max(psnr(images, truth) for truth in self.truths)))
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save(report)

    def done(self, report: StepReport) -> int:
        """Returns the number of steps of all stages that are done."""
        stages = self.config.stages()
        before = list(stages)[: list(stages).index(report.stage)]
        return sum(stages[name].steps for name in before) + report.step + 1

    @property
    def calls(self) -> int:
        """Questions to the teachers so far."""
        return self.earlier + calls_of(self.teachers)[0]

    def save(self, report: StepReport) -> None:
        device = report.gaussians.device.type
        self.checkpoints.folder.parent.mkdir(parents=True, exist_ok=True)
        self.checkpoints.save(Checkpoint(report.stage, report.state.state_dict(), 0, device, self.settings["config"]))
        noted = {"settings": self.settings, "seconds": self.seconds, "trace": self.trace, "calls": self.calls}
        write_text(json.dumps(noted), self.file)
        self.saved = time.monotonic()


def run(
    config: Config, assets: Sequence[Asset], folder: Path, settings: dict[str, Any], *, vae: Path | None, degrade: bool
) -> tuple[Gaussians, FullFigures]:
    """Makes a splat with ideal teachers and measures it against the nearest of the assets that they know.

    folder: for the states of the run. settings: all that the result depends on. vae: folder of the teachers' VAE.
    degrade: start from the first asset, degraded, instead of the ball.
    """
    reset_peak_memory(run_device(config))
    teachers, start = teachers_of(config, assets, vae), degraded(assets[0].gaussians) if degrade else None
    before = None if start is None else compared(start, assets, size=SIZE)["psnr"]
    progress = Progress(folder, config, assets, settings, teachers)
    gaussians = distil(config, teachers, progress.after_step, progress.newest(), start=start)
    made = images_of(seen(gaussians, size=SIZE))
    figures = FullFigures(
        **compared(gaussians, assets, size=SIZE),
        start_psnr=before,
        ssim=max(similarity(made, images_of(seen(asset.gaussians, size=SIZE))) for asset in assets),
        gaussians=len(gaussians),
        steps=sum(stage.steps for stage in config.stages().values()),
        calls=progress.calls,
        seconds=progress.seconds,
        memory=peak_memory(run_device(config)) / 1e9,
        trace=progress.trace,
    )
    progress.checkpoints.clear()
    return gaussians, figures


def similarity(made: torch.Tensor, true: torch.Tensor) -> float:
    """Returns the SSIM of images [V, 3, H, W] in [0, 1] (torchmetrics)."""
    value = structural_similarity_index_measure(made, true, data_range=1.0)
    return float(value if isinstance(value, torch.Tensor) else value[0])


def measured(preset: str, assets: Sequence[Asset], options: FullSizeOptions) -> tuple[Gaussians, FullFigures]:
    """Returns the splat of a run and its figures, from an earlier call if it had the same settings. assets: known to
    the teacher."""
    name, vae, degrade = assets[0].name, options.vae, options.degrade
    config = config_of(preset, name, options)
    given = {} if vae is None else {"vae": str(vae)}
    start = ["degraded"] if degrade else []
    stem = stem_of(options.out, preset, name, *given.values(), *start, known=len(assets), seed=options.seed)
    settings = settings_of(config, assets, degrade=degrade, **given)
    return kept_run(stem, settings, FullFigures, lambda: run(config, assets, stem, settings, vae=vae, degrade=degrade))


# --------------------------------------------------------------------------------------------------------------- timing


def step_seconds(
    config: Config, name: StageName, asset: Asset, vae: Path | None, *, size: int | None, count: int
) -> float:
    """Returns the processor time of one step of a stage. size: pixels of the render, None for the teacher's own.
    count: of Gaussians."""
    others = {other: {"steps": 0} for other in config.stages() if other != name}
    own: dict[str, Any] = {"steps": TIMED}
    if size is not None:
        own |= {"render_sizes": [[0.0, size]], "densify": {"start": 1.0, "stop": 1.0}}
    short = merged(config, {**others, name: own, "init": {"count": count, "ply": None}})
    spent = [time.process_time()]
    distil(short, teachers_of(short, [asset], vae), lambda report: spent.append(time.process_time()))
    return spent[-1] - spent[-2]


def stage_hours(config: Config, name: StageName, asset: Asset, vae: Path | None) -> tuple[list[str], float, float]:
    """Returns the measured steps of a stage as text, and its hours with few and with many Gaussians."""
    stage = config.stages()[name]
    counts = (config.init.count, max(stage.max_count, config.init.count))
    sizes = stage.render_sizes if isinstance(stage, StageConfig) else ()
    own = MODELS[stage.teacher].size if isinstance(stage, StageConfig) else None
    pieces: Sequence[tuple[float, int | None]] = sizes or ((0.0, own),)
    ends = [share for share, _ in pieces[1:]] + [1.0]
    texts, hours = [], [0.0, 0.0]
    for (begin, size), end in zip(pieces, ends, strict=True):
        steps = (end - begin) * stage.steps
        spent = [step_seconds(config, name, asset, vae, size=size, count=count) for count in counts]
        hours = [total + steps * one / 3600 for total, one in zip(hours, spent, strict=True)]
        texts.append(f"{size or 'own'} px: {spent[0]:.2f} to {spent[1]:.2f} s")
    return texts, hours[0], hours[1]


def timing_table(asset: Asset, options: FullSizeOptions) -> Table:
    rows = []
    for preset in options.presets:
        config = config_of(preset, asset.name, options)
        for name, stage in config.stages().items():
            texts, low, high = stage_hours(config, name, asset, options.vae)
            rows.append([preset, name, str(stage.steps), "; ".join(texts), f"{low:.1f} to {high:.1f}"])
            print(", ".join(rows[-1]), flush=True)
    return Table(
        title="Time of a run",
        note=f"Processor time, {torch.get_num_threads()} threads, with the ideal teacher of {asset.name}: of a step "
        "with the Gaussians at the start and with as many as the stage may have; hours of the stage from these.",
        columns=["preset", "stage", "steps", "seconds per step", "hours"],
        rows=rows,
    )


# --------------------------------------------------------------------------------------------------------------- report


def found_assets(options: FullSizeOptions) -> list[list[Asset]]:
    """Returns what the teacher knows of each of the named assets, itself first. Files of one name in several folders
    are named by their paths. Raises UserError for a name that is none, and for one with less variants than asked
    for."""
    assets: list[list[Asset]] = []
    for source in options.assets:
        most = VARIANTS if source in TEXTURED else 1
        check(1 <= options.known <= most, "known", f"1 to {most}, the variants of {source}", options.known)
        if source in TEXTURED:
            assets.append([textured_asset(source, spacing=options.spacing, variant=k) for k in range(options.known)])
        elif source.endswith((".glb", ".obj")):
            init = replace(Config().init, ply=Path(source), count=options.count)
            start = read_start(init)
            if start is None:
                raise RuntimeError("read_start: expected a splat, got none")
            assets.append([Asset(Path(source).name, start)])
        else:
            assets.append(find_assets(source, 1, spacing=options.spacing))
    names = Counter(known[0].name for known in assets)
    return [
        known if names[known[0].name] == 1 else [replace(asset, name=source) for asset in known]
        for source, known in zip(options.assets, assets, strict=True)
    ]


def figure_tables(runs: dict[tuple[str, str], FullFigures]) -> list[Table]:
    """Returns the figures of every run, and the seconds of the parts of their steps."""
    rows, parts = [], sorted({part for one in runs.values() for part in one.seconds})
    for (preset, asset), one in runs.items():
        start = "" if one.start_psnr is None else f"{one.start_psnr:.2f}"
        values = [f"{one.psnr:.2f}", f"{one.ssim:.3f}", f"{one.speckle:.2f}", f"{one.holes:.2%}", f"{one.floaters:.2%}"]
        counts = [str(one.gaussians), str(one.steps), str(one.calls)]
        rows.append([preset, asset, start, *values, f"{one.haze:.1%}", *counts, f"{one.memory:.2f}"])
    columns = [
        "preset",
        "asset",
        "start, dB",
        "PSNR, dB ↑",
        "SSIM ↑",
        "speckle, × ↓",
        "holes ↓",
        "floaters ↓",
        "haze ↓",
    ]
    spent = [[*names, *(f"{one.seconds.get(part, 0.0):.0f}" for part in parts)] for names, one in runs.items()]
    return [
        Table(title="Runs", note="", columns=[*columns, "Gaussians", "steps", "calls", "memory, GB"], rows=rows),
        Table(title="Seconds of each part", note="", columns=["preset", "asset", *parts], rows=spent),
    ]


def curve(runs: dict[tuple[str, str], FullFigures]) -> Curve:
    """Returns PSNR against steps: a line for every run."""
    points = {
        f"{preset}, {asset}, {step}": (float(step), value)
        for (preset, asset), one in runs.items()
        for step, value in one.trace
    }
    lines = {
        f"{preset}, {asset}": [f"{preset}, {asset}, {step}" for step, _ in one.trace]
        for (preset, asset), one in runs.items()
    }
    return Curve(
        title="Quality against steps", x_title="steps", y_title="PSNR, dB", points=points, lines=lines, named=False
    )


def sheet_of(assets: Sequence[Asset], splats: dict[str, Gaussians]) -> Sheet:
    """Returns a sheet with a row for every asset that the teacher knows, and one for every preset."""
    rows = [*(asset.gaussians for asset in assets), *splats.values()]
    images = [as_bytes(images_of(seen(one, size=SHOWN)).permute(0, 2, 3, 1)) for one in rows]
    labels = ["the asset", *(f"variant {k}" for k in range(1, len(assets))), *splats]
    return Sheet(title=assets[0].name, frames=[frame for row in images for frame in row[:4]], columns=4, labels=labels)


LINEAR = "A fixed linear encoder stands for the VAE: the mean colors of patches of 8 x 8 pixels and one gray gradient."
NOTES = [
    "Teachers are ideal: each knows one asset, or --known variants of it, and denoises exactly, at the size, the "
    "times, the guidance and the views of the published model. All branches of guidance are equal, there are no view "
    "words and no pictures of normals.",
    f"PSNR, SSIM, speckle: of 8 views of {SIZE} pixels, against the nearest variant. start: of the degraded asset, if "
    "runs start from it.",
]


def space_note(options: FullSizeOptions) -> str:
    return LINEAR if options.vae is None else f"The VAE is {options.vae}."


def check_options(options: FullSizeOptions) -> None:
    """Raises UserError."""
    for name in options.presets:
        for stage in load_preset(name).stages().values():
            check(stage.teacher in MODELS, "presets", f"teachers among {', '.join(MODELS)}", stage.teacher)
    check(
        len(options.assets) >= 1,
        "assets",
        f"at least one of {', '.join(TEXTURED)}, a caption or a file",
        options.assets,
    )
    check(0 <= options.seed < 2**63, "seed", "a value in [0, 2^63)", options.seed)
    check(options.spacing > 0, "spacing", "a positive distance", options.spacing)
    there = options.vae is None or (options.vae / "config.json").is_file()
    check(there, "vae", "a folder of a VAE in diffusers' layout", options.vae)


def full_size(options: FullSizeOptions) -> Report:
    """Makes the missing runs, measures them and writes the report; with options.timing, only times single steps. Raises
    UserError."""
    check_options(options)
    check_report(options.out, "out")
    assets = found_assets(options)
    if options.timing:
        report = Report(
            title="Time of full-size runs",
            notes=[NOTES[0], space_note(options)],
            warnings=[],
            tables=[timing_table(assets[0][0], options)],
            plots=[],
            sheets=[],
        )
    else:
        report = full_report(assets, options)
    write_report(report, options.out)
    return report


def full_report(assets: Sequence[Sequence[Asset]], options: FullSizeOptions) -> Report:
    runs: dict[tuple[str, str], FullFigures] = {}
    splats: dict[str, dict[str, Gaussians]] = {known[0].name: {} for known in assets}
    for preset in options.presets:
        for known in assets:
            name = known[0].name
            splats[name][preset], figures = measured(preset, known, options)
            runs[preset, name] = figures
            print(f"{preset}, {name}: {figures.psnr:.2f} dB", flush=True)
    return Report(
        title="The presets at full size, with ideal teachers",
        notes=[*NOTES, space_note(options)],
        warnings=[],
        tables=figure_tables(runs),
        plots=[curve(runs)],
        sheets=[sheet_of(known, splats[known[0].name]) for known in assets],
    )
