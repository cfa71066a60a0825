"""Checkpoints are whole or not there, and what is not whole is not believed."""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from present import present
from test_state import same

from gscfd.config import Config, plain
from gscfd.distil.state import Checkpoint, StateDict
from gscfd.errors import UserError
from gscfd.files import is_locked, lock
from gscfd.runs.checkpoint import FORMAT, Checkpoints
from gscfd.runs.names import changed_settings


def checkpoint(step: int, size: int = 40) -> Checkpoint:
    tensors = {"now/params/means": torch.full((size, 3), float(step)), "now/params/shN": torch.zeros(size, 0, 3)}
    tensors |= {"now/adam/means/step": torch.tensor(float(step)), "now/generator": torch.arange(9).byte()}
    state = StateDict(tensors, {"step": step, "rollbacks": 0, "good_step": step})
    return Checkpoint(stage="coarse", state=state, rows=step, device="cpu", config={"prompt": "ein Bär", "lr": 1e-3})


@pytest.fixture
def two(tmp_path: Path) -> Checkpoints:
    """Two checkpoints, of step 1 and step 2."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(checkpoint(1))
    checkpoints.save(checkpoint(2))
    return checkpoints


def test_what_is_read_is_what_was_written(two: Checkpoints) -> None:
    expected, got = checkpoint(2), present(two.newest())
    assert same(got.state.tensors, expected.state.tensors) and got.state.numbers == expected.state.numbers
    assert {**vars(got), "state": 0} == {**vars(expected), "state": 0}


def test_the_newest_are_kept(two: Checkpoints) -> None:
    two.save(checkpoint(3))
    names = sorted(path.name for path in two.folder.iterdir())
    assert names == ["000002.json", "000002.safetensors", "000003.json", "000003.safetensors"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "checkpoints", keep=2).newest() is None


def flip(path: Path, where: int) -> None:
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a bit of the tensors": lambda folder: flip(folder / "000002.safetensors", -5),
    "a bit of the tensors' header": lambda folder: flip(folder / "000002.safetensors", 12),
    "a bit of the step": lambda folder: flip(
        folder / "000002.json", (folder / "000002.json").read_bytes().index(b'"step": 2') + 8
    ),
    "a bit of a brace": lambda folder: flip(folder / "000002.json", 0),
    "a byte that is no text": lambda folder: (folder / "000002.json").write_bytes(b"\xff\xfe\xff"),
    "tensors cut short": lambda folder: (folder / "000002.safetensors").write_bytes(b"1234"),
    "an empty file": lambda folder: (folder / "000002.json").write_bytes(b""),
    "a file of something else": lambda folder: (folder / "000002.json").write_text("[1]"),
    "no tensors": lambda folder: (folder / "000002.safetensors").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(
    two: Checkpoints, damage: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(two.folder)
    assert present(two.newest()).state.numbers["step"] == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "000002 is damaged" in error and "the checkpoint before it" in error
    two.save(checkpoint(3))
    assert present(two.newest()).state.numbers["step"] == 3 and capsys.readouterr().err == "", "the damaged one is gone"
    assert two.numbers() == [1, 2]


def test_a_whole_newest_is_used_without_a_word(two: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    """The control of the test above."""
    assert present(two.newest()).state.numbers["step"] == 2 and capsys.readouterr().err == ""


def test_damage_everywhere_is_an_error_and_not_a_fresh_start(two: Checkpoints) -> None:
    flip(two.folder / "000001.safetensors", -5)
    flip(two.folder / "000002.safetensors", -5)
    with pytest.raises(UserError, match="got 2 that are damaged; start again"):
        two.newest()


@pytest.mark.parametrize("other", [0, FORMAT + 1, "one"])
def test_another_format_is_refused_by_its_name(two: Checkpoints, other: object) -> None:
    path = two.folder / "000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": other, "gscfd": "0.0.9"}))
    with pytest.raises(UserError, match=rf"format {FORMAT}, got format {other!r} in .*000002.json, .*gscfd 0\.0\.9"):
        two.newest()


def test_the_checkpoint_of_another_version_is_resumed_with_a_word(
    two: Checkpoints, capsys: pytest.CaptureFixture[str]
) -> None:
    path = two.folder / "000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "gscfd": "9.9.9"}))
    assert present(two.newest()).state.numbers["step"] == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "gscfd 9.9.9 wrote the checkpoint" in error


def test_settings_that_an_earlier_version_lacked_have_their_defaults() -> None:
    config = Config(prompt="a mug")
    saved = plain(config)
    del saved["noise"]["gamma_points"], saved["polish"]
    assert changed_settings(config, saved) == ""
    assert "polish.steps" in changed_settings(replace(config, polish=replace(config.polish, steps=7)), saved)
    assert "gone = 3 (got None)" in changed_settings(config, saved | {"gone": 3}), "a setting that is no more"


def test_what_a_killed_write_left_is_not_a_checkpoint(two: Checkpoints) -> None:
    (two.folder / "000003.safetensors").write_bytes(b"whole, but its .json was never written")
    (two.folder / ".000003.json.77.tmp").write_bytes(b"{")
    assert present(two.newest()).state.numbers["step"] == 2


def test_a_full_disk_leaves_the_checkpoints_before_intact(two: Checkpoints) -> None:
    before = {path.name: path.read_bytes() for path in two.folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError):
            two.save(checkpoint(3, size=400))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in two.folder.iterdir()} == before
    two.save(checkpoint(3, size=400))
    assert present(two.newest()).state.numbers["step"] == 3


def test_a_lock_is_held_by_one_and_free_when_its_file_is_closed(tmp_path: Path) -> None:
    with open(tmp_path / "file", "ab") as first, open(tmp_path / "file", "ab") as second:
        assert lock(first) and not lock(second)
        first.close()
        assert lock(second)


@pytest.mark.parametrize("instant", [True, False])
def test_a_look_at_a_lock_keeps_it_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: bool) -> None:
    """The control: a process that keeps it."""
    path = tmp_path / "x"
    with open(path, "ab") as looking, open(path, "ab") as file:
        assert not is_locked(path) and lock(looking) and is_locked(path)
        monkeypatch.setattr("gscfd.files.time.sleep", lambda seconds: looking.close() if instant else None)
        assert lock(file) is instant
