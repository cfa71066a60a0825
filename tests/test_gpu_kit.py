"""The kit for the first minutes on a GPU: results survive whatever a part does, and they fit."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts" / "gpu"))

import kit as kits
import parts
import prepare
import second
import training
from kit import Kit, Part
from viewing import until

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize("stages", [("coarse", "polish"), ("coarse", "refine", "polish"), ("coarse",)])
def test_the_times_of_a_whole_run_are_those_of_the_stages_it_has(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, stages: tuple[str, ...]
) -> None:
    def run(arguments: list[str]) -> int:
        folder = Path(arguments[arguments.index("--out") + 1])
        folder.mkdir()
        rows: list[dict[str, Any]] = [{"stage": stages[0], "step": 0, "trouble": "empty"}]
        for stage in stages:
            rows += [{"stage": stage, "gaussians": 5, "loss": 1.0, "seconds": {"render": i / 1000}} for i in range(4)]
        (folder / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in ("splat.ply", "turntable.png"):
            (folder / name).write_text(name)
        return 0

    monkeypatch.setattr("gscfd.train.main", run)
    parts.whole_run(kit)
    times = {line["stage"]: line["ms"] for line in kit.lines() if "stage" in line}
    assert times == dict.fromkeys(stages, {"render": 2.5})
    assert not kit.failures() and (kit.out / "duck.ply").exists() and (kit.out / "duck.png").exists()


def test_every_test_that_needs_cuda_is_run_on_a_gpu() -> None:
    marked = {
        path.stem.removeprefix("test_")
        for path in (ROOT / "tests").glob("test_*.py")
        if re.search(r"^@pytest\.mark\.requires_cuda|marks=pytest\.mark\.requires_cuda", path.read_text(), re.M)
    }
    assert marked == set(parts.TESTS)


def test_a_part_that_is_named_twice_is_done_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[str] = []
    monkeypatch.setattr(kits, "begin", lambda options: Kit(tmp_path, 100, "cpu", small=True))
    monkeypatch.setattr(kits, "run", lambda kit, *some: done.extend(part.name for part in some))
    second.main(["--out", str(tmp_path), "--no-training", "full size", "mcmc"])
    assert done == ["full size", "mcmc", "environment", "noise times", "compiled"]


def rendering(tmp_path: Path, code: str) -> training.Renderer:
    """A renderer that does something else."""
    made = object.__new__(training.Renderer)
    made.folder = tmp_path / "groups"
    made.folder.mkdir(exist_ok=True)
    made.process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    return made


def test_a_training_without_data_or_time_is_not_begun(kit: Kit, tmp_path: Path) -> None:
    broken = rendering(tmp_path, "raise SystemExit(3)")
    until(lambda: broken.process.poll() is not None)
    begin = time.monotonic()
    kits.run(kit, training.part(broken, "multiview", ()))
    assert time.monotonic() - begin < 30 and "exit code 3" in kit.lines()[0]["failed"]
    busy = rendering(tmp_path, "import time; time.sleep(600)")
    try:
        assert busy.fault() is None, "the control: its groups may come yet"
        (tmp_path / "groups/0.safetensors").touch()
        kit.seconds = time.monotonic() - kits.START + kits.CLOSING + training.MARGIN + training.LEAST / 2
        kits.run(kit, training.part(busy, "multiview", ()))
    finally:
        busy.close()
    assert "no time was left" in kit.lines()[-2]["failed"]
    assert not (tmp_path / "groups").exists(), "26 GB of groups would leave no room for a second try"


def test_a_training_may_take_all_the_time_that_is_left(tmp_path: Path) -> None:
    busy = rendering(tmp_path, "import time; time.sleep(600)")
    try:
        assert training.part(busy, "singleview", ()).seconds == math.inf
    finally:
        busy.close()
