"""Seeded runs keep their bytes: a change that is meant to change nothing leaves these hashes as they are.

`python tests/test_golden.py` prints the hashes of this kind of CPU, for a change that is meant to change splats.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from gscfd import train
from gscfd.distil.state import StageState

HASHES = Path(__file__).parent / "golden.json"
SHORT = ["--prompt", "a red mug", "--seed", "5", "--coarse.steps", "60", "--refine.steps", "40", "--no-viewer"]


def kind_of_cpu() -> str:
    """Returns everything that rounding depends on: vendor, instruction set, torch and its number of threads."""
    info = Path("/proc/cpuinfo")
    words = info.read_text().split("\n") if info.is_file() else []
    vendor = next((line.split(":")[1].strip() for line in words if line.startswith("vendor_id")), platform.machine())
    isa = torch.backends.cpu.get_cpu_capability()
    return f"{vendor}, {isa}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def made(folder: Path, *options: str) -> str:
    """Makes a run and returns the hash of its splat."""
    assert train.main([*SHORT, "--out", str(folder), "--dtype", "float32", "--device", "cpu", *options]) == 0
    return digest(folder)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "splat.ply").read_bytes()).hexdigest()


def expected(name: str) -> str:
    hashes = json.loads(HASHES.read_text()).get(kind_of_cpu())
    if hashes is None:
        pytest.skip(f"no hashes for {kind_of_cpu()}")
    return str(hashes[name])


def test_a_seeded_run_keeps_its_bytes_and_so_does_the_same_run_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = expected("cfd")
    assert made(tmp_path / "whole") == wanted
    advance = StageState.advance

    def stop_at_thirty(state: StageState) -> None:
        advance(state)
        if state.step == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StageState, "advance", stop_at_thirty)
        cut = tmp_path / "cut"
        options = ["--out", str(cut), "--dtype", "float32", "--device", "cpu", "--checkpoint.every", "10"]
        assert train.main([*SHORT, *options, "--checkpoint.seconds", "0"]) == 130
    assert train.main(["--resume", str(cut)]) == 0 and digest(cut) == wanted


def test_a_seeded_run_of_vsd_keeps_its_bytes(tmp_path: Path) -> None:
    wanted = expected("vsd")
    assert made(tmp_path / "vsd", "--guidance", "vsd") == wanted


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = {"cfd": made(Path(folder) / "cfd"), "vsd": made(Path(folder) / "vsd", "--guidance", "vsd")}
    print(json.dumps({kind_of_cpu(): runs}, indent=1), file=sys.stdout)


if __name__ == "__main__":
    main()
