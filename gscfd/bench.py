"""The papers' claims, measured again on the toybox: `python -m gscfd.bench papers --size smoke --out DIR`.

Every method has the same prompts, seeds, teacher and number of steps. The runs are a sweep (`gscfd.sweep`). Runs and
pictures that are there are kept, and half-done ones continued: the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import imageio.v3 as iio
import numpy as np
import torch
import tyro

from gscfd import image
from gscfd.config import CFD_GAMMA, Config, StageConfig, check, merged, rescaled_gamma
from gscfd.devices import choose_device, choose_dtype
from gscfd.errors import UserError
from gscfd.evaluate import plots_of, run_rows, summary_table
from gscfd.export.turntable import write_contact_sheet
from gscfd.intervals import Estimate
from gscfd.judges import SCORER, Judges, Scorer
from gscfd.references import SAMPLER_STEPS, Reference, teacher_reference
from gscfd.report import Report, Sheet, Table, check_report, figure, write_json, write_page, write_rows, write_text
from gscfd.runs import LAST, default_folder, slug
from gscfd.scores import METRICS, SHEET_VIEWS, Examined, difference, examine
from gscfd.sweep import Run, Workers, make_runs
from gscfd.teachers import load_teacher
from gscfd.teachers.guided import GuidedTeacher
from gscfd.toybox.truth import KNOWN_PROMPTS, WITHHELD_PROMPTS
from gscfd.train import stage_prompt

TEACHER = "toybox/multiview"
PAPER_STEPS = 25_000
"""Over which CFD's tables have its share of fresh noise per step."""
NEGATIVE = "gray"
"""The toybox has no words for bad pictures; this one stands for washed-out colours."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    prompts: tuple[str, ...]
    """Of the splats; some are pairs that the teacher never saw."""
    seeds: int
    steps: int
    """Of the coarse stage; there is no other."""
    picture_prompts: tuple[str, ...]
    """Of the pictures, which leave the colour open."""
    picture_seeds: int
    picture_steps: int
    samples: int
    """Of the teacher, of each prompt, for 3D-FID and the Janus score."""


SIZES = {
    "smoke": Size(
        prompts=("a yellow duck", "a purple chair"),
        seeds=2,
        steps=40,
        picture_prompts=("a mug",),
        picture_seeds=6,
        picture_steps=20,
        samples=48,
    ),
    "full": Size(
        prompts=("a yellow duck", "a blue mug", "a red car", "a cyan mushroom", "a purple chair", "a pink penguin"),
        seeds=6,
        steps=300,
        picture_prompts=("a mug", "a duck", "a house"),
        picture_seeds=16,
        picture_steps=50,
        samples=240,
    ),
}


@dataclass(frozen=True)
class Claim:
    """That one variant is better than the other by a metric; or, with `differs`, that it is another."""

    metric: str
    better: str
    worse: str
    paper: str
    """What the paper says, in its numbers where it has some."""
    differs: bool = False


@dataclass(frozen=True)
class Experiment:
    """One table or figure of a paper."""

    title: str
    note: str
    variants: tuple[str, ...]
    metrics: tuple[str, ...]
    claims: tuple[Claim, ...]


def variants(steps: int) -> dict[str, dict[str, Any]]:
    """What differs between the runs, by name, as changes of the toybox preset."""
    gamma = {"gamma": rescaled_gamma(CFD_GAMMA, PAPER_STEPS, steps)}
    return {
        "sds, random t": {"guidance": "sds", "coarse": {"t_schedule": "uniform"}},
        "sds": {"guidance": "sds"},
        "sds, negative prompt": {"guidance": "sds", "coarse": {"negative_prompt": NEGATIVE}},
        "cfd, negative prompt": {"guidance": "cfd", "noise": gamma, "coarse": {"negative_prompt": NEGATIVE}},
        "ism": {"guidance": "ism"},
        "vsd": {"guidance": "vsd"},
        "cfd": {"guidance": "cfd", "noise": gamma},
        "cfd, gamma 0": {"guidance": "cfd", "noise": {"gamma": 0.0}},
        "fsd": {"guidance": "fsd"},
        "fsd, beta .5": {"guidance": "fsd", "noise": {"beta": 0.5}},
        "fsd, Theta 45": {"guidance": "fsd", "noise": {"theta": 45.0}},
        "fsd, Theta 360": {"guidance": "fsd", "noise": {"theta": 360.0}},
        "fsd, one noise": {"guidance": "fsd", "noise": {"kind": "fixed"}},
        "cds, random t": {"guidance": "cds", "coarse": {"t_schedule": "uniform"}},
        "cds, fixed gap": {"guidance": "cds", "coarse": {"cds": {"gap": [0.15, 0.15]}}},
        "cds, fresh noise": {"guidance": "cds", "noise": {"kind": "iid"}},
        "cds": {"guidance": "cds"},
    }


GAMMAS = {"gamma 0": 0.0, "gamma 1e-4": 1e-4, "gamma 1e-3": 1e-3, "gamma 1e-2": 1e-2, "gamma 1": 1.0}
"""Variants of the pictures."""

EXPERIMENTS = (
    Experiment(
        title="CFD Tab. 2",
        note="Equal steps. ISM asks the teacher up to seven times per step, the others once; VSD also trains a LoRA.",
        variants=("sds", "ism", "vsd", "cfd"),
        metrics=("fid", "clip", "similarity", "r_precision", "diversity", "janus", "holes", "seconds"),
        claims=(
            Claim("fid", "cfd", "sds", "78.13 against 88.06"),
            Claim("fid", "cfd", "ism", "78.13 against 86.00"),
            Claim("fid", "cfd", "vsd", "78.13 against 83.02"),
            Claim("clip", "cfd", "sds", "35.16 against 35.07"),
            Claim("clip", "cfd", "ism", "35.16 against 34.99"),
            Claim("clip", "cfd", "vsd", "35.16 against 35.10"),
        ),
    ),
    Experiment(
        title="CFD Tab. 4",
        note="In two dimensions: pictures of the teacher by the clean flow SDE, of prompts that leave the colour open. "
        f"gamma is per step of {PAPER_STEPS}, and rescaled to leave as much noise.",
        variants=tuple(GAMMAS),
        metrics=("is", "diversity"),
        claims=(
            Claim("is", "gamma 1e-4", "gamma 0", "2.60 against 2.24"),
            Claim("is", "gamma 1e-4", "gamma 1e-3", "2.60 against 2.47"),
            Claim("is", "gamma 1e-4", "gamma 1e-2", "2.60 against 2.08"),
            Claim("is", "gamma 1e-4", "gamma 1", "2.60 against 1.77"),
            Claim("is", "gamma 0", "gamma 1", "2.24 against 1.77"),
        ),
    ),
    Experiment(
        title="CFD Tab. 8",
        note="Scaled gradient variance of Adam's moments; another scale than the paper's.",
        variants=("vsd", "sds", "fsd", "cfd, gamma 0"),
        metrics=("variance_means", "variance_sh0"),
        claims=(
            Claim("variance_means", "sds", "vsd", "4.670 against 5.165"),
            Claim("variance_means", "fsd", "sds", "4.580 against 4.670"),
            Claim("variance_means", "cfd, gamma 0", "fsd", "4.521 against 4.580"),
            Claim("variance_sh0", "sds", "vsd", "4.670 against 5.165"),
            Claim("variance_sh0", "fsd", "sds", "4.580 against 4.670"),
            Claim("variance_sh0", "cfd, gamma 0", "fsd", "4.521 against 4.580"),
        ),
    ),
    Experiment(
        title="CFD Fig. 15",
        note=f"The design step by step. The negative prompt is {NEGATIVE!r}, the teacher's words know no other.",
        variants=("sds, random t", "sds", "sds, negative prompt", "cfd, negative prompt"),
        metrics=("fid", "clip", "similarity", "r_precision", "diversity"),
        claims=(
            Claim("fid", "sds", "sds, random t", "annealing forms finer details"),
            Claim("fid", "sds, negative prompt", "sds", "the negative prompt improves style and colours"),
            Claim("fid", "cfd, negative prompt", "sds, negative prompt", "consistent noise gives richer details"),
            Claim("diversity", "cfd, negative prompt", "sds, negative prompt", "consistent noise is more diverse"),
        ),
    ),
    Experiment(
        title="FSD: noise, beta and Theta",
        note="beta 0 is sds, Theta 180 is fsd. The paper says that Theta matters, and not which way in the main text.",
        variants=("sds", "fsd, beta .5", "fsd", "fsd, Theta 45", "fsd, Theta 360", "fsd, one noise"),
        metrics=("diversity", "holes", "r_precision", "similarity", "view_error"),
        claims=(
            Claim("diversity", "fsd", "sds", "FSD is the more diverse (Fig. 8, IS 1.78 and 2.13)"),
            Claim("diversity", "fsd", "fsd, beta .5", "beta 1 is fsd, beta 0 is sds (Fig. 8); no figure between"),
            Claim("holes", "fsd", "fsd, one noise", "one noise for all views makes holes (Fig. 6)"),
            Claim("holes", "fsd, Theta 45", "fsd, Theta 360", "FSD is sensitive to Theta", differs=True),
        ),
    ),
    Experiment(
        title="Consistent3D Tab. 2",
        note="Two calls of the teacher per step. The paper's R-precision averages similarities, so both are here.",
        variants=("cds, random t", "cds, fixed gap", "cds, fresh noise", "cds"),
        metrics=("similarity", "r_precision", "clip", "fid"),
        claims=tuple(
            Claim(metric, "cds", worse, paper)
            for metric in ("similarity", "r_precision")
            for worse, paper in (
                ("cds, random t", ".348 against .319"),
                ("cds, fixed gap", ".348 against .325"),
                ("cds, fresh noise", ".348 against .340"),
            )
        ),
    ),
)


def verdict(claim: Claim, found: Estimate | None) -> str:
    """Reproduced, not reproduced or not significant, by the interval of better minus worse."""
    if found is None or not found.low <= found.high or found.low == found.high != 0:
        return "too few runs to say"
    if found.low <= 0 <= found.high:
        return "not significant"
    if claim.differs:
        return "reproduced"
    return "reproduced" if (found.low > 0) == (METRICS[claim.metric].better == "higher") else "not reproduced"


# ------------------------------------------------------------------------------------------------- runs and pictures


def plan_runs(out: Path, size: Size) -> dict[str, list[Run]]:
    """The runs of every variant: the coarse stage alone, the first seed of all prompts first."""
    base = merged(Config(), {"coarse": {"steps": size.steps}, "refine": {"steps": 0}})
    return {
        variant: [
            plan_run(out, variant, replace(merged(base, changes), prompt=prompt, seed=seed))
            for seed in range(size.seeds)
            for prompt in size.prompts
        ]
        for variant, changes in variants(size.steps).items()
    }


def plan_run(out: Path, variant: str, config: Config) -> Run:
    folder = out / "runs" / f"{slug(variant)}-{default_folder(config.prompt, config.seed).name}"
    return Run(folder, replace(config, out=folder))


def make_picture(path: Path, size: Size, gamma: float, prompt: str, seed: int, teacher: GuidedTeacher) -> None:
    """Four views of the clean flow's picture, unless they are there already."""
    if path.exists():
        return
    settings = image.Settings(
        prompt=prompt,
        out=path,
        steps=size.picture_steps,
        gamma=rescaled_gamma(gamma, PAPER_STEPS, size.picture_steps),
        seed=seed,
    )
    views = teacher.decode(image.draw_picture(settings, teacher)).permute(0, 2, 3, 1).cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_contact_sheet((views.clamp(0, 1) * 255).round().to(torch.uint8).numpy(), path, columns=image.GROUP)


def make_pictures(out: Path, size: Size, teacher: GuidedTeacher, judges: Judges) -> dict[str, list[Examined]]:
    """The pictures of every gamma, as the judges see them."""
    found: dict[str, list[Examined]] = {}
    for prompt in size.picture_prompts:
        teacher.set_prompt(stage_prompt(prompt, coarse(size)))
        for name, gamma in GAMMAS.items():
            for seed in range(size.picture_seeds):
                path = out / "pictures" / slug(name) / f"{default_folder(prompt, seed).name}.png"
                make_picture(path, size, gamma, prompt, seed, teacher)
                found.setdefault(name, []).append(examine_picture(path, name, prompt, seed, judges))
    return found


def examine_picture(path: Path, label: str, prompt: str, seed: int, judges: Judges) -> Examined:
    """What the scorer sees in a picture of `make_picture`."""
    frames = np.stack(np.split(iio.imread(path), image.GROUP, axis=1))
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


def coarse(size: Size) -> StageConfig:
    return replace(Config().coarse, steps=size.steps)


# ------------------------------------------------------------------------------------------------------------ report


def claim_rows(
    experiment: Experiment, groups: dict[str, list[Examined]], references: dict[str, Reference]
) -> list[tuple[list[str], Estimate | None]]:
    """The claims of one experiment as rows of the table of orderings, with the differences behind them."""
    rows = []
    for claim in experiment.claims:
        found = difference(claim.metric, groups[claim.better], groups[claim.worse], references)
        metric = METRICS[claim.metric]
        relation = "differs from" if claim.differs else "better than"
        said = f"{claim.better} {relation} {claim.worse}"
        cells = [experiment.title, metric.title, said, claim.paper, figure(found, metric.form), verdict(claim, found)]
        rows.append((cells, found))
    return rows


def experiment_sheet(experiment: Experiment, groups: dict[str, list[Examined]]) -> Sheet:
    """A row for each variant: the first runs of it, as many as fit into two turns."""
    columns = 2 * SHEET_VIEWS
    rows = [[frame for run in groups[name] for frame in run.frames][:columns] for name in experiment.variants]
    shown = min(len(row) for row in rows)
    title = f"{experiment.title}, rows: {'; '.join(experiment.variants)}"
    return Sheet(title=title, frames=[frame for row in rows for frame in row[:shown]], columns=shown)


def make_report(
    size: Size, command: str, groups: dict[str, list[Examined]], references: dict[str, Reference], failed: list[str]
) -> Report:
    """The page: orderings first, then every experiment's figures."""
    claims, tables, plots, sheets = [], [], [], []
    estimates: dict[str, Estimate] = {}
    for experiment in EXPERIMENTS:
        chosen = {variant: groups[variant] for variant in experiment.variants}
        if not all(chosen.values()):
            failed = [*failed, f"{experiment.title}: a variant has no finished run"]
            continue
        for cells, found in claim_rows(experiment, groups, references):
            claims.append(cells)
            if found is not None:
                estimates[" | ".join(cells[:3])] = found
        table = summary_table(chosen, references, list(experiment.metrics))
        tables.append(replace(table, title=experiment.title, note=f"{experiment.note} {table.note}"))
        plots += [replace(plot, title=f"{experiment.title}: {plot.title}") for plot in plots_of(table)]
        sheets.append(experiment_sheet(experiment, chosen))
    orderings = Table(
        title="Orderings",
        note="Difference: first minus second, over pairs of equal prompt and seed, with its 95 % bootstrap interval.",
        columns=["source", "metric", "claim", "the paper", "difference", "verdict"],
        rows=claims,
        estimates={"difference": estimates},
    )
    used = dict.fromkeys(metric for experiment in EXPERIMENTS for metric in experiment.metrics)
    return Report(
        title="The papers' claims on the toybox",
        notes=[*budget(size, command), *(f"{METRICS[m].title}: {METRICS[m].meaning}." for m in used)],
        warnings=[f"Failed: {reason}" for reason in failed],
        tables=[orderings, *tables],
        plots=plots,
        sheets=sheets,
    )


def budget(size: Size, command: str) -> list[str]:
    """What was made, in sentences."""
    return [
        f"{command}: {', '.join(size.prompts)}; {size.seeds} seeds; {size.steps} "
        f"steps of the coarse stage with {TEACHER}, equal for all, other settings the defaults. Equal seeds begin with "
        "equal Gaussians and see equal cameras, but for vsd, cds and random t, which draw more numbers.",
        f"Judge: the toybox scorer, retrieval among {len(KNOWN_PROMPTS + WITHHELD_PROMPTS)} prompts. Reference of "
        f"3D-FID and Janus score: {size.samples} samples of the teacher of each prompt, DDIM, {SAMPLER_STEPS} steps.",
        f"cfd has gamma {CFD_GAMMA:g} of {PAPER_STEPS} steps, which is "
        f"{rescaled_gamma(CFD_GAMMA, PAPER_STEPS, size.steps):.2g} per step here.",
    ]


def papers(settings: Settings) -> Report:
    """Make what is not there yet, look at everything, and write the report. Raises UserError."""
    out, size = settings.out, SIZES[settings.size]
    command = f"python -m gscfd.bench papers --size {settings.size}"
    if settings.seeds is not None:
        size, command = replace(size, seeds=settings.seeds), f"{command} --seeds {settings.seeds}"
    check_report(out, "out")
    planned = plan_runs(out, size)
    # A seed of every variant before the next seed: a bench that is stopped has compared all of them.
    runs = [run for equals in zip(*planned.values(), strict=True) for run in equals]
    print(f"{len(runs)} runs of {size.steps} steps, then pictures, then the report in {out}")
    progress = make_runs(out, runs, settings)
    failed = [f"{name}: {reason}" for name, reason in progress.failed.items()]
    device = choose_device("auto")
    teacher = load_teacher(TEACHER, device=device, dtype=choose_dtype("auto", device))
    judges = Judges(scorers=[Scorer(SCORER, device)])
    stage = coarse(size)
    references = {p: teacher_reference(p, size.samples, teacher, stage, device, judges) for p in size.prompts}
    candidates = list(dict.fromkeys([*size.prompts, *KNOWN_PROMPTS, *WITHHELD_PROMPTS]))
    groups = {
        variant: [
            replace(examine(run.folder, judges, candidates, references=references), label=variant)
            for run in runs
            if (run.folder / LAST).exists()
        ]
        for variant, runs in planned.items()
    }
    groups |= make_pictures(out, size, teacher, judges)
    report = make_report(size, command, groups, references, failed)
    write_page(report, out / "report.html")
    write_json(report, out / "report.json")
    warnings = "".join(f"{warning}\n\n" for warning in report.warnings)
    tables = "".join(f"{table.title}\n\n{table.markdown()}\n" for table in report.tables)
    write_text(warnings + tables, out / "report.md")
    seen = [replace(run, run=str(Path(run.run).relative_to(out))) for group in groups.values() for run in group]
    write_rows(run_rows(seen, list(METRICS)), out / "runs.csv")
    return report


@dataclass(kw_only=True)
class Settings(Workers):
    """Measure the papers' claims on the toybox, and say which orderings are reproduced."""

    what: Annotated[Literal["papers"], tyro.conf.Positional]
    out: Path
    """Folder of the runs, pictures and report.html, report.md, report.json and runs.csv. The same command continues."""
    size: Literal["smoke", "full"] = "smoke"
    """smoke: whether it works, in minutes; too little for most verdicts. full: hours on a CPU."""
    seeds: int | None = None
    """Of the splats; the same command with more goes on. Unset: those of the size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.seeds is None or self.seeds >= 1, "seeds", "at least 1", self.seeds)


def bench(settings: Settings) -> int:
    try:
        report = papers(settings)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(["", *report.warnings, report.tables[0].markdown(), f"{settings.out}/report.html"]))
    return 1 if report.warnings else 0


def main(arguments: list[str] | None = None) -> int:
    return bench(tyro.cli(Settings, args=arguments, prog="python -m gscfd.bench"))


if __name__ == "__main__":
    sys.exit(main())
