"""Score finished runs by the metrics of the papers: `python -m gscfd.evaluate RUNS... --report DIR`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from gscfd.config import Config, check
from gscfd.devices import choose_device, choose_dtype
from gscfd.errors import UserError, exit_code
from gscfd.export.turntable import write_contact_sheet
from gscfd.judges import SCORER, Aesthetic, Inception, Judges, Scorer
from gscfd.preview import MOST_CFG
from gscfd.references import SAMPLER_STEPS, Reference, teacher_reference, true_reference
from gscfd.report import (
    Plot,
    Report,
    Sheet,
    Table,
    check_report,
    figure,
    padded,
    write_json,
    write_page,
    write_rows,
    write_text,
)
from gscfd.scores import (
    CLIP_NEEDED,
    METRICS,
    NAMES,
    SHEET_VIEWS,
    Examined,
    Name,
    estimate,
    examine,
    labels_of,
    read_run,
    wins,
)
from gscfd.teachers import load_teacher
from gscfd.teachers.find import TOYBOX
from gscfd.toybox.objects import unknown_words
from gscfd.train import check_words

RANKERS = ("aesthetic", "pickscore")
"""The metrics of which win rates are told (CFD Tab. 3)."""
SHEET_RUNS = 12
"""Runs of each label that the page shows."""


@dataclass(kw_only=True)
class Settings:
    """Score finished runs by the metrics of the papers."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of finished runs; every prompt is retrieved among the prompts of all of them. Runs that differ in other
    settings than prompt and seed are compared."""
    report: Path | None = None
    """Folder for report.html, runs.csv, report.json, scores.md and sheet.png. Needs the extra `eval`."""
    metrics: tuple[Name, ...] = NAMES
    """Which figures to show."""
    teacher: str | None = None
    """Whose samples 3D-FID and the Janus score compare with: a folder, OWNER/REPO of the hub, or toybox/multiview.
    Unset: true objects of the toybox, for its prompts."""
    samples: int = 120
    """Pictures of each prompt to compare with (the papers: 5000)."""
    clip: tuple[Path, ...] = ()
    """Folders of CLIP models in transformers' layout. Unset: the toybox scorer, for the toybox's prompts."""
    inception: Path | None = None
    """Weights of FID's Inception network, pt_inception-2015-12-05-6726825d.pth. Unset: the first CLIP's features."""
    aesthetic: Path | None = None
    """Weights of LAION's aesthetic predictor, sac+logos+ava1-l14-linearMSE.pth; --clip must hold its ViT-L/14."""
    pickscore: Path | None = None
    """Folder of PickScore_v1 with its tokenizer."""


def check_settings(settings: Settings) -> None:
    """Raise UserError for what cannot be, before anything is rendered."""
    if not settings.runs:
        raise UserError("runs: expected at least one folder of a finished run, got none")
    check(settings.samples >= 2, "samples", "at least 2", settings.samples)
    check(len(settings.metrics) > 0, "metrics", f"some of {', '.join(NAMES)}", settings.metrics)
    for name in ("inception", "aesthetic"):
        path: Path | None = getattr(settings, name)
        check(path is None or path.is_file(), name, "a file", str(path))
    if settings.report is not None:
        check_report(settings.report, "report")


def read_runs(folders: tuple[Path, ...]) -> tuple[dict[Path, Config], list[str]]:
    """The settings of the finished runs, and what is wrong with the others. Raises UserError where none is finished."""
    configs, left_out = {}, []
    for folder in folders:
        try:
            configs[folder] = read_run(folder)[0]
        except UserError as error:
            left_out.append(str(error))
            print(f"warning: {error}; it is left out", file=sys.stderr)
    if not configs:
        raise UserError(f"runs: expected at least one finished run, got {', '.join(map(str, folders))}; see above")
    return configs, left_out


def load_judges(settings: Settings, prompts: list[str], device: torch.device) -> Judges:
    """The networks that there are weights for. The toybox scorer judges the toybox's prompts where no CLIP is given."""
    folders = settings.clip
    if not folders and not any(unknown_words(prompt) for prompt in prompts):
        folders = (SCORER,)
    if settings.inception and not folders:
        raise UserError(f"inception: expected {CLIP_NEEDED}, beside it for these prompts, got no --clip; add it")
    if settings.teacher is not None and settings.teacher.startswith(TOYBOX):
        for prompt in prompts:
            check_words("teacher", prompt)
    scorers = [Scorer(folder, device) for folder in folders]
    return Judges(
        scorers=scorers,
        inception=Inception(settings.inception, device) if settings.inception else None,
        aesthetic=Aesthetic(settings.aesthetic, scorers) if settings.aesthetic else None,
        pickscore=Scorer(settings.pickscore, device, "pickscore") if settings.pickscore else None,
    )


def load_references(
    settings: Settings, configs: list[Config], judges: Judges, size: int, device: torch.device
) -> dict[str, Reference]:
    """What FID and the Janus score compare with, by prompt; prompts without it are missing."""
    if not judges.scorers or not {"fid", "janus"} & set(settings.metrics):
        return {}
    first = {config.prompt: config for config in reversed(configs)}
    teacher = None
    if settings.teacher is not None:
        teacher = load_teacher(settings.teacher, device=device, dtype=choose_dtype("auto", device))
    found = {}
    for prompt, config in tqdm(first.items(), desc="reference", unit="prompt", disable=None):
        if teacher is None:
            reference = true_reference(prompt, settings.samples, size, judges)
        else:
            reference = teacher_reference(prompt, settings.samples, teacher, config.coarse, device, judges)
        if reference is not None:
            found[prompt] = reference
    return found


def grouped(runs: list[Examined]) -> dict[str, list[Examined]]:
    """The runs of each label, in the order of their first."""
    groups: dict[str, list[Examined]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def judged_by(settings: Settings, judges: Judges, references: dict[str, Reference], prompts: list[str]) -> list[str]:
    """The networks and pictures behind the figures, in sentences."""
    if not judges.scorers:
        return ["No CLIP model was given, and the prompts are not the toybox's: nothing looked at the pictures."]
    sampled = f"samples of {settings.teacher} ({SAMPLER_STEPS} steps, guidance up to {MOST_CFG})"
    source = sampled if settings.teacher else "true objects of the toybox"
    return [
        f"3D-CLIP: {', '.join(scorer.name for scorer in judges.scorers)}. R-precision, similarity, diversity and Janus "
        f"score: {judges.scorers[0].name}. 3D-FID: features of {judges.features_of}.",
        f"Reference of 3D-FID and Janus score: {source}, at least {settings.samples} pictures of each of "
        f"{len(references)} of {len(prompts)} prompts. Figures of different feature networks or references do not "
        "compare.",
    ]


def run_rows(runs: list[Examined], names: list[str]) -> list[dict[str, object]]:
    """One row for each run, for the csv file."""
    return [
        {"run": r.run, "label": r.label, "prompt": r.prompt, "seed": r.seed}
        | {name: r.values[name] for name in names if name in r.values}
        for r in runs
    ]


def summary_table(groups: dict[str, list[Examined]], references: dict[str, Reference], names: list[str]) -> Table:
    """Every metric of every label, with its interval."""
    cells = {label: {name: estimate(name, runs, references) for name in names} for label, runs in groups.items()}
    shown = [name for name in names if any(cells[label][name] is not None for label in groups)]
    better = {"higher": " ↑", "lower": " ↓", "": ""}
    return Table(
        title="Figures",
        note="Mean and 95 % bootstrap interval over runs; ↑ higher is better, ↓ lower.",
        columns=["", "runs", *(METRICS[name].title + better[METRICS[name].better] for name in shown)],
        rows=[
            [label, str(len(runs)), *(figure(cells[label][name], METRICS[name].form) for name in shown)]
            for label, runs in groups.items()
        ],
        estimates={name: {label: e for label in groups if (e := cells[label][name])} for name in shown},
    )


def run_table(runs: list[Examined], names: list[str]) -> Table:
    """Every run's own figures, and their mean."""
    shown = [name for name in names if any(name in run.values for run in runs)]
    rows = [
        [r.prompt, str(r.seed), r.label, *(format_value(r.values.get(name), METRICS[name].form) for name in shown)]
        for r in runs
    ]
    known = [[v for r in runs if (v := r.values.get(name)) is not None] for name in shown]
    means = [format_value(sum(v) / len(v), METRICS[n].form) for v, n in zip(known, shown, strict=True)]
    return Table(
        title="Runs",
        note="",
        columns=["prompt", "seed", "label", *(METRICS[name].title for name in shown)],
        rows=[*rows, [f"mean of {len(runs)}", "", "", *means]],
    )


def format_value(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def win_tables(groups: dict[str, list[Examined]]) -> list[Table]:
    """For each ranker that looked: how often one label's run beats the other's of equal prompt and seed."""
    tables = []
    for name in RANKERS:
        shares = {(a, b): wins(name, groups[a], groups[b]) for a in groups for b in groups}
        rows = [[a, *("" if a == b else figure(shares[a, b], ".2f") for b in groups)] for a in groups]
        if any(name in run.values for runs in groups.values() for run in runs) and len(groups) > 1:
            note = "Share of pairs of equal prompt and seed in which the row's run scores higher than the column's."
            tables.append(Table(title=f"Win rates, {METRICS[name].title}", note=note, columns=["", *groups], rows=rows))
    return tables


def sheets(groups: dict[str, list[Examined]]) -> list[Sheet]:
    return [
        Sheet(
            title=f"{label}: {', '.join(dict.fromkeys(run.prompt for run in runs[:SHEET_RUNS]))}",
            frames=[frame for run in runs[:SHEET_RUNS] for frame in run.frames],
            columns=2 * SHEET_VIEWS,
        )
        for label, runs in groups.items()
    ]


def plots_of(table: Table) -> list[Plot]:
    """One for each metric that compares labels."""
    compared = {name: found for name, found in table.estimates.items() if len(found) > 1}
    return [Plot(title=METRICS[name].title, estimates=found) for name, found in compared.items()]


def meanings(names: list[str]) -> list[str]:
    return [f"{METRICS[name].title}: {METRICS[name].meaning}." for name in names]


def make_report(
    settings: Settings, runs: list[Examined], references: dict[str, Reference], judges: Judges, left_out: list[str]
) -> Report:
    """All that the page shows. Metrics that no run has what it takes for are named with what that is."""
    groups, names = grouped(runs), list[str](settings.metrics)
    summary = summary_table(groups, references, names)
    skipped = [name for name in names if name not in summary.estimates]
    notes = judged_by(settings, judges, references, list(dict.fromkeys(run.prompt for run in runs)))
    return Report(
        title="Scores",
        notes=notes + meanings([name for name in names if name not in skipped]),
        warnings=[f"{METRICS[name].title} ({name}) is skipped; it needs {METRICS[name].needs}." for name in skipped]
        + [f"Left out: {reason}." for reason in left_out],
        tables=[summary, *win_tables(groups), run_table(runs, names)],
        plots=plots_of(summary),
        sheets=sheets(groups),
    )


def evaluate(settings: Settings) -> None:
    """Print the figures, and write them where settings.report says. Raises UserError for what the user can mend."""
    check_settings(settings)
    configs, left_out = read_runs(settings.runs)
    prompts, labels = list(dict.fromkeys(c.prompt for c in configs.values())), labels_of(list(configs.values()))
    device = choose_device("auto")
    judges = load_judges(settings, prompts, device)
    size = 128 if judges.toybox and not judges.inception else 512
    references = load_references(settings, list(configs.values()), judges, size, device)
    runs = []
    for folder, label in zip(tqdm(configs, desc="runs", unit="run", disable=None), labels, strict=True):
        found = examine(folder, judges, prompts, size=size, references=references)
        runs.append(replace(found, label=label))
    report = make_report(settings, runs, references, judges, left_out)
    for warning in report.warnings:
        print(warning)
    for table in report.tables:
        print(f"\n{table.title}\n\n{table.markdown()}")
    if settings.report is not None:
        write_page(report, settings.report / "report.html")
        write_json(report, settings.report / "report.json")
        write_rows(run_rows(runs, list[str](settings.metrics)), settings.report / "runs.csv")
        write_text(run_table(runs, list[str](settings.metrics)).markdown(), settings.report / "scores.md")
        frames = [frame for run in runs for frame in run.frames]
        write_contact_sheet(padded(frames, 2 * SHEET_VIEWS), settings.report / "sheet.png", columns=2 * SHEET_VIEWS)
        print(f"\n{settings.report}/report.html")


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: evaluate(tyro.cli(Settings, args=arguments, prog="python -m gscfd.evaluate")))


if __name__ == "__main__":
    sys.exit(main())
