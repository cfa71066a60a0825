"""Judges the papers' claims again from the files of a report: `python scripts/papers_claims.py benchmarks/papers`.

Figures of single runs are read from runs.csv. Those of sets of runs (FID, inception score, diversity) need features
that the files lack: their p-value is that of the t statistic behind the interval in report.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from gscfd.lab.catalogue import METRICS
from gscfd.lab.claims import EXPERIMENTS, Claim, Experiment, Finding
from gscfd.lab.compare import SETS
from gscfd.lab.examine import Examined
from gscfd.lab.intervals import LEVEL, Estimate
from gscfd.lab.judges import SCORER, Judges, Scorer
from gscfd.lab.papers import claims_table, findings_of

WITHDRAWN = [("gamma 1e-4", worse) for worse in ("gamma 0", "gamma 1e-3", "gamma 1e-2", "gamma 1")]
"""Claims of the report of 2026-11-22 that measured a sampler without drift."""
TOLD = ("run", "label", "prompt", "seed")
"""Columns of runs.csv that are no metrics."""


def read_groups(path: Path) -> dict[str, list[Examined]]:
    """Returns the runs of runs.csv by variant."""
    groups: dict[str, list[Examined]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            values = {name: float(text) for name, text in row.items() if name not in TOLD and text}
            run = Examined(
                run=row["run"], prompt=row["prompt"], seed=int(row["seed"]), label=row["label"], values=values
            )
            groups.setdefault(run.label, []).append(run)
    return groups


def withdrawn(claim: Claim) -> bool:
    return (claim.better, claim.worse) in WITHDRAWN


def of_interval(claim: Claim, kept: dict[str, Any], prompts: int) -> Finding:
    """Returns the finding behind a t interval. kept: value, low, high and count. prompts: number of them, within which
    the runs were resampled; diversity was resampled over them."""
    free = prompts - 1 if claim.metric == "diversity" else kept["count"] - prompts
    error = (kept["high"] - kept["low"]) / 2 / stats.t.ppf((1 + LEVEL) / 2, free)
    found = Estimate(kept["value"], kept["low"], kept["high"], kept["count"], error)
    return Finding(claim, found, float(2 * stats.t.sf(abs(found.value) / error, free)))


def findings(
    experiment: Experiment, groups: dict[str, list[Examined]], kept: dict[str, dict[str, Any]]
) -> Sequence[Finding]:
    """Returns the findings on one experiment. kept: differences of report.json by source, metric and claim."""
    found = []
    for finding in findings_of(experiment, groups, {}):
        claim = finding.claim
        if withdrawn(claim):
            finding = Finding(claim, None, math.nan)
        elif claim.metric in SETS:
            said = f"{claim.better} {'differs from' if claim.differs else 'better than'} {claim.worse}"
            prompts = len({run.prompt for run in groups[claim.better]})
            finding = of_interval(claim, kept[f"{experiment.title} | {METRICS[claim.metric].title} | {said}"], prompts)
        found.append(finding)
    return found


def main(folder: Path) -> None:
    """Prints the table of orderings. folder: with runs.csv and report.json."""
    groups = read_groups(folder / "runs.csv")
    kept = json.loads((folder / "report.json").read_bytes())["tables"][0]["estimates"]["difference"]
    found = [(one.title, finding) for one in EXPERIMENTS for finding in findings(one, groups, kept)]
    table = claims_table(found, Judges(scorers=[Scorer(SCORER)]))
    for row, (_, finding) in zip(table.rows, found, strict=True):
        if withdrawn(finding.claim):
            row[-2:] = ["withdrawn", "withdrawn"]
    print(table.markdown())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a report of gscfd bench papers, with its runs.csv")
    main(parser.parse_args().folder)
