"""The CUDA noise against the CPU noise.

Tests with the `device` fixture run twice: on a GPU where there is one, and everywhere on the very kernels in
noise_cuda.cu, compiled as C++ and run one thread after another in a random order (cuda_on_cpu.h) behind the driver's
functions that the native library calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scenes import capsule, figure, render_scene, sphere, torus, union, views, wing
from torch import Tensor

from gscfd.config import Config, NoiseConfig, load_preset, merged
from gscfd.devices import left_alone, run_device
from gscfd.distil import preflight
from gscfd.errors import UserError
from gscfd.gpu import nvrtc
from gscfd.noise import field as noise_field
from gscfd.noise import kinds
from gscfd.noise.field import NoiseField
from gscfd.noise_kernels import cuda
from gscfd.noise_kernels.cells import Grid, Surface
from gscfd.rasterize import kernels
from gscfd.types import Cameras, Render

SOURCE = Path(__file__).parents[1] / "gscfd/noise_kernels/csrc/noise_cuda.cu"
EMULATED = Path(__file__).with_name("emulated_noise.cpp")
SCENES = {
    "sphere": sphere(),
    "figure": figure(),
    "torus": torus(),
    "wing": wing(),
    "empty": sphere((0.0, 0.0, -50.0), 0.1),
    "full": sphere((0.0, 0.0, 0.0), 2.0),
    "near": union(sphere((1.9, 0.4, 0.6), 0.5), capsule((0.0, -0.5, 0.0), (0.0, 0.5, 0.6), 0.15)),
}


@functools.cache
def scene(name: str, *azimuths: float, size: int | tuple[int, int] = 128) -> tuple[Cameras, Render]:
    cameras = views(*azimuths, size=size)
    return cameras, render_scene(SCENES[name], cameras)


class EmulatedDriver(cuda.Driver):
    def __init__(self, emulator: ctypes.CDLL | None = None):
        self.emulator = emulator

    def launcher(self, device: torch.device) -> int:
        assert self.emulator is not None
        self.emulator.emulator_launcher.restype = ctypes.c_void_p
        return int(self.emulator.emulator_launcher())

    def words(self, code: int) -> str:
        assert self.emulator is not None
        self.emulator.emulator_failure.restype = ctypes.c_char_p
        return str(self.emulator.emulator_failure().decode())

    def index(self, device: torch.device) -> int:
        return 0

    def guard(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def stream(self, device: torch.device) -> int:
        return 0

    def capturing(self) -> bool:
        return False

    def pinned(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64)

    def wait(self, index: int | None) -> None:
        pass


def emulate(folder: Path, *flags: str) -> ctypes.CDLL:
    """noise_cuda.cu as a library for the CPU."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    library = folder / "libemulated.so"
    command = [compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas", "-fPIC", "-shared"]
    command += [*flags, f"-I{EMULATED.parent}", f"-I{SOURCE.parent}", str(EMULATED), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return emulate(tmp_path_factory.mktemp("emulated"))


@dataclass
class Device:
    """Calls functions of gscfd.noise on CUDA, or on the emulated kernels; results are on the CPU."""

    emulator: ctypes.CDLL | None
    monkeypatch: pytest.MonkeyPatch
    calls: int = 0

    def __call__(
        self, function: Callable[..., Any], field: NoiseField, cameras: Cameras, render: Render, step: int
    ) -> Any:
        if self.emulator is None:
            found = function(field, cameras.to("cuda"), render.to("cuda"), step)
            torch.cuda.synchronize()
        else:
            self.calls += 1
            self.emulator.emulator_reset(self.calls)
            with self.monkeypatch.context() as patch:
                patch.setattr(kinds, "kernels", lambda device: cuda)
                patch.setattr(cuda, "driver", EmulatedDriver(self.emulator))
                found = function(field, cameras, render, step)
        if isinstance(found, Surface):
            return Surface(found.noise.cpu(), found.counts.cpu(), found.coverage.cpu())
        return found.cpu()


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.requires_cuda)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setattr(cuda, "_tables", {})
    library = request.getfixturevalue("emulated_library") if request.param == "emulated" else None
    yield Device(library, monkeypatch)


def set_table(monkeypatch: pytest.MonkeyPatch, cells_per_pixel: int) -> None:
    grid = kinds.grid
    monkeypatch.setattr(kinds, "grid", lambda field: replace(grid(field), cells_per_pixel=cells_per_pixel))


def assert_as_cpu(device: Device, field: NoiseField, cameras: Cameras, render: Render, step: int = 5) -> None:
    expected = kinds.surface_parts(field, cameras, render, step)
    found = device(kinds.surface_parts, field, cameras, render, step)
    same = found.counts == expected.counts
    error = (found.noise - expected.noise).abs().amax(1)[same].max()
    print(f"counts equal on {same.double().mean():.5f} of the pixels, values there within {error:.1e}")
    assert same.double().mean() >= (1 if device.emulator else 0.999)
    assert error < 1e-5
    assert torch.allclose(found.coverage, expected.coverage, rtol=0, atol=1e-6)
    whole = (device(kinds.surface, field, cameras, render, step) - kinds.surface(field, cameras, render, step)).abs()
    assert whole.amax(1)[same].max() < 1e-5


@pytest.mark.parametrize("name", SCENES)
def test_every_scene_has_the_noise_of_the_cpu(device: Device, name: str) -> None:
    assert_as_cpu(device, NoiseField(2**63 + 5, 4, 32, 32, gamma=1e-2), *scene(name, 23, 141))


@pytest.mark.parametrize(
    ("latent", "image"),
    [
        pytest.param((32, 32), (32, 32), id="s=1"),
        pytest.param((32, 32), (64, 64), id="s=2"),
        pytest.param((16, 16), (128, 128), id="s=8"),
        pytest.param((48, 80), (96, 160), id="48x80"),
        pytest.param((15, 24), (50, 80), id="no divisor"),
        pytest.param((32, 32), (20, 20), id="render smaller than latents"),
        pytest.param((2, 3), (64, 64), id="hundreds of samples and cells per latent pixel"),
    ],
)
@pytest.mark.parametrize("name", ["figure", "empty", "full"])
def test_every_shape_has_the_noise_of_the_cpu(
    device: Device, name: str, latent: tuple[int, int], image: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    footprint = None
    if latent == (2, 3):
        footprint = 1 / 32
        set_table(monkeypatch, 4096)
    assert_as_cpu(device, NoiseField(1, 4, *latent, footprint=footprint), *scene(name, 20, size=image))


@pytest.mark.parametrize("channels", [1, 3, 4, 16])
@pytest.mark.parametrize("background", noise_field.BACKGROUNDS)
def test_every_number_of_channels_and_background_has_the_noise_of_the_cpu(
    device: Device, background: str, channels: int
) -> None:
    field = NoiseField(3, channels, 12, 12, background=background, beta=0.8, gamma=1e-3)
    assert_as_cpu(device, field, *scene("figure", 20, 65, size=48))


def test_wide_normals_and_the_other_noise_functions_are_those_of_the_cpu(device: Device) -> None:
    cameras, render = scene("torus", 20, 65, size=48)
    assert_as_cpu(device, NoiseField(3, 4, 12, 12, normal_radius=2), cameras, render)
    field = NoiseField(3, 4, 12, 12, gamma=1e-3)
    for function in (kinds.iid, kinds.fixed):
        difference = device(function, field, cameras, render, 7) - function(field, cameras, render, 7)
        assert difference.abs().max() < 1e-5


def test_more_draws_than_one_launch_takes_are_those_of_the_cpu(device: Device) -> None:
    field = NoiseField(3, 4, 12, 12, span=1, gamma=1e-3)
    assert len(field.nodes(300)) > 256
    assert_as_cpu(device, field, *scene("figure", 20, size=48), step=300)


def test_undefined_depth_and_a_camera_inside_are_as_on_the_cpu(device: Device) -> None:
    cameras, render = scene("sphere", 20, size=64)
    depth = render.depth.clone()
    depth[:, :32] = torch.tensor([math.nan, math.inf, -1.0, 0.0]).repeat(16)[:, None]
    assert_as_cpu(device, NoiseField(0, 4, 16, 16), cameras, Render(render.rgb, depth, render.opacity))
    near = Render(render.rgb, torch.full_like(depth, 0.02), torch.ones_like(depth))
    assert_as_cpu(device, NoiseField(0, 4, 16, 16), cameras, near)
    far = Render(render.rgb, torch.full_like(depth, 1e9), torch.ones_like(depth))
    assert_as_cpu(device, NoiseField(0, 4, 16, 16), cameras, far)


def test_noise_depends_on_neither_the_order_of_threads_nor_the_batch(device: Device) -> None:
    cameras, render = scene("figure", 20, 110, 200, 290, size=64)
    field = NoiseField(2, 4, 16, 16, background="fresh", beta=0.9)
    together = device(kinds.surface, field, cameras, render, 3)
    for _ in range(3):
        assert torch.equal(together, device(kinds.surface, field, cameras, render, 3))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = Cameras(cameras.viewmats[order], cameras.Ks[order], 64, 64)
    other = Render(render.rgb[order], render.depth[order], render.opacity[order])
    assert torch.equal(together[order], device(kinds.surface, field, shuffled, other, 3))
    for v in range(4):
        alone = Render(render.rgb[v : v + 1], render.depth[v : v + 1], render.opacity[v : v + 1])
        assert torch.equal(together[v : v + 1], device(kinds.surface, field, cameras[v : v + 1], alone, 3))


def test_a_view_with_too_small_a_table_is_background_once_and_says_so(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras, render = scene("sphere", 20, 80)
    opacity = render.opacity.clone()
    opacity[1, 8:] = 0
    render = Render(render.rgb, render.depth, opacity)
    field = NoiseField(0, 4, 32, 32)
    expected = kinds.surface_parts(field, cameras, render, 0)
    set_table(monkeypatch, 1)
    poor = device(kinds.surface_parts, field, cameras, render, 0)
    assert poor.counts[0].sum() == 0 and (poor.noise[0] == 0).all()
    assert torch.equal(poor.counts[1], expected.counts[1]), "a view that fits is not touched"
    assert torch.allclose(poor.coverage, expected.coverage)
    with pytest.warns(RuntimeWarning, match="1 of 2 views .* background noise in an earlier step"):
        rich = device(kinds.surface_parts, field, cameras, render, 0)
    assert (rich.counts == expected.counts).double().mean() >= 0.999
    cuda._tables.clear()
    composed = device(kinds.surface, field, cameras, render, 0)
    screen = device(kinds.fixed, field, cameras, render, 0)
    assert torch.equal(composed[0], screen[0]), "white noise of the screen, never zeros"


def test_the_least_recently_used_table_makes_room_unless_a_graph_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Capturing(EmulatedDriver):
        on = False

        def capturing(self) -> bool:
            return self.on

    driver = Capturing()
    monkeypatch.setattr(cuda, "_tables", {})
    monkeypatch.setattr(cuda, "driver", driver)
    where, grid = torch.device("cuda", 0), Grid(height=8, width=8, pitch=0.1, layer_depth=1.0)
    tables = [cuda._table(where, 0, count, grid) for count in range(1, cuda.MAX_TABLES + 1)]
    driver.on = True
    assert cuda._table(where, 0, 2, grid) is tables[1], "captured"
    driver.on = False
    assert cuda._table(where, 0, 1, grid) is tables[0], "used again"
    for count in range(100, 100 + cuda.MAX_TABLES - 1):
        cuda._table(where, 0, count, grid)
    assert cuda._table(where, 0, 2, grid) is tables[1] and cuda._table(where, 0, 1, grid) is tables[0]
    assert len(cuda._tables) == cuda.MAX_TABLES + 1
    assert cuda._table(where, 0, 3, grid) is not tables[2]


# The emulation finds broken kernels


@pytest.mark.parametrize("flag", ["-DWITHOUT_SYNCWARP", "-DWITHOUT_ATOMICS"])
def test_a_race_is_found_out(flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_tables", {})
    device = Device(emulate(tmp_path, flag), monkeypatch)
    cameras, render = scene("torus", 20, 80, 200, size=64)
    field = NoiseField(0, 4, 16, 16)
    first = device(kinds.surface, field, cameras, render, 0)
    assert any(not torch.equal(first, device(kinds.surface, field, cameras, render, 0)) for _ in range(5))


# On a GPU only


@pytest.mark.requires_cuda
@pytest.mark.parametrize("background", noise_field.BACKGROUNDS)
def test_nothing_waits_for_the_device(background: str) -> None:
    cameras, render = scene("figure", 20, 80)
    cameras, render = cameras.to("cuda"), render.to("cuda")
    field = NoiseField(0, 4, 32, 32, background=background, beta=0.9)
    kinds.surface(field, cameras, render, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kinds.surface(field, cameras, render, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.requires_cuda
def test_a_captured_graph_draws_the_noise_of_new_depths() -> None:
    cameras, render = scene("figure", 20, 80)
    cameras, render = cameras.to("cuda"), render.to("cuda")
    other = scene("torus", 20, 80)[1].to("cuda")
    field = NoiseField(0, 4, 32, 32, background="direction", beta=0.9)
    expected = [kinds.surface(field, cameras, r, 3) for r in (render, other)]
    fixed = Render(render.rgb.clone(), render.depth.clone(), render.opacity.clone())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        kinds.surface(field, cameras, fixed, 3)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = kinds.surface(field, cameras, fixed, 3)
    for source, wanted in zip((render, other), expected, strict=True):
        fixed.depth.copy_(source.depth)
        fixed.opacity.copy_(source.opacity)
        graph.replay()
        assert torch.equal(drawn, wanted)


# Without a GPU


def nvrtc_or_skip() -> None:
    try:
        nvrtc.library()
    except ImportError:
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc")


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
def test_nvrtc_compiles_the_kernels_without_a_warning_or_a_spill_but_nothing_is_run(architecture: int) -> None:
    nvrtc_or_skip()
    if architecture not in nvrtc.architectures():
        pytest.skip(f"NVRTC {nvrtc.version()} does not know sm_{architecture}")
    code, log = nvrtc.compiled(SOURCE, f"sm_{architecture}", "--ptxas-options=-v")
    assert "warning" not in log.lower(), log
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        log,
        re.S,
    )
    for name, stack, stores, loads, registers in found:
        print(f"sm_{architecture} {name}: {registers} registers, stack {stack}, spills {stores} + {loads} bytes")
        assert stack == stores == loads == "0", name
    assert {name for name, *_ in found} == set(cuda.KERNELS)
    assert all(name.encode() in code for name in cuda.KERNELS)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nvcc_compiles_the_kernels_without_a_warning_too(tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++17", "-O3", "-fmad=false", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
    command += ["-arch=sm_90", "-cubin", str(SOURCE), "-o", str(tmp_path / "noise.cubin")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr


def test_compiled_kernels_are_kept_and_a_damaged_file_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvrtc_or_skip()
    calls = list[str]()

    def compiled(source: Path, architecture: str) -> tuple[bytes, str]:
        calls.append(architecture)
        return b"code", ""

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compiled", compiled)
    for _ in range(2):
        assert nvrtc.kernels(cuda.SOURCES, "sm_90") == b"code" and calls == ["sm_90"]
    path = nvrtc.cache_file(cuda.SOURCES, "sm_90")
    path.write_bytes(path.read_bytes()[:-1])
    assert nvrtc.kernels(cuda.SOURCES, "sm_90") == b"code" and calls == ["sm_90"] * 2
    assert nvrtc.cache_file(cuda.SOURCES, "sm_80") != path != nvrtc.cache_file(cuda.SOURCES[:2], "sm_90")


def test_a_cache_that_cannot_be_written_costs_time_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nvrtc_or_skip()
    (tmp_path / "gscfd").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compiled", lambda source, architecture: (b"code", ""))
    assert nvrtc.kernels(cuda.SOURCES, "sm_90") == b"code"
    assert "expected a writable cache folder" in capsys.readouterr().err


def test_gpus_too_old_and_newer_than_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "architectures", lambda: [75, 80, 90, 100])
    assert nvrtc.target((9, 0)) == "sm_90"
    assert nvrtc.target((12, 0)) == "compute_100"
    with pytest.raises(RuntimeError, match="8.0 .* or newer, got 7.5"):
        nvrtc.target((7, 5))


def test_a_compiler_that_is_missing_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libnvrtc.so.13").write_text("not a library")
    monkeypatch.setattr(nvrtc, "places", lambda: [tmp_path / "libnvrtc.so.13", "libnvrtc-of-nobody.so"])
    nvrtc.library.cache_clear()
    with pytest.raises(ImportError, match=r"(?s)/libnvrtc.so.13: .*libnvrtc-of-nobody.so: .*pip install nvidia-cuda"):
        nvrtc.library()
    nvrtc.library.cache_clear()


def test_the_launcher_and_the_counters_are_those_of_the_native_code() -> None:
    header = (SOURCE.parent / "noise_cuda.h").read_text()
    assert f"kCounterStride = {cuda.COUNTER_STRIDE};" in header
    order = re.search(r"enum Kernel \{ (.*?), kKernels", header)
    assert order and [f"gscfd_kernel_{name[1:].lower()}" for name in order[1].split(", ")] == cuda.KERNELS
    struct = re.search(r"struct Launcher \{(.*?)\};", header, re.S)
    fields = re.findall(r"\(\*(\w+)\)\(|void\* (\w+)(?:\[kKernels\])?;", struct[1] if struct else "")
    assert [a or b for a, b in fields] == [field[0] for field in cuda._Launcher._fields_]


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch finds one, and the code for it is compiled."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "fault", lambda: None)
    monkeypatch.setattr(cuda, "check", lambda device: None)


@pytest.mark.usefixtures("a_gpu")
def test_one_of_several_gpus_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert run_device(Config(device="cuda:1")) == torch.device("cuda", 1) and chosen == [torch.device("cuda", 1)]
    assert run_device(Config(device="cuda")) == torch.device("cuda") and len(chosen) == 1
    with pytest.raises(UserError, match="device: expected cuda:0 to cuda:1, .* got cuda:2"):
        run_device(Config(device="cuda:2"))
    with pytest.raises(UserError, match="device: expected auto, cpu, cuda, or cuda:N .* got 'gpu'"):
        Config(device="gpu")


def without_library(device: torch.device) -> None:
    raise ImportError("NVRTC, which compiles gscfd's CUDA kernels, could not be loaded; pip install it")


@pytest.mark.usefixtures("a_gpu")
def test_a_run_on_cuda_without_the_library_ends_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "check", without_library)
    config = Config(prompt="a yellow duck", device="cuda")
    with pytest.raises(UserError, match="(?s)noise.device: .*pip install it.*--noise.device cpu.*--device cpu"):
        preflight.preflight(config)
    preflight.preflight(Config(prompt="a yellow duck", device="cuda", noise=NoiseConfig(device="cpu")))
    preflight.preflight(Config(prompt="a yellow duck", device="cpu"))


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(
    "lacking, words",
    [
        ((cuda, "check", without_library), "NVRTC"),
        ((kernels, "fault", lambda: "there is no nvcc"), "gsplat's CUDA"),
    ],
)
def test_a_gpu_without_compiled_code_is_left_alone_by_the_toybox_and_not_by_large_teachers(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lacking: tuple[ModuleType, str, Callable[..., object]],
    words: str,
) -> None:
    toybox = Config(prompt="a yellow duck")
    large = merged(load_preset("mvdream-only"), {"prompt": "a corgi"})
    assert run_device(toybox).type == run_device(large).type == "cuda" and left_alone(toybox) is None
    monkeypatch.setattr(*lacking)
    assert run_device(toybox).type == "cpu" and words in str(left_alone(toybox))
    preflight.preflight(toybox)
    preflight.warn_of_left_gpu(toybox)
    assert words in capsys.readouterr().err
    for config in (large, replace(toybox, device="cuda")):
        with pytest.raises(UserError, match=f"(?s){words}.*--device cpu"):
            preflight.check_settings(config)
    asked = replace(large, device="cpu")
    assert run_device(asked).type == "cpu" and left_alone(asked) is None
    preflight.check_settings(asked)


def test_images_and_cameras_on_two_devices_are_refused() -> None:
    cameras, render = scene("sphere", 20, size=32)
    with pytest.raises(ValueError, match="render.depth: expected a tensor on meta as the cameras are, got one on cpu"):
        kinds.surface(NoiseField(0, 4, 8, 8), cameras.to("meta"), render, 0)
