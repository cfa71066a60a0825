"""Scores finished runs by the metrics of the papers."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from gscfd.config import Config, check
from gscfd.devices import choose_device, choose_dtype
from gscfd.errors import UserError
from gscfd.files import write_rows, write_text
from gscfd.lab.catalogue import CLIP_NEEDED, METRICS, NAMES
from gscfd.lab.examine import SHEET_VIEWS, Examined, examine, labels_of
from gscfd.lab.judges import SCORER, Aesthetic, Inception, Judges, Scorer
from gscfd.lab.options import EvaluateOptions
from gscfd.lab.references import SAMPLER_STEPS, Reference, teacher_reference, true_reference
from gscfd.lab.report import Report, check_report, padded, write_json, write_page
from gscfd.lab.tables import grouped, meanings, plots_of, run_rows, run_table, sheets, summary_table, win_tables
from gscfd.pictures import write_contact_sheet
from gscfd.runs.names import read_run
from gscfd.sweeps.journal import JOURNAL
from gscfd.teachers.kinds import known_words
from gscfd.teachers.load import load_teacher
from gscfd.toybox.words import check_words, unknown_words


def check_settings(options: EvaluateOptions) -> None:
    """Raises UserError for invalid options, before anything is rendered."""
    if not options.runs:
        raise UserError("runs: expected at least one folder of a finished run, got none")
    check(options.samples >= 2, "samples", "at least 2", options.samples)
    check(len(options.metrics) > 0, "metrics", f"some of {', '.join(NAMES)}", options.metrics)
    for name in ("inception", "aesthetic"):
        path: Path | None = getattr(options, name)
        check(path is None or path.is_file(), name, "a file", str(path))
    if options.report is not None:
        check_report(options.report, "report")
        if (options.report / JOURNAL).exists():
            raise UserError(
                f"report: expected a folder of its own, got {options.report}, the folder of a sweep, whose runs.csv "
                f"would be replaced; choose another, such as --report {options.report / 'report'}"
            )


def read_runs(folders: tuple[Path, ...]) -> tuple[dict[Path, Config], list[str]]:
    """Returns the settings of the finished runs, and the errors of the others. Raises UserError if no run is
    finished."""
    configs, left_out = {}, []
    for folder in folders:
        try:
            configs[folder] = read_run(folder)[0]
        except UserError as error:
            left_out.append(str(error))
            print(f"warning: {error}; skipping it", file=sys.stderr)
    if not configs:
        raise UserError(f"runs: expected at least one finished run, got {', '.join(map(str, folders))}; see above")
    return configs, left_out


def judged_prompts(options: EvaluateOptions, prompts: list[str]) -> list[str]:
    """Returns the prompts whose pictures can be judged: all by a CLIP model, else those in the toybox's words."""
    return [prompt for prompt in prompts if options.clip or not unknown_words(prompt)]


def load_judges(options: EvaluateOptions, prompts: list[str], device: torch.device) -> Judges:
    """Loads the networks whose weights were given. Without a CLIP model, the toybox scorer judges the prompts."""
    folders = options.clip or ((SCORER,) if prompts else ())
    if options.inception and not folders:
        raise UserError(f"inception: expected {CLIP_NEEDED}, for these prompts, got no --clip; add it")
    if options.teacher is not None and known_words(options.teacher):
        for prompt in prompts:
            check_words("teacher", prompt)
    scorers = [Scorer(folder, device) for folder in folders]
    return Judges(
        scorers=scorers,
        inception=Inception(options.inception, device) if options.inception else None,
        aesthetic=Aesthetic(options.aesthetic, scorers) if options.aesthetic else None,
        pickscore=Scorer(options.pickscore, device, "pickscore") if options.pickscore else None,
    )


def load_references(
    options: EvaluateOptions,
    configs: list[Config],
    prompts: list[str],
    judges: Judges,
    size: int,
    device: torch.device,
) -> dict[str, Reference]:
    """Returns the references of FID and the Janus score by prompt, of those that are judged; prompts without one are
    missing."""
    if not judges.scorers or not {"fid", "janus"} & set(options.metrics):
        return {}
    first = {config.prompt: config for config in reversed(configs) if config.prompt in prompts}
    teacher = None
    if options.teacher is not None:
        teacher = load_teacher(options.teacher, device=device, dtype=choose_dtype("auto", device))
    found = {}
    for prompt, config in tqdm(first.items(), desc="reference", unit="prompt", disable=None):
        if teacher is None:
            reference = true_reference(prompt, options.samples, size, judges)
        else:
            reference = teacher_reference(prompt, options.samples, teacher, config.stage("coarse"), device, judges)
        if reference is not None:
            found[prompt] = reference
    return found


def judged_by(
    options: EvaluateOptions, judges: Judges, references: dict[str, Reference], prompts: list[str], judged: list[str]
) -> list[str]:
    """Returns sentences on the networks and reference pictures behind the figures."""
    if not judges.scorers:
        return ["No CLIP model was given and the prompts are outside the toybox: the pictures were not judged."]
    others = ", ".join(repr(prompt) for prompt in prompts if prompt not in judged)
    left = [f"No CLIP model was given, and the toybox scorer does not know {others}: not judged."] if others else []
    sampled = f"samples of {options.teacher} ({SAMPLER_STEPS} steps)"
    source = sampled if options.teacher else "true objects of the toybox"
    fewest = min((len(reference.pictures) for reference in references.values()), default=0)
    return [
        f"3D-CLIP: {', '.join(scorer.name for scorer in judges.scorers)}. R-precision, similarity, diversity and Janus "
        f"score: {judges.scorers[0].name}. 3D-FID: features of {judges.features_of}.",
        f"Reference of 3D-FID and Janus score: {source}, at least {fewest} pictures for each of "
        f"{len(references)} of {len(prompts)} prompts. Figures of different feature networks or references are "
        "not comparable.",
        *left,
    ]


def make_report(
    options: EvaluateOptions,
    runs: list[Examined],
    references: dict[str, Reference],
    judges: Judges,
    left_out: list[str],
) -> Report:
    """Builds the report. Metrics that no run supports are listed with their requirements."""
    groups, names = grouped(runs), list[str](options.metrics)
    summary = summary_table(groups, references, names, judges)
    skipped = [name for name in names if name not in summary.estimates]
    prompts = list(dict.fromkeys(run.prompt for run in runs))
    judged = judged_prompts(options, prompts)
    notes = judged_by(options, judges, references, prompts, judged)
    return Report(
        title="Scores",
        notes=notes + meanings([name for name in names if name not in skipped], len(judged)),
        warnings=[f"{METRICS[name].title} ({name}) is skipped; it needs {METRICS[name].needs}." for name in skipped]
        + [f"Left out: {reason}." for reason in left_out],
        tables=[summary, *win_tables(groups), run_table(runs, names, judges)],
        plots=plots_of(summary, judges),
        sheets=sheets(groups),
    )


def evaluate(options: EvaluateOptions) -> None:
    """Prints the figures, and writes them to options.report if set. Raises UserError for errors the user can fix."""
    check_settings(options)
    configs, left_out = read_runs(options.runs)
    prompts, labels = list(dict.fromkeys(c.prompt for c in configs.values())), labels_of(list(configs.values()))
    device = choose_device("auto")
    judged = judged_prompts(options, prompts)
    judges = load_judges(options, judged, device)
    size = 128 if judges.toybox and not judges.inception else 512
    references = load_references(options, list(configs.values()), judged, judges, size, device)
    runs, truths = [], bool({"nearest", "nearest_true", "speckle"} & set(options.metrics))
    for folder, label in zip(tqdm(configs, desc="runs", unit="run", disable=None), labels, strict=True):
        found = examine(folder, judges, judged, size=size, references=references, truths=truths)
        runs.append(replace(found, label=label))
    report = make_report(options, runs, references, judges, left_out)
    for warning in report.warnings:
        print(warning)
    for table in report.tables:
        print(f"\n{table.title}\n\n{table.text(shutil.get_terminal_size().columns)}")
    if options.report is not None:
        write_page(report, options.report / "report.html")
        write_json(report, options.report / "report.json")
        write_rows(run_rows(runs, list[str](options.metrics)), options.report / "runs.csv")
        write_text(run_table(runs, list[str](options.metrics), judges).markdown(), options.report / "scores.md")
        frames = [frame for run in runs for frame in run.frames]
        write_contact_sheet(padded(frames, 2 * SHEET_VIEWS), options.report / "sheet.png", columns=2 * SHEET_VIEWS)
        print(f"\n{options.report}/report.html")
