"""gsplat's kernels: compiled once, continued after an interruption, and every failure is one error."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gsplat
import pytest
import torch
from torch.utils import cpp_extension

from gscfd.errors import UserError
from gscfd.gpu import toolkit
from gscfd.rasterize import kernels


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(toolkit, "set_up", lambda: tmp_path)
    monkeypatch.setattr(kernels, "installed", lambda: False)


def compiler(monkeypatch: pytest.MonkeyPatch, work: Callable[[Path], None]) -> list[list[str]]:
    """Replaces torch's builder by `work`, which gets the folder; returns the sources of each call."""
    calls = list[list[str]]()

    def load(name: str, sources: list[str], build_directory: str, **options: Any) -> None:
        assert not (Path(build_directory) / "lock").exists(), "torch would wait for ever"
        calls.append(sources)
        work(Path(build_directory))

    monkeypatch.setattr(cpp_extension, "load", load)
    return calls


def compile_well(folder: Path) -> None:
    (folder / "a.o").write_text("object")
    (folder / kernels.LIBRARY).write_text("library")


def test_kernels_are_compiled_once_and_a_damaged_library_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = compiler(monkeypatch, compile_well)
    for _ in range(2):
        assert kernels.build(tmp_path / "k", ["9.0"]).read_text() == "library" and len(calls) == 1
    assert len(calls[0]) == 29 and not list((tmp_path / "k").glob("*.o"))
    said = capsys.readouterr().out
    assert "compiling its CUDA kernels for 9.0, once: 29 files" in said and said.count("compiling") == 1
    (tmp_path / "k" / kernels.LIBRARY).write_text("libr")
    assert not kernels.is_complete(tmp_path / "k")
    kernels.build(tmp_path / "k", ["9.0"])
    assert kernels.is_complete(tmp_path / "k") and len(calls) == 2


def test_an_interrupted_build_is_continued(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(folder: Path) -> None:
        (folder / "a.o").write_text("object")
        (folder / "lock").touch()
        raise KeyboardInterrupt

    compiler(monkeypatch, killed)
    with pytest.raises(KeyboardInterrupt):
        kernels.build(tmp_path / "k", ["9.0"])
    assert not kernels.is_complete(tmp_path / "k") and "interrupted" not in capsys.readouterr().out
    compiler(monkeypatch, compile_well)
    kernels.build(tmp_path / "k", ["9.0"])
    assert "an interrupted build is continued" in capsys.readouterr().out


def started(ninja: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Returns a process in the folder that bears its name, which it does a moment after it starts."""
    process = subprocess.Popen([ninja, "600"], cwd=folder)
    while Path(f"/proc/{process.pid}/comm").read_text() != "ninja\n":
        os.sched_yield()
    return process


def test_a_build_waits_for_the_ninja_of_a_killed_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: one of another folder."""

    left: subprocess.Popen[bytes]
    waits: bool

    def compile_alone(folder: Path) -> None:
        assert left.wait(60) < 0 if waits else left.poll() is None
        compile_well(folder)

    compiler(monkeypatch, compile_alone)
    monkeypatch.setattr("gscfd.rasterize.kernels.time.sleep", lambda seconds: left.kill())
    (tmp_path / "k").mkdir()
    shutil.copy(str(shutil.which("sleep")), tmp_path / "ninja")
    for place, waits in ((tmp_path / "k", True), (tmp_path, False)):
        left = started(tmp_path / "ninja", place)
        assert kernels.at_work(tmp_path / "k") is waits
        kernels.build(tmp_path / "k", ["9.0"])
        assert ("waiting for it" in capsys.readouterr().out) is waits
        left.kill()
        left.wait()


def test_a_failed_build_is_one_error_with_the_compilers_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("Error building extension 'csrc': [1/29]\nlong command\na.cu(3): error: no such thing\nmore")

    compiler(monkeypatch, fail)
    with pytest.raises(UserError, match=r"(?s)gsplat: expected .*\na.cu\(3\): error: no such thing.*--device cpu"):
        kernels.build(tmp_path / "k", ["9.0"])
    assert "long command" in (tmp_path / "k/build.log").read_text() and not kernels.is_complete(tmp_path / "k")


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler(monkeypatch, compile_well)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="writable cache folder .* got .*file/k.* XDG_CACHE_HOME"):
        kernels.build(tmp_path / "file/k", ["9.0"])


def test_a_full_cache_folder_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    compiler(monkeypatch, fill)
    with pytest.raises(UserError, match="200 MB of space, got .*/k .No space left on device.; free space"):
        kernels.build(tmp_path / "k", ["9.0"])

    def assembler(folder: Path) -> None:
        raise RuntimeError("Error building extension 'csrc'\n/tmp/a.s: Fatal: can't write a.o: No space left on device")

    compiler(monkeypatch, assembler)
    with pytest.raises(UserError, match="(?s)to compile, got .*No space left on device"):
        kernels.build(tmp_path / "k", ["9.0"])
    assert not kernels.is_complete(tmp_path / "k")


def test_kernels_that_do_not_load_are_an_error_and_gsplat_does_not_compile_them_in_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler(monkeypatch, compile_well)
    monkeypatch.setattr(kernels, "architectures", lambda: ["9.0"])
    with pytest.raises(UserError, match="gsplat: expected its CUDA kernels to load, got .*; remove .*sm90"):
        kernels.load()
    monkeypatch.setattr(kernels, "installed", lambda: True)
    with pytest.raises(UserError, match="gsplat: expected its CUDA kernels to load, got .*; take them out"):
        kernels.load()


def test_another_torch_or_gpu_has_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {kernels.build_folder(["9.0"]), kernels.build_folder(["8.0"]), kernels.build_folder(["8.0", "9.0"])}
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert len(folders | {kernels.build_folder(["9.0"])}) == 4


def test_the_kept_library_is_gsplats_own_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "csrc.py").write_text("who = 'kept'")
    monkeypatch.setitem(sys.modules, kernels.NAME, sys)
    monkeypatch.setattr(gsplat, "csrc", sys, raising=False)
    kernels.import_from(tmp_path / "csrc.py")
    from gsplat import csrc

    assert csrc.who == "kept"


def test_without_a_host_compiler_or_nvcc_the_fault_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.fault() is None

    def none() -> Path:
        raise UserError("CUDA_HOME: expected a CUDA compiler (nvcc), got none")

    monkeypatch.setattr(toolkit, "set_up", none)
    assert "nvcc" in str(kernels.fault())
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "g++" in str(kernels.fault())
