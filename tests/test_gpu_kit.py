"""The kit for the first minutes on a GPU: results survive whatever a part does, and they fit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts" / "gpu"))

import kit as kits
import prepare
import training
from kit import Kit, Part
from viewing import until


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    monkeypatch.setattr(kits, "START", time.monotonic())
    return Kit(tmp_path / "out", seconds=6000, device="cpu", small=False)


def test_a_part_that_crashes_hangs_or_raises_leaves_the_others_alone(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(kit: Kit) -> None:
        kit.note(reached="here")
        os.kill(os.getpid(), signal.SIGSEGV)

    nap = f"sleep 1234.{os.getpid()}"

    def hang(kit: Kit) -> None:
        subprocess.run(nap.split())

    def fail(kit: Kit) -> None:
        raise MemoryError("too large")

    def work(kit: Kit) -> None:
        print("words for the log")
        kit.check("sum", 1 + 1 == 2, measured=2)

    monkeypatch.setattr(kits, "LEAST", 0.5)
    kits.run(kit, Part("crash", crash, 600), Part("hang", hang, 2), Part("fail", fail, 600), Part("work", work, 600))
    assert set(kit.failures()) == {"crash", "hang", "fail"}
    lines = kit.lines()
    assert {"reached": "here"}.items() <= next(line for line in lines if line["part"] == "crash").items()
    assert any("MemoryError: too large" in line.get("failed", "") for line in lines)
    assert any("killed after 2 s" in line.get("failed", "") for line in lines)
    assert "words for the log" in kit.log.read_text()
    report = (kit.out / "report.md").read_text()
    assert "| sum | True | 2 |" in report and "Failed: " in report
    until(lambda: subprocess.run(["pgrep", "-f", f"^{nap}$"], capture_output=True).returncode == 1)


def test_no_part_starts_without_time_and_a_check_that_does_not_pass_fails(kit: Kit) -> None:
    kits.run(kit, Part("wrong", lambda kit: kit.check("law", False, measured=1), 600))
    kit.seconds = 0
    kits.run(kit, Part("late", lambda kit: kit.check("law", True), 20))
    assert kit.failures() == ["wrong", "late"] and kits.finish(kit) == 1


def test_results_fit_for_their_way_back(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.log.write_bytes(b"x" * (kits.MOST_LOG + 1000) + b"the end")
    kits.run(kit, Part("work", lambda kit: kit.note(done=True), 20))
    assert kits.finish(kit) == 0
    assert kit.log.stat().st_size < kits.MOST_LOG + 100 and kit.log.read_bytes().endswith(b"the end\n==== work\n")
    monkeypatch.setattr(kits, "MOST_BYTES", 1000)
    assert kits.finish(kit) == 1, "the control: the log is too large"


def test_weights_come_back_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PIECE", 5000)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/weights").write_bytes(os.urandom(12_000))
    training.pack(tmp_path / "teacher", tmp_path)
    pieces = sorted(tmp_path.glob("weights-*"))
    assert len(pieces) > 1 and max(piece.stat().st_size for piece in pieces) <= 5000
    (tmp_path / "whole.tar").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(tmp_path / "whole.tar") as archive:
        member: Any = archive.extractfile("teacher/weights")
        assert member.read() == (tmp_path / "teacher/weights").read_bytes()


def test_what_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "ROOT", tmp_path)
    monkeypatch.setattr(prepare, "travels", lambda: 1000)
    (tmp_path / "site/package").mkdir(parents=True)
    (tmp_path / "site/package/module.py").write_bytes(os.urandom(3000))
    (tmp_path / "site/package/__pycache__").mkdir()
    archive = tmp_path / "kit.tar.xz"
    prepare.pack(tmp_path / "site", archive)
    with tarfile.open(archive) as file:
        assert file.getnames() == ["package", "package/module.py"]
    assert prepare.show(tmp_path / "site", archive) == 0
    monkeypatch.setattr(prepare, "MOST_ARCHIVE", 2000)
    assert prepare.show(tmp_path / "site", archive) == 1
    assert "does not fit" in capsys.readouterr().err
