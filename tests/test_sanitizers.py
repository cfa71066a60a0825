"""The native code under AddressSanitizer and UndefinedBehaviorSanitizer, over the test scenes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "gscfd"
COMPILER = shutil.which("g++") or shutil.which("c++")
FLAGS = ["-std=gnu++17", "-O1", "-g1", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

SCENES = """
import sys
from pathlib import Path
import gscfd
gscfd.__path__.insert(0, sys.argv[1])
import torch
from scenes import figure, render_scene, sphere, views
from gscfd import native
from gscfd.gaussians import ball, rasterize
from gscfd.noise import NoiseField, kinds
from gscfd.noise_kernels import cpu
from gscfd.cameras import turntable

torch.set_num_threads(2)
for latent, image in (((16, 16), (64, 64)), ((12, 20), (25, 40)), ((24, 24), (10, 10)), ((7, 5), (33, 65))):
    cameras = views(20, 110, size=image)
    for hit in (figure(), sphere((0.0, 0.0, -50.0), 0.1), sphere((0.0, 0.0, 0.0), 4.0)):
        render = render_scene(hit, cameras)
        render.depth[0, :3] = torch.tensor(float("nan"))
        for radius in (1, 3):
            field = NoiseField(2**64 - 1, 5, *latent, background="direction", beta=0.5, normal_radius=radius)
            for kind in (kinds.surface, kinds.radial, kinds.world_map, kinds.fixed, kinds.iid):
                assert kind(field, cameras, render, 1000).isfinite().all()
            for grid in (kinds.grid(field), kinds.radial_grid(field)):
                cpu.owners(grid, render.depth[1, ..., 0], render.opacity[1, ..., 0], cameras.viewmats[1], cameras.Ks[1])
far = NoiseField(0, 4, 8, 8, footprint=1e-9)
cameras = views(0, size=16)
kinds.surface(far, cameras, render_scene(figure(), cameras), 0)
kinds.radial(far, cameras, render_scene(figure(), cameras), 0)
for degree in (0, 3):
    gaussians = ball(300, radius=0.6, opacity=0.5, sh_degree=degree, generator=torch.Generator().manual_seed(0))
    for size in (64, 33):
        render = rasterize(gaussians, turntable(2, size=size))
        (render.rgb.sum() + render.depth.sum() + render.opacity.sum()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in gaussians.params.values())
assert str(Path(native.library()._name).parent) == sys.argv[1]
print("clean")
"""

BROKEN = """
extern "C" __attribute__((visibility("default"))) int read_past(int n) {
    int* values = new int[4]();
    const int value = values[n];
    delete[] values;
    return value;
}
"""


def runtime() -> Path | None:
    """The compiler's AddressSanitizer library, which must be loaded before Python; None where there is none."""
    if COMPILER is None:
        return None
    name = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    return Path(name).resolve() if os.path.isabs(name) and os.path.exists(name) else None


def build(sources: list[Path], target: Path) -> None:
    """One shared library for the baseline instruction set; skips the test where the compiler has no sanitizers."""
    preload = runtime()
    if COMPILER is None or preload is None:
        pytest.skip("needs g++ with AddressSanitizer and UndefinedBehaviorSanitizer")
    defines = ["-DGSCFD_ISA=baseline", "-DGSCFD_HAS_BASELINE", f"-I{PACKAGE / 'csrc_common'}"]
    subprocess.run([COMPILER, *FLAGS, *SANITIZE, *defines, *map(str, sources), "-o", str(target)], check=True)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizers loaded; leaks are not looked for, Python itself has some."""
    environment = os.environ | {
        "LD_PRELOAD": str(runtime()),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment, timeout=800
    )


@pytest.mark.timeout(900)
def test_noise_and_rasterizer_are_clean_under_the_sanitizers(tmp_path: Path) -> None:
    sources = sorted([*PACKAGE.glob("csrc_common/*.cpp"), *PACKAGE.glob("*/csrc/*.cpp")])
    build(sources, tmp_path / "libgscfd_cpu.so")
    done = run(SCENES, str(tmp_path))
    assert done.returncode == 0 and done.stdout == "clean\n", done.stdout + done.stderr[-4000:]


def test_the_sanitizers_see_a_read_past_the_end(tmp_path: Path) -> None:
    """Negative control."""
    (tmp_path / "broken.cpp").write_text(BROKEN)
    build([tmp_path / "broken.cpp"], tmp_path / "broken.so")
    script = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).read_past({})"
    assert run(script.format(3), str(tmp_path / "broken.so")).returncode == 0
    done = run(script.format(4), str(tmp_path / "broken.so"))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr or "insufficient space" in done.stderr, (
        "either of the two may be first"
    )
