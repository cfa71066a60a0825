"""The bench: what it compares, how it judges, and that the same command goes on where it was stopped."""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from present import present
from scipy import stats

import gscfd
from gscfd import bench
from gscfd.config import Config, flat, plain, to_yaml
from gscfd.errors import UserError
from gscfd.lab import claims as lab_claims
from gscfd.lab import compare, options, papers, references
from gscfd.lab import examine as lab_examine
from gscfd.lab.catalogue import METRICS
from gscfd.lab.claims import EXPERIMENTS, GAMMAS, SIZES, Claim, Finding, chosen_experiments, variants, verdicts
from gscfd.lab.examine import Examined
from gscfd.lab.intervals import Estimate
from gscfd.lab.judges import SCORER, Judges, Scorer
from gscfd.lab.papers import plan_runs
from gscfd.runs import names as runs_names
from gscfd.sweeps import make as sweeps_make
from gscfd.sweeps.workers import Outcome, Place, Worker
from gscfd.toybox.objects import WITHHELD
from gscfd.toybox.words import parse_caption

TINY = lab_claims.Size(
    prompts=("a yellow duck",),
    seeds=1,
    steps=1,
    picture_prompts=("a mug",),
    picture_seeds=4,
    picture_steps=1,
    samples=4,
)


def test_every_claim_is_about_variants_and_a_metric_of_its_experiment() -> None:
    for experiment in EXPERIMENTS:
        assert set(experiment.variants) <= set(variants(300)) | set(GAMMAS)
        assert set(experiment.metrics) <= set(METRICS)
        for claim in experiment.claims:
            assert {claim.better, claim.worse} <= set(experiment.variants) and claim.better != claim.worse
            assert claim.metric in experiment.metrics and METRICS[claim.metric].better


def test_variants_differ_and_share_prompt_seed_teacher_and_steps(tmp_path: Path) -> None:
    planned = plan_runs(tmp_path, SIZES["smoke"], EXPERIMENTS)
    assert len({run.folder for runs in planned.values() for run in runs}) == 4 * len(planned)
    configs = [flat(plain(runs[3].config)) for runs in planned.values()]
    told = [{k: v for k, v in c.items() if k != "out"} for c in configs]
    assert all(one != other for i, one in enumerate(told) for other in told[:i])
    for key in ("prompt", "seed", "coarse.teacher", "coarse.steps", "refine.steps", "coarse.views", "coarse.cfg"):
        assert len({c[key] for c in configs}) == 1
    assert {(c["refine.steps"], c["polish.steps"]) for c in configs} == {(0, 0)}, "the coarse stage only"


def test_every_size_asks_for_prompts_that_the_teachers_never_saw() -> None:
    for size in SIZES.values():
        said = [present(parse_caption(prompt)) for prompt in size.prompts]
        withheld = [(caption.kind, caption.color) in WITHHELD for caption in said]
        assert any(withheld) and not all(withheld)


def test_the_papers_orderings_are_25_and_none_stands_twice() -> None:
    by_metric = [(one.title, c.better, c.worse, c.metric) for one in EXPERIMENTS for c in one.claims]
    assert len(by_metric) == len(set(by_metric)) == 25
    for twins in ({"variance_means", "variance_sh0"}, {"similarity", "r_precision"}):
        assert len({metric for *_, metric in by_metric} & twins) == 1


def test_chosen_variants_leave_the_claims_among_them_and_no_other_run(tmp_path: Path) -> None:
    (left,) = chosen_experiments(EXPERIMENTS, ["cfd", "sds"])
    assert left.variants == ("sds", "cfd") and {(c.better, c.worse) for c in left.claims} == {("cfd", "sds")}
    assert set(plan_runs(tmp_path, TINY, [left])) == {"sds", "cfd"}
    (pictures,) = chosen_experiments(EXPERIMENTS, ["gamma 0", "gamma 1"])
    assert len(pictures.claims) == 1 and plan_runs(tmp_path, TINY, [pictures]) == {}
    assert chosen_experiments(EXPERIMENTS, []) == list(EXPERIMENTS), "control: none chosen are all"


@pytest.mark.parametrize("names, said", [(["nerf"], "'nerf'"), (["cfd", "dsd"], "a claim compares")])
def test_variants_that_are_unknown_or_of_no_claim_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=r"^variants: .*" + said):
        chosen_experiments(EXPERIMENTS, names)


def test_fresh_seeds_are_runs_of_their_own(tmp_path: Path) -> None:
    fresh = plan_runs(tmp_path, replace(TINY, first_seed=6), EXPERIMENTS)["cfd"]
    assert {run.config.seed for run in fresh} == {6}
    with pytest.raises(UserError, match="first_seed"):
        options.BenchOptions(out=tmp_path, first_seed=-1)


def finding(metric: str, value: float, p: float, differs: bool = False) -> Finding:
    found = Estimate(value, value - 1, value + 1, 12, error=abs(value) / 3)
    return Finding(Claim(metric, "a", "b", "", differs), found, p)


@pytest.mark.parametrize(
    "metric, value, p, differs, expected",
    [
        ("clip", 0.3, 0.01, False, "reproduced"),
        ("clip", -0.3, 0.01, False, "contradicted"),
        ("fid", -0.3, 0.01, False, "reproduced"),
        ("fid", 0.3, 0.01, False, "contradicted"),
        ("fid", 0.3, 0.01, True, "reproduced"),
        ("fid", 0.3, 0.06, False, "undecided (needs about 15 more runs of each)"),
        ("fid", 0.0, 1.0, False, "undecided (no difference)"),
        ("fid", 0.3, math.nan, False, "undecided (too few runs)"),
    ],
)
def test_verdicts_follow_p_and_the_metrics_direction(
    metric: str, value: float, p: float, differs: bool, expected: str
) -> None:
    (told,) = verdicts([finding(metric, value, p, differs)])
    assert told.holm == told.benjamini_hochberg == expected
    (nothing,) = verdicts([Finding(Claim(metric, "a", "b", ""), None, math.nan)])
    assert nothing.holm == "undecided (too few runs)"


def test_verdicts_are_corrected_for_the_number_of_claims() -> None:
    alone = verdicts([finding("clip", 0.3, 0.03)])[0]
    among = verdicts([finding("clip", 0.3, p) for p in (0.03, 0.02, 0.01, 0.04)])
    assert alone.holm == "reproduced" and among[0].holm.startswith("undecided")
    assert among[2].holm == "reproduced" and all(one.benjamini_hochberg == "reproduced" for one in among)
    missing = verdicts([finding("clip", 0.3, 0.03), finding("clip", 0.3, math.nan)])[0]
    assert missing.holm.startswith("undecided"), "a claim that was not tested still belongs to the family"


def planted(shift: float) -> list[Examined]:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(3, 4))
    return [
        Examined(run="", prompt=prompt, seed=seed, values={"clip": 20 + i + shift + 0.1 * noise[i, seed]})
        for i, prompt in enumerate(("a mug", "a duck", "a car"))
        for seed in range(4)
    ]


def test_a_planted_ordering_is_found_and_its_opposite_is_contradicted() -> None:
    experiment = replace(
        EXPERIMENTS[0],
        claims=(Claim("clip", "cfd", "sds", ""), Claim("clip", "sds", "cfd", ""), Claim("clip", "cfd", "ism", "")),
    )
    groups = {"cfd": planted(0.5), "sds": planted(0.0), "ism": planted(0.5)}
    found = papers.findings_of(experiment, groups, {})
    table = papers.claims_table([("a table", one) for one in found], Judges(scorers=[Scorer(SCORER)]))
    assert [row[-2] for row in table.rows] == ["reproduced", "contradicted", "undecided (no difference)"]
    assert all(row[1] == "3D-CLIP, toybox features" for row in table.rows)
    assert present(found[0].difference).value == pytest.approx(0.5)


def test_an_undecided_ordering_needs_as_many_runs_as_the_power_of_its_test_asks_for() -> None:
    """Prompts that differ among each other spread the pairs, which the test sees and the interval within prompts does
    not."""
    apart = np.array([0.2, 0.2, 0.2, 0.6, 1.8, 1.2])[:, None] + 0.8 * np.random.default_rng(0).normal(size=(6, 5))
    ours, theirs = (
        [
            Examined(run="", prompt=f"prompt {i}", seed=seed, values={"clip": 20 + side * apart[i, seed]})
            for i in range(6)
            for seed in range(5)
        ]
        for side in (1, 0)
    )
    claim = Claim("clip", "cfd", "sds", "")
    found = Finding(claim, compare.difference("clip", ours, theirs, {}), compare.difference_p("clip", ours, theirs, {}))
    asked = float(lab_claims.verdict(found, 1.0, 1000).split("about ")[1].split()[0])
    quantiles = stats.norm.isf(0.05 / 2000) + stats.norm.isf(0.2)
    assert asked + 30 == pytest.approx((quantiles * apart.std(ddof=1) / apart.mean()) ** 2, rel=0.25)
    within = math.sqrt(apart.var(1, ddof=1).mean())
    assert (quantiles * within / apart.mean()) ** 2 < 0.7 * (asked + 30), "control: the spread within prompts alone"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variants, a claim on splats and one on pictures, few views and draws."""
    few = {name: variants(1)[name] for name in ("sds", "cfd")}
    monkeypatch.setattr(papers, "variants", lambda steps: few)
    claims = (Claim("similarity", "cfd", "sds", ""),)
    splats = replace(EXPERIMENTS[0], variants=("sds", "cfd"), metrics=("similarity", "fid"), claims=claims)
    monkeypatch.setattr(papers, "EXPERIMENTS", (splats, EXPERIMENTS[1]))
    monkeypatch.setattr(lab_examine, "VIEWS", 12)
    monkeypatch.setattr(compare, "DRAWS", 50)
    monkeypatch.setattr(references, "SAMPLER_STEPS", 2)


class OneProcess:
    """A pool that makes the runs in this process; those of `failing` end badly."""

    made: ClassVar[list[str]] = []
    failing: ClassVar[set[str]] = set()

    def __init__(self, journal: Path, device: str, **options: object) -> None:
        self.worker = Worker(Path.cwd(), journal, gscfd.__version__)
        self.ended: dict[str, Outcome] = {}

    def free(self) -> bool:
        return True

    def start(self, run: str, config: Config) -> Place:
        self.made.append(run)
        failed = config.guidance in self.failing
        self.ended[run] = Outcome("refused", "fog") if failed else self.worker.make(config)
        return Place("here", 1)

    def wait(self, seconds: float) -> dict[str, Outcome]:
        ended, self.ended = self.ended, {}
        return ended

    def stop(self) -> None:
        pass


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[OneProcess]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(OneProcess, "made", [])
    monkeypatch.setattr(sweeps_make, "RayPool", OneProcess)
    monkeypatch.setitem(lab_claims.SIZES, "smoke", TINY)
    yield OneProcess
    torch.set_num_threads(threads)


def test_the_bench_makes_runs_pictures_and_a_page_once_and_goes_on_with_more_seeds(
    small: None, one_process: type[OneProcess], tmp_path: Path
) -> None:
    report = papers.papers(options.BenchOptions(out=tmp_path))
    assert not report.warnings and len(report.tables) == 3 and len(report.tables[0].rows) == 6
    assert all(row[-2] == "undecided (too few runs)" for row in report.tables[0].rows)
    page = (tmp_path / "report.html").read_text()
    assert "https:" not in page and all(cell in page for row in report.tables[1].rows for cell in row)
    assert "gscfd bench papers --size smoke:" in page
    with open(tmp_path / "runs.csv") as file:
        assert all(
            (tmp_path / row["run"]).exists() and not Path(row["run"]).is_absolute() for row in csv.DictReader(file)
        )
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pictures/*/*.png")}
    made |= {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/splat.ply")}
    assert len(made) == 2 + 5 * 4
    again = papers.papers(options.BenchOptions(out=tmp_path))
    assert again.tables[0].rows == report.tables[0].rows
    assert json.loads((tmp_path / "report.json").read_text())["tables"][0]["rows"] == report.tables[0].rows
    assert one_process.made == ["sds-a-yellow-duck-0", "cfd-a-yellow-duck-0"]
    assert "--seeds 2:" in papers.papers(options.BenchOptions(out=tmp_path, seeds=2)).notes[0]
    assert one_process.made[2:] == ["sds-a-yellow-duck-1", "cfd-a-yellow-duck-1"]
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_fresh_seeds_of_chosen_variants_make_a_report_of_their_own(
    small: None, one_process: type[OneProcess], tmp_path: Path
) -> None:
    report = papers.papers(options.BenchOptions(out=tmp_path, variants=("sds", "cfd"), first_seed=6))
    assert one_process.made == ["sds-a-yellow-duck-6", "cfd-a-yellow-duck-6"]
    assert not report.warnings and [table.title for table in report.tables] == ["Orderings", "CFD Tab. 2"]
    assert len(report.tables[0].rows) == 1, "verdicts are corrected for the chosen claims alone"
    assert "--first-seed 6 --variants sds cfd:" in report.notes[0] and "seeds 6 to 6" in report.notes[0]
    assert not (tmp_path / "pictures").exists()


def test_a_run_that_fails_is_named_and_the_rest_is_reported(
    small: None, one_process: type[OneProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_process, "failing", {"sds"})
    report = papers.papers(options.BenchOptions(out=tmp_path))
    assert any("sds" in line and "fog" in line for line in report.warnings)
    assert [table.title for table in report.tables] == ["Orderings", "CFD Tab. 4"]
    assert len(report.tables[0].rows) == 6, "claims without runs are undecided, not left out"
    assert (tmp_path / "report.md").read_text().startswith("Failed: ")
    assert bench.main(["papers", "--out", str(tmp_path)]) == 1


def test_ctrl_c_stops_the_bench_and_says_how_to_go_on(
    small: None,
    one_process: type[OneProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(worker: Worker, config: Config) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "make", interrupt)
    assert bench.main(["papers", "--out", str(tmp_path)]) == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_a_run_with_other_settings_is_refused_even_when_it_is_finished(
    small: None, one_process: type[OneProcess], tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    run = plan_runs(tmp_path, TINY, EXPERIMENTS)["cfd"][0]
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(to_yaml(replace(run.config, guidance="ism")))
    if state == "finished":
        (run.folder / runs_names.FINISHED_FILE).write_bytes(b"")
    assert bench.main(["papers", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "guidance = 'ism' (got 'cfd')" in error and "another --out" in error
    assert one_process.made == []


def test_an_unknown_bench_or_size_lists_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nerf", "--out", str(tmp_path)], ["papers", "--out", str(tmp_path), "--size", "huge"]):
        with pytest.raises(SystemExit) as stopped:
            bench.main(arguments)
        assert stopped.value.code == 2
    assert "smoke" in (error := capsys.readouterr().err) and "full" in error
