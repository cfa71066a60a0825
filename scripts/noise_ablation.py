"""Equal seeds and steps, different noise or other settings: what do they change? Prints a Markdown table.

    python scripts/noise_ablation.py OUT [--seeds 8] [--prompts ...] [--variants ...] [--rest gscfd.train options]
    python scripts/noise_ablation.py OUT --set plain: sparse:coarse.sparsity_reg=0.02,refine.sparsity_reg=0.02

The runs of a variant are a sweep (extra `sweep`): finished runs are kept, so that the script can be stopped and started
again. Columns: the share of the first step's noise left at the end of the coarse stage, (1 - gamma)^(steps / 2); the
scaled gradient variance (CFD Eq. 15) of positions and colors, mean over every tenth step of all runs; R-precision among
the prompts given and the twenty of docs/results.md, and mean similarity (`gscfd.lab.examine`); diversity over the seeds
(`gscfd.lab.metrics.diversity`), mean over the prompts.

gamma is a share per step: what matters is gamma times the number of steps. CFD's 1e-4 over 25 000 steps leaves .29 of
the noise, and so does 8e-3 over 300 steps; 1e-4 over 300 steps leaves .99 and is close to 0.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from gscfd.lab.examine import examine
from gscfd.lab.judges import SCORER, Judges, Scorer
from gscfd.lab.metrics import diversity
from gscfd.runs.names import default_folder, read_run
from gscfd.runs.options import parse
from gscfd.sweeps.make import Run, make_runs
from gscfd.sweeps.options import Workers
from gscfd.toybox.truth import KNOWN_PROMPTS, WITHHELD_PROMPTS

PROMPTS = ("a yellow duck", "a blue mug", "a red car", "a purple crown")
VARIANTS = {
    "iid": ["--guidance", "sds"],
    "fixed": ["--noise.kind", "fixed", "--noise.gamma", "0"],
    "world_map": ["--noise.kind", "world_map", "--noise.gamma", "0"],
    "radial": ["--noise.kind", "radial", "--noise.gamma", "0"],
    "surface-0": ["--noise.kind", "surface", "--noise.gamma", "0"],
    "surface-1e-4": ["--noise.kind", "surface", "--noise.gamma", "1e-4"],
    "surface-1e-3": ["--noise.kind", "surface", "--noise.gamma", "1e-3"],
}
"""iid with the annealed times of the other variants is annealed SDS."""
PARAMETERS = ("means", "sh0")


@dataclass
class Row:
    variant: str
    left: float
    variance: dict[str, float]
    r_precision: float
    similarity: float
    diversity: float


def planned(folder: Path, prompts: list[str], seeds: int, options: list[str]) -> list[Run]:
    """Returns the runs of one variant. options: of gscfd.train."""
    runs = []
    for prompt in prompts:
        for seed in range(seeds):
            out = folder / default_folder(prompt, seed).name
            named = ["--prompt", prompt, "--seed", str(seed), "--out", str(out), "--no-viewer"]
            runs.append(Run(out, parse([*options, *named])))
    return runs


def score(variant: str, prompts: list[str], runs: list[Run], judges: Judges) -> Row:
    """Returns the figures of one variant's finished runs."""
    candidates = list(dict.fromkeys([*prompts, *KNOWN_PROMPTS, *WITHHELD_PROMPTS]))
    seen = [examine(run.folder, judges, candidates) for run in runs]
    spread = []
    for prompt in prompts:
        sides = [run.sides for run in seen if run.prompt == prompt and run.sides is not None]
        spread.append(diversity(torch.stack(sides)) if len(sides) > 1 else math.nan)
    config = read_run(runs[0].folder)[0]
    return Row(
        variant=variant,
        left=0.0 if config.noise_kind == "iid" else (1 - config.noise_gamma("coarse")) ** (config.coarse.steps / 2),
        variance={name: mean([run.values[f"variance_{name}"] for run in seen]) for name in PARAMETERS},
        r_precision=mean([run.values["r_precision"] for run in seen]),
        similarity=mean([run.values["similarity"] for run in seen]),
        diversity=mean(spread),
    )


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(rows: list[Row]) -> str:
    names = " | ".join(f"variance, {name}" for name in PARAMETERS)
    lines = [f"| variant | noise left | {names} | R-precision | similarity | diversity |"]
    lines.append("|---" * (len(PARAMETERS) + 5) + "|")
    for row in rows:
        variance = " | ".join(f"{row.variance[name]:.4f}" for name in PARAMETERS)
        scores = f"{row.r_precision:.1%} | {row.similarity:.3f} | {row.diversity:.4f}"
        lines.append(f"| {row.variant} | {row.left:.3f} | {variance} | {scores} |")
    return "\n".join(lines)


def variant_of(text: str) -> tuple[str, list[str]]:
    """NAME:KEY=VALUE,... as its name and options of gscfd.train; true and false switch a flag. Raises ValueError."""
    name, colon, settings = text.partition(":")
    options = []
    for setting in filter(None, settings.split(",")):
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"expected KEY=VALUE, got {setting!r}")
        *groups, last = key.replace("_", "-").split(".")
        flag = "no-" + last if value == "false" else last
        options += ["--" + ".".join([*groups, flag]), *([] if value in ("true", "false") else value.split())]
    if not name or not colon:
        raise ValueError(f"expected NAME:KEY=VALUE,..., got {text!r}")
    return name, options


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=8, help="runs of each prompt (default 8)")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="noises (default all, none with --set)")
    own = "variants of your own, NAME:KEY=VALUE,...; NAME: alone is the control, without changes"
    parser.add_argument("--set", nargs="+", type=variant_of, default=[], metavar="VARIANT", help=own)
    parser.add_argument("--rest", nargs=argparse.REMAINDER, default=[], help="further options of gscfd.train, last")
    chosen = parser.parse_args(arguments)
    names = chosen.variants or ([] if chosen.set else list(VARIANTS))
    variants = {name: VARIANTS[name] for name in names} | dict(chosen.set)
    judges, rows = Judges(scorers=[Scorer(SCORER)]), []
    for variant, options in variants.items():
        runs = planned(chosen.out / variant, chosen.prompts, chosen.seeds, [*chosen.rest, *options])
        progress = make_runs(chosen.out / variant, runs, Workers(workers=chosen.workers))
        if progress.failed:
            print(f"{variant}: {len(progress.failed)} runs failed; see {chosen.out / variant}", file=sys.stderr)
            return 1
        rows.append(score(variant, chosen.prompts, runs, judges))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
