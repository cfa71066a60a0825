"""The command on folders of true objects: those of the right prompt must score better than those of a wrong one."""

import csv
import importlib.util
import json
import math
import re
import shutil
import sys
import types
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from present import present
from safetensors.torch import load_file, save_file
from scipy import stats
from splats import write_run
from torch import Tensor

from gscfd import evaluate
from gscfd.config import Config, Edit, merged
from gscfd.errors import UserError
from gscfd.lab import examine as lab_examine
from gscfd.lab import truths as lab_truths
from gscfd.lab.catalogue import METRICS, NAMES
from gscfd.lab.compare import difference, difference_p, estimate, statistic, wins
from gscfd.lab.evaluation import judged_by
from gscfd.lab.examine import Examined, examine, labels_of
from gscfd.lab.intervals import FEWEST, bootstrap
from gscfd.lab.judges import SCORER, Aesthetic, Inception, Judges, Scorer
from gscfd.lab.options import EvaluateOptions
from gscfd.lab.references import Reference
from gscfd.lab.report import Table, figure
from gscfd.lab.tables import run_table
from gscfd.runs.names import read_run
from gscfd.sweeps.journal import JOURNAL, Journal
from gscfd.toybox.words import Caption

REFERENCES = re.compile(r"https?:|(src|href)=[\"'](?!data:)|url\(|@import|<script|<link", re.IGNORECASE)
"""What would make a page ask for something else."""
PROMPTS = {"a yellow duck": ("duck", "yellow"), "a red car": ("car", "red")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of two prompts: `cfd` made what was asked, `sds` the other kind."""
    out, kinds = tmp_path_factory.mktemp("runs"), list(PROMPTS.values())
    made = []
    for guidance in ("cfd", "sds"):
        for i, (prompt, asked) in enumerate(PROMPTS.items()):
            kind, color = asked if guidance == "cfd" else kinds[1 - i]
            for seed in (0, 1):
                folder = out / f"{guidance}-{kind}-{seed}"
                made.append(write_run(folder, prompt=prompt, seed=seed, guidance=guidance, kind=kind, color=color))
    return made


@pytest.fixture(scope="module")
def report(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command wrote about them, and about a folder that is no run."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab_examine, "VIEWS", 24)
        patch.setattr(lab_examine, "FID_EVERY", 1)
        patch.setattr(lab_truths, "OBJECTS", 12)
        arguments = [*map(str, runs), str(folder / "nothing"), "--pickscore", str(SCORER), "--samples", "24"]
        assert evaluate.main([*arguments, "--report", str(folder)]) == 0
    return folder


def figures(report: Path) -> dict[str, Any]:
    """The estimates of the first table: by metric, then label."""
    found: dict[str, Any] = json.loads((report / "report.json").read_text())["tables"][0]["estimates"]
    return found


def test_what_was_asked_for_scores_better_than_something_else(report: Path) -> None:
    found = figures(report)
    for name in ("clip", "similarity", "r_precision", "pickscore", "nearest"):
        right, wrong = found[name]["cfd"]["value"], found[name]["sds"]["value"]
        assert (right > wrong) if METRICS[name].better == "higher" else (right < wrong), name
    pooled = [found["fid"][guidance]["value"] for guidance in ("cfd", "sds")]
    assert pooled[0] == pytest.approx(pooled[1], rel=1e-3), "over all prompts together both made the same objects"
    assert found["r_precision"]["cfd"]["value"] > 0.9 and found["r_precision"]["sds"]["value"] < 0.1


def test_what_runs_recorded_is_read_without_the_steps_that_were_taken_back(report: Path) -> None:
    found = figures(report)
    assert found["seconds"]["cfd"]["value"] == pytest.approx(6) and found["memory"]["cfd"]["value"] == 3
    assert found["variance_means"]["cfd"]["value"] == pytest.approx(0.5)
    assert found["variance_sh0"]["cfd"]["value"] == pytest.approx(0.5**0.5)


def test_the_page_holds_its_numbers_and_pictures_and_nothing_from_outside(report: Path) -> None:
    page = (report / "report.html").read_text()
    tables = json.loads((report / "report.json").read_text())["tables"]
    cells = [cell for table in tables for row in table["rows"] for cell in row]
    assert len(cells) > 50 and all(cell in page for cell in cells)
    assert "12345.678" not in page
    assert "3D-FID, toybox features ↓" in page and "retrieval among 2 prompts, chance level 50.0%" in page
    assert not REFERENCES.search(page) and REFERENCES.search('<img src="https://example.org/a.png">')
    assert page.count("data:image/jpeg") == 2 and page.count("data:image/png") >= 5
    assert "the toybox scorer" in page and "true objects of the toybox" in page


def test_the_rows_of_the_csv_are_the_runs(report: Path, runs: list[Path]) -> None:
    rows = list(csv.DictReader((report / "runs.csv").open()))
    assert [row["run"] for row in rows] == [str(run) for run in runs]
    assert float(rows[0]["seconds"]) == pytest.approx(6) and rows[0]["label"] == "cfd" and rows[4]["label"] == "sds"


def test_a_folder_without_a_run_and_a_metric_without_weights_are_named(report: Path) -> None:
    warnings = json.loads((report / "report.json").read_text())["warnings"]
    assert any("nothing has no config.yaml" in line for line in warnings)
    assert any("aesthetic" in line and "sac+logos+ava1-l14-linearMSE.pth" in line for line in warnings)
    assert any("3D-IS" in line and "4 seeds" in line for line in warnings)
    assert not any("R-precision" in line for line in warnings)


def test_win_rates_are_told_where_a_ranker_looked(report: Path) -> None:
    tables = json.loads((report / "report.json").read_text())["tables"]
    (table,) = [table for table in tables if table["title"].startswith("Win rates")]
    assert table["rows"][0][0] == "cfd" and table["rows"][0][2].startswith("1.00")
    assert table["rows"][1][1].startswith("0.00")


def test_without_any_finished_run_it_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("prompt: a mug\n")
    assert evaluate.main([str(tmp_path)]) == 2
    assert "no splat.ply" in (error := capsys.readouterr().err) and "expected at least one finished run" in error
    with pytest.raises(UserError, match=r"no splat.ply"):
        read_run(tmp_path)


def test_an_unknown_metric_lists_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(tmp_path), "--metrics", "psnr"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and all(name in error for name in NAMES)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["runs", "at least one"]),
        (["{run}", "--samples", "1"], ["samples", "at least 2"]),
        (["{run}", "--inception", "/nowhere"], ["inception", "/nowhere"]),
        (["{run}", "--aesthetic", "{run}/splat.ply"], ["aesthetic", "sac+logos+ava1-l14-linearMSE.pth", "splat.ply"]),
        (["{run}", "--clip", "/nowhere"], ["clip", "/nowhere", "tokenizer"]),
        (["{run}", "--report", "{run}/splat.ply"], ["report", "splat.ply", "--report"]),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str], words: list[str], runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([argument.format(run=runs[0]) for argument in arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and all(word in error for word in words), error


def test_a_report_does_not_replace_the_table_of_a_sweep(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Journal(tmp_path / JOURNAL).close()
    (tmp_path / "runs.csv").write_text("of the sweep")
    assert evaluate.main([str(runs[0]), "--report", str(tmp_path)]) == 2
    assert f"--report {tmp_path / 'report'}" in capsys.readouterr().err
    assert (tmp_path / "runs.csv").read_text() == "of the sweep"


def test_without_matplotlib_the_error_says_what_to_install(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert evaluate.main([str(runs[0]), "--report", str(tmp_path)]) == 2
    assert "matplotlib" in (error := capsys.readouterr().err) and "pip install 'gscfd[eval]'" in error


def test_prompts_beyond_the_toybox_are_not_judged_by_its_scorer(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab_examine, "VIEWS", 12)
    folder = write_run(tmp_path / "owl", prompt="a steampunk owl", seed=0, kind="duck", color="brown")
    assert evaluate.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "3D-CLIP (clip) is skipped" in out and "openai/clip-vit-base-patch32" in out and "reprojection error" in out


def test_a_prompt_beyond_the_toybox_leaves_the_others_judged(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lab_examine, "VIEWS", 12)
    monkeypatch.setattr(lab_truths, "OBJECTS", 12)
    owl = write_run(tmp_path / "owl", prompt="a steampunk owl", seed=0, kind="duck", color="brown")
    chosen = ["--metrics", "similarity", "holes"]
    assert evaluate.main([str(runs[0]), str(owl), *chosen, "--report", str(tmp_path / "page")]) == 0
    duck, other = (tmp_path / "page" / "scores.md").read_text().splitlines()[2:4]
    assert duck.count("n/a") == 0 and other.split("|")[4].strip() == "n/a" and other.count("n/a") == 1
    notes = json.loads((tmp_path / "page" / "report.json").read_text())["notes"]
    assert any("does not know 'a steampunk owl'" in note for note in notes)


def test_the_note_on_the_references_counts_their_pictures() -> None:
    features = torch.zeros(36, 2)
    references = {"a mug": Reference(features, features, features[:, 0])}
    options, judges = EvaluateOptions(runs=(Path("run"),), samples=5000), Judges(scorers=[Scorer(SCORER)])
    told = " ".join(judged_by(options, judges, references, ["a mug"], ["a mug"]))
    assert "at least 36 pictures for each of 1 of 1 prompts" in told and "5000" not in told


def test_true_objects_are_compared_alike_whatever_size_the_networks_look_at(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab_examine, "VIEWS", 2)
    monkeypatch.setattr(lab_truths, "OBJECTS", 8)
    lab_truths.truths_of.cache_clear()
    small, large = (lab_examine.examine(runs[0], Judges(), [], size=size, truths=True).values for size in (128, 256))
    for name in ("nearest", "nearest_true", "speckle"):
        assert small[name] == large[name]
    assert small["holes"] != large["holes"], "control: the others see the views of that size"
    lab_truths.truths_of.cache_clear()


def test_a_value_that_is_none_is_left_out_of_the_mean() -> None:
    def run(value: float) -> Examined:
        return Examined(
            run="", prompt="a mug", seed=0, values={"holes": value}, frames=np.zeros((1, 2, 2, 3), np.uint8)
        )

    rows = run_table([run(0.1), run(math.nan), run(0.3)], ["holes"], Judges()).rows
    assert [row[3] for row in rows] == ["10.00%", "n/a", "30.00%", "20.00%"]
    assert run_table([run(math.nan)], ["holes"], Judges()).rows[-1][3] == "n/a"


# Networks


def test_the_aesthetic_score_is_the_linear_stack_on_clips_features(tmp_path: Path) -> None:
    scorer, generator = Scorer(SCORER), torch.Generator().manual_seed(0)
    first, second = torch.randn(4, 128, generator=generator), torch.randn(1, 4, generator=generator)
    bias = {"layers.0.bias": torch.ones(4), "layers.2.bias": torch.full((1,), 2.0)}
    torch.save({"layers.0.weight": first, "layers.2.weight": second, **bias}, tmp_path / "linear.pth")
    images = torch.rand(3, 3, 64, 64, generator=generator)
    expected = (scorer.image_features(images) @ first.T + 1) @ second.T + 2
    assert torch.allclose(Aesthetic(tmp_path / "linear.pth", [scorer]).scores(images), expected[:, 0], atol=1e-5)
    torch.save({"layers.0.weight": torch.ones(4, 768), "layers.0.bias": torch.ones(4)}, tmp_path / "wide.pth")
    with pytest.raises(UserError, match="width 768.*clip-vit-large-patch14"):
        Aesthetic(tmp_path / "wide.pth", [scorer])


def test_inception_is_shown_bytes_and_answers_with_features_and_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Network(torch.nn.Module):
        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048", "logits_unbiased"])

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            assert images.dtype == torch.uint8
            mean = images.float().mean((1, 2, 3))
            return mean[:, None].expand(-1, 2048), torch.stack([mean, torch.zeros_like(mean)], 1)

    module = types.SimpleNamespace(FeatureExtractorInceptionV3=Network)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    weights = tmp_path / "inception.pth"
    torch.save({"weight": torch.zeros(1)}, weights)
    features, classes = Inception(weights).look(torch.linspace(0, 1, 40)[:, None, None, None].expand(-1, 3, 8, 8))
    assert features.shape == (40, 2048) and features[-1, 0] == 255
    assert torch.allclose(classes.sum(1), torch.ones(40)) and classes[-1, 0] > classes[0, 0]
    torch.save({"weight": Caption}, weights)
    with pytest.raises(UserError, match="pickled Python objects"):
        Inception(weights)
    weights.write_text("<html>")
    with pytest.raises(UserError, match="inception.pth"):
        Inception(weights)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r"pip install 'gscfd\[eval\]'"):
        Inception(weights)


def test_a_clip_is_shown_pictures_as_its_preprocessor_says(tmp_path: Path) -> None:
    for file in SCORER.iterdir():
        (tmp_path / file.name).symlink_to(file)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = Scorer(SCORER).image_features(images)
    assert torch.equal(Scorer(tmp_path).image_features(images), plain)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    shifted = Scorer(tmp_path).image_features((images - 0.5) / 0.5)
    assert torch.allclose(shifted, plain, atol=1e-5)
    assert not torch.allclose(Scorer(tmp_path).image_features(images), plain, atol=1e-2)


def test_with_two_seeds_the_interval_of_the_diversity_is_over_prompts() -> None:
    generator = torch.Generator().manual_seed(0)

    def seen(prompt: str, spread: float) -> list[Examined]:
        common = torch.ones(12, 4)
        sides = [F.normalize(common + spread * torch.randn(12, 4, generator=generator), dim=-1) for _ in range(2)]
        return [replace(examined(prompt, seed), sides=sides[seed]) for seed in range(2)]

    prompts = [f"prompt {i}" for i in range(6)]
    wide, narrow = ([run for prompt in prompts for run in seen(prompt, spread)] for spread in (1.0, 0.1))
    each = [present(estimate("diversity", wide[2 * i : 2 * i + 2], {})).value for i in range(6)]
    found = present(estimate("diversity", wide, {}))
    apart = present(difference("diversity", wide, narrow, {}))
    assert found.value == pytest.approx(sum(each) / 6) and found.count == 12
    half = stats.t.ppf(0.975, 5) * np.std(each, ddof=1) / 6**0.5
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.2)
    assert apart.low > 0, "six prompts agree"
    assert present(difference("diversity", wide, wide, {})).value == 0
    assert math.isnan(present(estimate("diversity", wide[:2], {})).low), "one pair says nothing of its spread"


@pytest.mark.parametrize("damage", ["missing", "cut short", "without a weight", "of another model"])
def test_a_clip_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "clip"
    if damage != "missing":
        shutil.copytree(SCORER, folder)
    weights = folder / "model.safetensors"
    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    if damage == "without a weight":
        state = load_file(weights)
        del state["visual_projection.weight"]
        save_file(state, weights, {"format": "pt"})
    if damage == "of another model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=str(folder)):
        Scorer(folder)


def test_a_caption_is_read_alike_alone_and_among_others() -> None:
    alone, among = Scorer(SCORER), Scorer(SCORER)
    captions = ["a red mug", "a blue duck", "a red mug"]
    features = among.text_features(captions)
    assert torch.equal(features[0], features[2]) and torch.equal(among.text_features(["a blue duck"]), features[1:2])
    assert torch.allclose(alone.text_features(["a blue duck"]), features[1:2], atol=1e-6)
    assert not torch.allclose(features[0], features[1], atol=1e-2)


# Sets of runs


def examined(prompt: str, seed: int, **values: float) -> Examined:
    return Examined(run=f"{prompt}-{seed}", prompt=prompt, seed=seed, values=values)


def test_differences_are_of_equal_prompts_and_seeds() -> None:
    ours = [examined("a mug", seed, clip=10.0 * seed + 1) for seed in range(6)]
    theirs = [examined("a mug", seed, clip=10.0 * seed) for seed in range(5, 0, -1)]
    found = present(difference("clip", ours, theirs, {}))
    assert found.count == 5 and found.value == pytest.approx(1)
    assert (found.low, found.high) == pytest.approx((1, 1)), "paired, what the seeds have in common cancels"
    assert difference("clip", ours, [examined("a duck", 1, clip=1.0)], {}) is None
    assert present(wins("clip", ours, theirs)).value == 1 and present(wins("clip", theirs, ours)).value == 0
    assert math.isnan(present(wins("clip", ours, theirs)).low), "five of five are not surely all"
    theirs[0].values["clip"] += 2
    found = present(wins("clip", ours, theirs))
    assert found.value == 0.8 and found.low < 0.8 < found.high


def test_few_runs_are_shown_themselves_instead_of_an_interval() -> None:
    runs = [examined("a mug", seed, holes=0.1 * seed) for seed in range(6)]
    few, many = present(estimate("holes", runs[:3], {})), present(estimate("holes", runs, {}))
    assert figure(few, ".1f") == "0.1 (0.0, 0.1, 0.2)" and math.isnan(few.low)
    assert figure(many, ".1f").startswith("0.2 [") and many.runs == () and many.low >= 0


def test_p_of_a_difference_is_small_only_if_the_pairs_agree() -> None:
    ours = [examined("a mug", seed, clip=10.0 * seed + 1 + 0.1 * (seed % 3)) for seed in range(10)]
    theirs = [examined("a mug", seed, clip=10.0 * seed) for seed in range(10)]
    assert difference_p("clip", ours, theirs, {}) == pytest.approx(2 / 2**10)
    mixed = [replace(run, values={"clip": 10.0 * run.seed + (-1) ** run.seed}) for run in ours]
    assert difference_p("clip", mixed, theirs, {}) > 0.5
    assert math.isnan(difference_p("clip", ours[:4], theirs, {}))
    assert math.isnan(difference_p("clip", ours, [], {}))


def test_a_prompt_that_loses_its_pairs_is_left_out_of_a_difference_of_spreads() -> None:
    generator = torch.Generator().manual_seed(0)

    def seen(prompt: str, seeds: Iterable[int]) -> list[Examined]:
        sides = F.normalize(torch.randn(8, 12, 4, generator=generator), dim=-1)
        return [replace(examined(prompt, seed), sides=sides[seed]) for seed in seeds]

    ours, theirs = seen("a mug", range(4)), seen("a mug", range(4))
    whole = present(difference("diversity", ours, theirs, {}))
    one_pair = difference("diversity", ours + seen("a duck", [0, 1]), theirs + seen("a duck", [1, 2]), {})
    assert one_pair == whole and whole.count == 4
    assert difference("diversity", seen("a duck", [0, 1]), seen("a duck", [1, 2]), {}) is None


def test_the_interval_of_fid_is_over_seeds_and_not_over_prompts() -> None:
    """The reference is of all prompts: runs of some of them alone have another FID, however alike the seeds are."""
    generator = torch.Generator().manual_seed(0)
    prompts = [f"prompt {i}" for i in range(4)]
    far = {prompt: 20.0 * torch.randn(3, generator=generator) for prompt in prompts}

    def pictures(prompt: str, shift: float = 0.0) -> Tensor:
        return far[prompt] + shift + torch.randn(40, 3, generator=generator)

    references = {p: Reference(pictures(p), torch.zeros(1, 3), torch.zeros(1)) for p in prompts}

    def runs(shift: float) -> list[Examined]:
        return [replace(examined(p, seed), pictures=pictures(p, shift)) for p in prompts for seed in range(3)]

    found = present(difference("fid", runs(1.0), runs(0.0), references))
    assert 0 < found.low < found.value < found.high < 3 * found.value
    together = bootstrap(
        statistic("fid", ones := runs(1.0), references), [run.prompt for run in ones], within=FEWEST, draws=50
    )
    assert together.error > 5 * found.error, "control: all runs resampled together"


def test_a_metric_without_what_it_needs_has_no_estimate() -> None:
    runs = [examined("a mug", seed, clip=1.0) for seed in range(4)]
    assert present(estimate("clip", runs, {})).value == 1
    assert all(estimate(name, runs, {}) is None for name in ("fid", "is", "diversity", "janus", "pickscore"))


def test_runs_are_named_by_what_differs_between_them() -> None:
    changes: list[dict[str, object]] = [
        {"guidance": "cfd"},
        {"guidance": "cfd", "noise": {"gamma": 0.01}},
        {"guidance": "sds"},
        {"guidance": "cfd", "noise": {"kind": "surface"}},
    ]
    unset = merged(Config(prompt="a mug"), {"noise": {"gamma": None}})
    named = labels_of([merged(unset, {**change, "seed": i}) for i, change in enumerate(changes)])
    assert named == ["cfd", "cfd, gamma 0.01", "sds", "cfd"]
    assert labels_of([Config(seed=1), Config(seed=2, prompt="a mug")]) == ["cfd", "cfd"]
    edits = (Edit(step=2, prompt="a blue mug"), Edit(step=5, cfg=2.0))
    assert labels_of([Config(), replace(Config(), edits=edits)]) == ["cfd", "cfd, edits 2"]


def test_a_cell_of_a_table_is_one_line() -> None:
    table = Table(title="", note="", columns=["prompt"], rows=[["a | red\nduck"]])
    assert table.markdown().splitlines()[-1] == "| a / red duck |" and len(table.markdown().splitlines()) == 3
    assert table.text(80).splitlines()[-1] == "a | red duck" and len(table.text(80).splitlines()) == 2


def test_a_table_fits_the_terminal_and_shows_every_cell() -> None:
    rows = [[f"prompt {i}", str(i), *(f"<{i}.{k}>" for k in range(12))] for i in range(20)]
    tall = Table(title="", note="", columns=["prompt", "seed", *(f"figure {k}" for k in range(12))], rows=rows, names=2)
    wide = replace(tall, rows=rows[:3])
    for table, width in ((tall, 60), (wide, 30)):
        text = table.text(width)
        blocks = text.split("\n\n")
        assert max(map(len, text.splitlines())) <= width and len(blocks) > 1
        assert all(text.count(cell) == 1 for row in table.rows for cell in row[2:])
        aligned = [{line.index("<") for line in block.splitlines() if "<" in line} for block in blocks]
        assert all(len(places) == 1 for places in aligned), "the columns are aligned"
    assert all(block.startswith("prompt     seed") for block in tall.text(60).split("\n\n")), (
        "every block names its rows"
    )
    assert [line.split()[0] for line in wide.text(200).splitlines()[:2]] == ["prompt", "seed"], "figures go down"
    assert tall.text(1000).count("\n\n") == 0, "control: a wide terminal has the table whole"


def test_numbers_in_labels_have_few_digits_unless_they_would_look_alike() -> None:
    def configs(*gammas: float) -> list[Config]:
        return [merged(Config(), {"noise": {"gamma": gamma}}) for gamma in gammas]

    assert labels_of(configs(0.008299120597, 0.0)) == ["cfd, gamma 0.008299", "cfd, gamma 0"]
    assert labels_of(configs(0.12345, 0.12346)) == ["cfd, gamma 0.12345", "cfd, gamma 0.12346"]


def test_a_single_prompt_has_no_r_precision(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_examine, "VIEWS", 12)
    found = examine(runs[0], Judges(scorers=[Scorer(SCORER)]), ["a yellow duck"], size=32)
    assert "r_precision" not in found.values and not math.isnan(found.values["similarity"])
    assert yaml.safe_load((runs[0] / "config.yaml").read_text())["prompt"] == "a yellow duck"
