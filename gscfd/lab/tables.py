"""Tables, plots and contact sheets of a report."""

from __future__ import annotations

import math

from gscfd.lab.catalogue import METRICS
from gscfd.lab.compare import estimate, wins
from gscfd.lab.examine import SHEET_VIEWS, Examined
from gscfd.lab.intervals import FEWEST
from gscfd.lab.judges import Judges
from gscfd.lab.references import Reference
from gscfd.lab.report import Plot, Sheet, Table, figure

RANKERS = ("aesthetic", "pickscore")
"""Metrics with win rates (CFD Tab. 3)."""
SHEET_RUNS = 12
"""Maximum number of runs per label shown in the page."""


def grouped(runs: list[Examined]) -> dict[str, list[Examined]]:
    """Groups the runs by label, in order of first occurrence."""
    groups: dict[str, list[Examined]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def run_rows(runs: list[Examined], names: list[str]) -> list[dict[str, object]]:
    """Returns one row per run, for the csv file."""
    return [
        {"run": r.run, "label": r.label, "prompt": r.prompt, "seed": r.seed}
        | {name: r.values[name] for name in names if name in r.values}
        for r in runs
    ]


def title_of(name: str, judges: Judges) -> str:
    """Returns the metric's title, with the networks whose features it compares."""
    networks = judges.networks_of(name)
    return f"{METRICS[name].title}, {networks} features" if networks else METRICS[name].title


def summary_table(
    groups: dict[str, list[Examined]], references: dict[str, Reference], names: list[str], judges: Judges
) -> Table:
    """Returns the table of every metric of every label, with intervals."""
    cells = {label: {name: estimate(name, runs, references) for name in names} for label, runs in groups.items()}
    shown = [name for name in names if any(cells[label][name] is not None for label in groups)]
    better = {"higher": " ↑", "lower": " ↓", "": ""}
    return Table(
        title="Figures",
        note=f"Mean and 95 % bootstrap interval over runs, or with fewer than {FEWEST} runs the runs themselves; "
        "↑ higher is better, ↓ lower.",
        columns=["", "runs", *(title_of(name, judges) + better[METRICS[name].better] for name in shown)],
        rows=[
            [label, str(len(runs)), *(figure(cells[label][name], METRICS[name].form) for name in shown)]
            for label, runs in groups.items()
        ],
        estimates={name: {label: e for label in groups if (e := cells[label][name])} for name in shown},
    )


def run_table(runs: list[Examined], names: list[str], judges: Judges) -> Table:
    """Returns the table of each run's own figures, and their mean."""
    shown = [name for name in names if any(name in run.values for run in runs)]
    rows = [
        [r.prompt, str(r.seed), r.label, *(format_value(r.values.get(name), METRICS[name].form) for name in shown)]
        for r in runs
    ]
    known = [[v for r in runs if (v := r.values.get(name)) is not None and not math.isnan(v)] for name in shown]
    means = [format_value(sum(v) / len(v) if v else None, METRICS[n].form) for v, n in zip(known, shown, strict=True)]
    return Table(
        title="Runs",
        note="",
        columns=["prompt", "seed", "label", *(title_of(name, judges) for name in shown)],
        rows=[*rows, [f"mean of {len(runs)}", "", "", *means]],
        names=3,
    )


def format_value(value: float | None, form: str) -> str:
    return "n/a" if value is None or math.isnan(value) else format(value, form)


def win_tables(groups: dict[str, list[Examined]]) -> list[Table]:
    """Returns, for each ranker used, how often one label's run beats the other's of equal prompt and seed."""
    tables = []
    for name in RANKERS:
        shares = {(a, b): wins(name, groups[a], groups[b]) for a in groups for b in groups}
        rows = [[a, *("" if a == b else figure(shares[a, b], ".2f") for b in groups)] for a in groups]
        if any(name in run.values for runs in groups.values() for run in runs) and len(groups) > 1:
            note = "Share of pairs of equal prompt and seed in which the row's run scores higher than the column's."
            tables.append(Table(title=f"Win rates, {METRICS[name].title}", note=note, columns=["", *groups], rows=rows))
    return tables


def sheets(groups: dict[str, list[Examined]]) -> list[Sheet]:
    """Returns a sheet for each label, with two runs per row."""
    found = []
    for label, runs in groups.items():
        shown = runs[:SHEET_RUNS]
        found.append(
            Sheet(
                title=label,
                frames=[frame for run in shown for frame in run.frames],
                columns=2 * SHEET_VIEWS,
                labels=[row_label(shown[i : i + 2]) for i in range(0, len(shown), 2)],
            )
        )
    return found


def row_label(runs: list[Examined]) -> str:
    """Returns prompts and seeds of the runs in a row, each prompt once."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.prompt, []).append(str(run.seed))
    return "; ".join(f"{prompt}, seed {' and '.join(mine)}" for prompt, mine in seeds.items())


def plots_of(table: Table, judges: Judges) -> list[Plot]:
    """Returns a plot for each metric that compares labels."""
    compared = {name: found for name, found in table.estimates.items() if len(found) > 1}
    return [Plot(title=title_of(name, judges), estimates=found) for name, found in compared.items()]


def meanings(names: list[str], candidates: int) -> list[str]:
    """Returns a sentence on each metric. candidates: number of prompts among which retrieval chooses."""
    chance = f"; retrieval among {candidates} prompts, chance level {1 / candidates:.1%}" if candidates else ""
    return [
        f"{METRICS[name].title}: {METRICS[name].meaning}{chance if name == 'r_precision' else ''}." for name in names
    ]
