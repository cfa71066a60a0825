"""Tests the papers' claims on the toybox."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch

from gscfd.config import CFD_GAMMA, Config, Drawing, TeacherStage, merged, rescaled_gamma
from gscfd.devices import choose_device, choose_dtype
from gscfd.distil.picture import GROUP, draw_picture
from gscfd.distil.sampling import decoded, for_sampling
from gscfd.files import write_rows, write_text
from gscfd.lab.catalogue import METRICS
from gscfd.lab.claims import (
    EXPERIMENTS,
    GAMMAS,
    PAPER_STEPS,
    SIZES,
    TEACHER,
    Experiment,
    Finding,
    Size,
    chosen_experiments,
    variants,
    variants_of,
    verdicts,
)
from gscfd.lab.compare import difference, difference_p
from gscfd.lab.examine import SHEET_VIEWS, Examined, examine
from gscfd.lab.judges import SCORER, Judges, Scorer
from gscfd.lab.options import BenchOptions
from gscfd.lab.references import SAMPLER_STEPS, Reference, teacher_reference
from gscfd.lab.report import Report, Sheet, Table, check_report, figure, write_json, write_page
from gscfd.lab.tables import meanings, plots_of, run_rows, summary_table, title_of
from gscfd.pictures import as_bytes, write_contact_sheet
from gscfd.runs.names import FINISHED_FILE, default_folder, slug
from gscfd.sweeps.make import Run, make_runs
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import load_teacher
from gscfd.toybox.truth import KNOWN_PROMPTS, WITHHELD_PROMPTS

ORDERINGS = (
    "Difference: first minus second, over pairs of equal prompt and seed, with its 95 % bootstrap interval. Effect: "
    "the difference in standard deviations of a pair, within its prompt from 5 seeds on. p: permutation test that "
    "exchanges the runs of a pair. "
    "Verdicts: at 5 %, after the corrections of Holm and of Benjamini and Hochberg for all claims of this table. Runs "
    "needed: for a power of 80 % at Holm's strictest level, if the difference is the one found."
)
# ------------------------------------------------------------------------------------------------- runs and pictures


def plan_runs(out: Path, size: Size, experiments: Sequence[Experiment]) -> dict[str, list[Run]]:
    """Returns the runs of every variant of the experiments: the coarse stage only, ordered by seed, then prompt."""
    used = variants_of(experiments)
    base = merged(Config(), {"coarse": {"steps": size.steps}, "refine": {"steps": 0}, "polish": {"steps": 0}})
    return {
        variant: [
            plan_run(out, variant, replace(merged(base, changes), prompt=prompt, seed=seed))
            for seed in range(size.first_seed, size.first_seed + size.seeds)
            for prompt in size.prompts
        ]
        for variant, changes in variants(size.steps).items()
        if variant in used
    }


def plan_run(out: Path, variant: str, config: Config) -> Run:
    folder = out / "runs" / f"{slug(variant)}-{default_folder(config.prompt, config.seed).name}"
    return Run(folder, replace(config, out=folder))


def make_picture(path: Path, size: Size, gamma: float, prompt: str, seed: int, teacher: GuidedTeacher) -> None:
    """Draws four views of the clean flow's picture, unless the file exists."""
    if path.exists():
        return
    gamma = rescaled_gamma(gamma, PAPER_STEPS, size.picture_steps)
    drawing = Drawing(steps=size.picture_steps, gamma=gamma, seed=seed)
    views = decoded(teacher, draw_picture(drawing, teacher)).permute(0, 2, 3, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_contact_sheet(as_bytes(views), path, columns=GROUP)


def make_pictures(
    out: Path, size: Size, experiments: Sequence[Experiment], teacher: GuidedTeacher, judges: Judges
) -> dict[str, list[Examined]]:
    """Draws and judges the pictures of every gamma of the experiments."""
    used = variants_of(experiments)
    found: dict[str, list[Examined]] = {}
    for prompt in size.picture_prompts:
        teacher.set_prompt(stage_prompt(prompt, for_sampling(coarse(size), teacher)))
        for name in (name for name in GAMMAS if name in used):
            for seed in range(size.first_seed, size.first_seed + size.picture_seeds):
                file = f"{default_folder(prompt, seed).name}-{size.picture_steps}-steps.png"
                path = out / "pictures" / slug(name) / file
                make_picture(path, size, GAMMAS[name], prompt, seed, teacher)
                found.setdefault(name, []).append(examine_picture(path, name, prompt, seed, judges))
    return found


def examine_picture(path: Path, label: str, prompt: str, seed: int, judges: Judges) -> Examined:
    """Returns the judged views of a picture from `make_picture`."""
    frames = np.stack(np.split(iio.imread(path), GROUP, axis=1))
    views = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    return Examined(
        run=str(path),
        prompt=prompt,
        seed=seed,
        label=label,
        values={},
        sides=judges.scorers[0].image_features(views),
        front=judges.classes(views[:1])[0],
        frames=frames,
    )


def coarse(size: Size) -> TeacherStage:
    return replace(Config().stage("coarse"), steps=size.steps)


# ------------------------------------------------------------------------------------------------------------ report


def findings_of(
    experiment: Experiment, groups: dict[str, list[Examined]], references: dict[str, Reference]
) -> list[Finding]:
    """Returns the measured differences behind the claims of one experiment. groups: runs by variant."""
    found = []
    for claim in experiment.claims:
        sets = groups[claim.better], groups[claim.worse]
        apart = difference(claim.metric, *sets, references)
        found.append(Finding(claim, apart, difference_p(claim.metric, *sets, references)))
    return found


def claims_table(found: list[tuple[str, Finding]], judges: Judges) -> Table:
    """Returns the table of orderings. found: title of the experiment and finding of every claim."""
    rows, estimates = [], {}
    for (source, finding), told in zip(found, verdicts([finding for _, finding in found]), strict=True):
        claim, apart = finding.claim, finding.difference
        metric, title = METRICS[claim.metric], title_of(claim.metric, judges)
        said = f"{claim.better} {'differs from' if claim.differs else 'better than'} {claim.worse}"
        effect = "n/a" if apart is None or math.isnan(apart.effect) else f"{apart.effect:.2f}"
        p = "n/a" if math.isnan(finding.p) else f"{finding.p:.2g}"
        cells = [source, title, said, claim.paper, figure(apart, metric.form), effect, p]
        rows.append([*cells, told.holm, told.benjamini_hochberg])
        if apart is not None:
            estimates[" | ".join(cells[:3])] = apart
    columns = ["source", "figure", "claim", "the paper", "difference", "effect", "p", "Holm", "Benjamini-Hochberg"]
    return Table(title="Orderings", note=ORDERINGS, columns=columns, rows=rows, estimates={"difference": estimates})


def experiment_sheet(experiment: Experiment, groups: dict[str, list[Examined]]) -> Sheet:
    """Returns a sheet with one row per variant: its first runs, up to two turns."""
    columns = 2 * SHEET_VIEWS
    rows = [[frame for run in groups[name] for frame in run.frames][:columns] for name in experiment.variants]
    shown = min(len(row) for row in rows)
    frames = [frame for row in rows for frame in row[:shown]]
    return Sheet(title=experiment.title, frames=frames, columns=shown, labels=experiment.variants)


def make_report(
    size: Size,
    command: str,
    experiments: Sequence[Experiment],
    groups: dict[str, list[Examined]],
    references: dict[str, Reference],
    judges: Judges,
    failed: list[str],
) -> Report:
    """Builds the report: orderings first, then the figures of every experiment."""
    found: list[tuple[str, Finding]] = []
    tables, plots, sheets = [], [], []
    for experiment in experiments:
        chosen = {variant: groups[variant] for variant in experiment.variants}
        found += [(experiment.title, finding) for finding in findings_of(experiment, groups, references)]
        if not all(chosen.values()):
            failed = [*failed, f"{experiment.title}: a variant has no finished run"]
            continue
        table = summary_table(chosen, references, list(experiment.metrics), judges)
        tables.append(replace(table, title=experiment.title, note=f"{experiment.note} {table.note}"))
        plots += [replace(plot, title=f"{experiment.title}: {plot.title}") for plot in plots_of(table, judges)]
        sheets.append(experiment_sheet(experiment, chosen))
    used = dict.fromkeys(metric for experiment in experiments for metric in experiment.metrics)
    return Report(
        title="The papers' claims on the toybox",
        notes=[*budget(size, command), *meanings(list(used), len(candidates(size)))],
        warnings=[f"Failed: {reason}" for reason in failed],
        tables=[claims_table(found, judges), *tables],
        plots=plots,
        sheets=sheets,
    )


def candidates(size: Size) -> list[str]:
    """Returns the prompts among which the prompt of a view is retrieved."""
    return list(dict.fromkeys([*size.prompts, *KNOWN_PROMPTS, *WITHHELD_PROMPTS]))


def budget(size: Size, command: str) -> list[str]:
    """Returns sentences on the runs and their settings."""
    last = size.first_seed + size.seeds - 1
    seeds = f"{size.seeds} seeds" if size.first_seed == 0 else f"seeds {size.first_seed} to {last}"
    return [
        f"{command}: {', '.join(size.prompts)}; {seeds}; {size.steps} "
        f"steps of the coarse stage with {TEACHER}, equal for all variants, other settings at their defaults. Equal "
        "seeds start with equal Gaussians and see equal cameras, except vsd, cds, dsd and random t, which draw more "
        "random numbers.",
        f"Judge: the toybox scorer. Reference of 3D-FID and Janus score: {size.samples} samples of the teacher per "
        f"prompt, DDIM, {SAMPLER_STEPS} steps.",
        f"cfd has gamma {CFD_GAMMA:g} per step of {PAPER_STEPS} steps, which is "
        f"{rescaled_gamma(CFD_GAMMA, PAPER_STEPS, size.steps):.2g} per step here.",
    ]


def papers(options: BenchOptions) -> Report:
    """Makes missing runs and pictures, judges everything and writes the report. Raises UserError."""
    out, experiments = options.out, chosen_experiments(EXPERIMENTS, options.variants)
    size = replace(SIZES[options.size], first_seed=options.first_seed)
    command = f"gscfd bench papers --size {options.size}"
    if options.seeds is not None:
        size, command = replace(size, seeds=options.seeds), f"{command} --seeds {options.seeds}"
    if options.first_seed:
        command += f" --first-seed {options.first_seed}"
    if options.variants:
        command += f" --variants {shlex.join(options.variants)}"
    check_report(out, "out")
    planned = plan_runs(out, size, experiments)
    # Ordered by seed, so that a bench that is stopped early has compared all variants.
    runs = [run for equals in zip(*planned.values(), strict=True) for run in equals]
    print(f"{len(runs)} runs of {size.steps} steps, then pictures, then the report in {out}")
    progress = make_runs(out, runs, options)
    failed = [f"{name}: {reason}" for name, reason in progress.failed.items()]
    device = choose_device("auto")
    teacher = load_teacher(TEACHER, device=device, dtype=choose_dtype("auto", device))
    judges = Judges(scorers=[Scorer(SCORER, device)])
    stage = coarse(size)
    references = {p: teacher_reference(p, size.samples, teacher, stage, device, judges) for p in size.prompts}
    groups = {
        variant: [
            replace(examine(run.folder, judges, candidates(size), references=references, truths=True), label=variant)
            for run in runs
            if (run.folder / FINISHED_FILE).exists()
        ]
        for variant, runs in planned.items()
    }
    groups |= make_pictures(out, size, experiments, teacher, judges)
    report = make_report(size, command, experiments, groups, references, judges, failed)
    write_page(report, out / "report.html")
    write_json(report, out / "report.json")
    warnings = "".join(f"{warning}\n\n" for warning in report.warnings)
    tables = "".join(f"{table.title}\n\n{table.markdown()}\n" for table in report.tables)
    write_text(warnings + tables, out / "report.md")
    seen = [replace(run, run=str(Path(run.run).relative_to(out))) for group in groups.values() for run in group]
    write_rows(run_rows(seen, list(METRICS)), out / "runs.csv")
    return report
