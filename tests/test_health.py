"""`gscfd doctor`, and the compiler that gsplat's kernels need."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest
import torch

from gscfd import doctor
from gscfd.config import Config, NoiseConfig
from gscfd.devices import choose_device, missing_kernels
from gscfd.errors import UserError
from gscfd.gpu import driver, nvrtc, toolkit
from gscfd.noise_kernels import cuda


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)


def make_toolkit(home: Path, release: str = "13.0", lib: str = "lib64/libcudart.so") -> Path:
    for name in ("bin/nvcc", "include/cuda_runtime.h", lib, "nvvm/bin/cicc"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    (home / "bin/nvcc").write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n")
    (home / "bin/nvcc").chmod(0o755)
    return home


def test_without_a_gpu_the_doctor_says_so_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def none() -> None:
        raise ImportError("CUDA's driver could not be loaded (no such file); install the driver")

    monkeypatch.setattr(driver, "library", none)
    monkeypatch.setattr("gscfd.health.is_here", lambda name: name.startswith("toybox/"))
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "missing driver: CUDA's driver could not be loaded" in said
    assert "do: install the driver" in said and "Runs on the CPU can: --device cpu" in said
    assert "ok      weights of toybox/multiview: here" in said


def test_with_all_in_place_the_doctor_is_content(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda")))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(driver, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    monkeypatch.setattr(cuda, "check", lambda device: None)
    gpu = {"is_available": True, "device_count": 1, "get_device_name": "H100", "get_device_capability": (9, 0)}
    for name, value in (gpu | {"mem_get_info": (70 * 2**30, 80 * 2**30)}).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert doctor.main([]) == 0, capsys.readouterr().out
    monkeypatch.setattr(driver, "version", lambda: (12, 4))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**20, 80 * 2**30))
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    for words in (
        "broken  driver: the GPU's driver supports CUDA 12.4, and torch needs 13.0",
        "broken  compute capability: 7.5",
        "broken  GPU memory: 0.0 of",
    ):
        assert words in said


def test_a_gpu_that_torch_cannot_use_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> tuple[int, int]:
        raise ImportError("CUDA's driver could not be loaded (no such file); install the driver")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for build, version, reason in (
        (None, none, "torch .* was built without CUDA; install a CUDA build"),
        ("13.0", none, "driver could not be loaded .*; install the driver"),
        ("13.0", lambda: (12, 4), "driver supports CUDA 12.4, and torch needs 13.0; install a newer driver"),
        ("13.0", lambda: (13, 1), "`nvidia-smi` must list a GPU"),
    ):
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(driver, "version", version)
        with pytest.raises(UserError, match=f"device: expected a CUDA device, got none .*{reason}.* --device cpu"):
            choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("noise", ["render", "cpu"])
def test_a_gpu_that_is_too_old_is_an_error_whatever_compiler_there_is(
    monkeypatch: pytest.MonkeyPatch, noise: Literal["render", "cpu"]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    said = missing_kernels(Config(device="cuda", noise=NoiseConfig(device=noise)))
    assert said is not None and "expected a GPU of compute capability 8.0" in said and "got 7.5; use" in said


def test_a_toolkit_of_the_wrong_version_or_without_its_parts_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    home = make_toolkit(tmp_path / "cuda")
    assert toolkit.fault(home) is None
    assert "expected nvcc 13.x" in str(toolkit.fault(make_toolkit(tmp_path / "old", "12.4")))
    for part in ("lib64/libcudart.so", "include/cuda_runtime.h", "bin/nvcc"):  # checked in the opposite order
        (home / part).unlink()
        assert part in str(toolkit.fault(home))
    monkeypatch.setenv("CUDA_HOME", str(home))
    with pytest.raises(UserError, match=r"expected bin/nvcc in .*; install it with `pip install 'gscfd\[cuda\]'`"):
        toolkit.find()


def test_the_packages_of_pip_become_a_toolkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    root = make_toolkit(tmp_path / "nvidia/cu13", lib="lib/libcudart.so.13")
    assert "libcudart.so" in str(toolkit.fault(root)), "the control: as they are, they are none"
    for _ in range(2):
        home = toolkit.assembled(root)
        assert toolkit.fault(home) is None
    assert not (home / "bin").is_symlink() and os.readlink(home / "lib64/libcudart.so") == str(
        root / "lib/libcudart.so.13"
    )
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="expected a writable cache folder"):
        toolkit.assembled(root)
