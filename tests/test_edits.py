"""What is changed in the viewer belongs to the run: it is recorded, resumed and repeated exactly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gscfd import train
from gscfd.config import CdsConfig, Config, Edit, StageName, load_preset, merged, plain
from gscfd.distil.edits import LiveSettings, last_settings, settings_at, time_range, with_edit
from gscfd.distil.preflight import check_settings
from gscfd.distil.stage import StepReport
from gscfd.errors import UserError
from gscfd.runs.folder import RunFolder
from gscfd.runs.names import read_run
from gscfd.viewer import steer
from gscfd.viewer.live import LiveViewer

RUN = ["--coarse.steps", "4", "--refine.steps", "2", "--refine.views", "1", "--init.count", "200"]
RUN += ["--polish.steps", "0"]
RUN += ["--checkpoint.every", "2", "--checkpoint.seconds", "0", "--viewer.port", "8740"]
EDITS: dict[tuple[StageName, int], Edit] = {
    ("coarse", 1): Edit(stage="coarse", prompt="a red duck", cfg=9.0, t_range=(0.3, 0.6)),
    ("refine", 0): Edit(stage="refine", cfg=6.0),
}
RECORDED = (
    Edit(stage="coarse", step=2, prompt="a red duck", cfg=9.0, t_range=(0.3, 0.6)),
    Edit(stage="refine", step=1, cfg=6.0),
)


# Which settings a step has.


def test_an_edit_counts_from_its_step_on_and_the_prompt_in_the_next_stage_too() -> None:
    config = replace(Config(prompt="a yellow duck"), edits=RECORDED)
    before, after = settings_at(config, (0, 0, 1)), settings_at(config, (0, 0, 2))
    assert (before.prompt, before.coarse.cfg) == ("a yellow duck", 6.0)
    assert (after.prompt, after.coarse.cfg, time_range(after, "coarse")) == ("a red duck", 9.0, (0.3, 0.6))
    refine = settings_at(config, (1, 0, 0))
    assert (refine.prompt, refine.refine) == ("a red duck", config.refine)
    assert last_settings(config).refine.cfg == 6.0


def test_an_edit_stays_when_the_watchdog_goes_back_behind_it() -> None:
    config = replace(Config(), edits=(Edit(step=50, cfg=7.0), Edit(rollbacks=1, step=40, cfg=8.0)))
    cfgs = [settings_at(config, (0, *where)).coarse.cfg for where in [(0, 49), (0, 60), (1, 39), (1, 40), (2, 0)]]
    assert cfgs == [6.0, 7.0, 7.0, 8.0, 8.0]


def test_edits_are_kept_in_the_order_of_the_run_and_at_one_place_the_last_one_counts() -> None:
    config = Config()
    for edit in (Edit(step=9, cfg=1.0), Edit(step=3, cfg=2.0), Edit(step=3, cfg=3.0), Edit(stage="refine", cfg=4.0)):
        config = with_edit(config, edit)
    assert [edit.cfg for edit in config.edits] == [2.0, 3.0, 1.0, 4.0]
    assert settings_at(config, (0, 0, 3)).coarse.cfg == 3.0


def test_with_cds_the_times_are_those_of_cds() -> None:
    config = replace(Config(), guidance="cds", edits=(Edit(t_range=(0.2, 0.4)),))
    stage = last_settings(config).coarse
    assert (stage.cds.t_min, stage.cds.t_max) == time_range(last_settings(config), "coarse") == (0.2, 0.4)
    assert (stage.t_min, stage.t_max) == (0.02, 0.98)
    with pytest.raises(UserError, match="cds.t_min, t_max"):
        last_settings(replace(config, edits=(Edit(t_range=(0.2, 0.98)),)))
    assert isinstance(stage.cds, CdsConfig)


def test_edits_are_read_from_the_config_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(plain(replace(Config(prompt="a mug"), edits=RECORDED))))
    assert load_preset(str(path)).edits == RECORDED
    for edit, words in (({"cgf": 3}, "unknown key 'edits.cgf'; did you mean 'cfg'"), ({"cfg": -1}, "cfg: expected")):
        path.write_text(yaml.safe_dump({"edits": [edit]}))
        with pytest.raises(UserError, match=words):
            load_preset(str(path))


# Runs.


def watched_run(
    *arguments: str, edits: Mapping[tuple[StageName, int], Edit] = EDITS, stop: tuple[str, int] | None = None
) -> int:
    """A run of the command line in which somebody makes these edits after the steps, and stops it after one."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        on_step = LiveViewer.on_step

        def and_edit(self: LiveViewer, report: StepReport, live: LiveSettings) -> None:
            if (report.stage, report.step) in edits:
                self.controls.edit(edits[report.stage, report.step])
            if (report.stage, report.step) == stop:
                self.controls.stop()
            on_step(self, report, live)

        monkeypatch.setattr(LiveViewer, "on_step", and_edit)
        return train.main([*arguments, "--viewer"])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def splat(folder: Path) -> bytes:
    return (folder / "splat.ply").read_bytes()


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was edited twice, and not stopped."""
    out = tmp_path_factory.mktemp("runs") / "edited"
    assert watched_run("--prompt", "a yellow duck", *RUN, "--out", str(out)) == 0
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, stopped in the viewer after the first edit, to be copied."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    code = watched_run("--prompt", "a yellow duck", *RUN, "--out", str(out), stop=("coarse", 2))
    assert code == 130
    return out


def test_edits_are_recorded_in_the_config_and_at_their_steps(edited: Path) -> None:
    assert load_preset(str(edited / "config.yaml")).edits == RECORDED
    assert load_preset(str(edited / "config.yaml")).prompt == "a yellow duck"
    made = {(row["stage"], row["step"]): row["edits"] for row in rows(edited) if "edits" in row}
    assert made == {
        ("coarse", 2): [{"prompt": "a red duck", "cfg": 9.0, "t_range": [0.3, 0.6]}],
        ("refine", 1): [{"cfg": 6.0}],
    }
    times = [row["t"] for row in rows(edited)]
    assert times[1] > 0.6 > times[2] > 0.3, "the times follow"
    assert "a red duck" in (edited / "log.txt").read_text()
    assert read_run(edited)[0].prompt == "a red duck", "it is scored by what it was asked for in the end"


def test_a_run_stopped_in_the_viewer_resumes_with_its_edits_to_the_same_file(
    edited: Path, stopped: Path, tmp_path: Path
) -> None:
    again = shutil.copytree(stopped, tmp_path / "run")
    assert [row["step"] for row in rows(again)] == [0, 1, 2]
    assert watched_run("--resume", str(again)) == 0
    assert splat(again) == splat(edited)
    assert [(row["stage"], row["step"], row.get("edits")) for row in rows(again)] == [
        (row["stage"], row["step"], row.get("edits")) for row in rows(edited)
    ]


def test_edits_after_the_checkpoint_are_made_again(edited: Path, stopped: Path, tmp_path: Path) -> None:
    """As after a kill: of the checkpoints only the one from before the edit is left."""
    again = Path(shutil.copytree(stopped, tmp_path / "run"))
    for path in sorted((again / "checkpoints").iterdir())[2:]:
        path.unlink()
    later: dict[tuple[StageName, int], Edit] = {("refine", 0): EDITS["refine", 0]}
    assert watched_run("--resume", str(again), edits=later) == 0
    assert splat(again) == splat(edited)


def test_an_edited_run_is_repeated_from_its_config(
    edited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--preset", str(edited / "config.yaml"), "--out", str(tmp_path / "run")]
    assert watched_run(*config, edits={}) == 0
    assert splat(tmp_path / "run") == splat(edited)
    assert "made again at their steps: 2" in capsys.readouterr().out


def test_without_its_edits_the_run_gives_another_file(
    edited: Path, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control; and a checkpoint knows the edits it was made with."""
    again = Path(shutil.copytree(stopped, tmp_path / "run"))
    settings = yaml.safe_load((again / "config.yaml").read_text())
    (again / "config.yaml").write_text(yaml.safe_dump({**settings, "edits": []}))
    assert watched_run("--resume", str(again), edits={}) == 2
    assert "resume: expected the settings" in capsys.readouterr().err
    shutil.rmtree(again / "checkpoints")
    assert watched_run("--resume", str(again), edits={}) == 0
    assert splat(again) != splat(edited)


def test_an_edit_that_was_written_by_hand_is_checked_as_the_prompt_is() -> None:
    known, unknown = (
        merged(load_preset("toybox"), {"prompt": "a mug", "edits": [{"stage": "coarse", "step": 3, "prompt": text}]})
        for text in ("a red mug", "a zebra")
    )
    check_settings(known)
    with pytest.raises(UserError, match="edits: prompt: the toybox teachers do not know 'zebra'"):
        check_settings(unknown)


def test_words_that_the_teachers_do_not_know_are_answered_and_change_nothing(stopped: Path, tmp_path: Path) -> None:
    again, answers = Path(shutil.copytree(stopped, tmp_path / "run")), []
    before = (again / "config.yaml").read_text()
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_edit = steer.make_edit

        def noted(live: LiveSettings, run: RunFolder, report: StepReport, edit: Edit) -> str:
            answers.append(make_edit(live, run, report, edit))
            return answers[-1]

        monkeypatch.setattr(steer, "make_edit", noted)
        edits: dict[tuple[StageName, int], Edit] = {
            ("coarse", 3): Edit(stage="coarse", cfg=1.0),
            ("refine", 0): Edit(stage="refine", prompt="a dragon"),
        }
        watched_run("--resume", str(again), edits=edits, stop=("refine", 0))
    assert "the coarse stage has made its last step" in answers[0]
    assert "Not changed. prompt: the toybox teachers do not know 'dragon'" in answers[1]
    assert (again / "config.yaml").read_text() == before
