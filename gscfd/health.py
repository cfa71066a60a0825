"""What a GPU needs to make a run, checked one by one: `gscfd doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from gscfd.errors import UserError
from gscfd.gpu import driver, nvrtc, toolkit
from gscfd.noise_kernels import cuda
from gscfd.rasterize import kernels
from gscfd.teachers.find import MVDREAM_MIRROR, SD21_MIRROR
from gscfd.teachers.kinds import is_here

State = Literal["ok", "missing", "broken"]
TEACHERS = ("toybox/multiview", "toybox/singleview", MVDREAM_MIRROR, SD21_MIRROR)
LEAST_MEMORY = 2 * 2**30
"""Bytes of free GPU memory below which no run with large teachers starts."""
CUDA_BUILD = "install a CUDA build of torch: `pip install --force-reinstall torch` on Linux"


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    state: State
    words: str
    action: str = ""
    """What to do next; empty if the state is ok."""


def findings() -> Iterator[tuple[str, Finding]]:
    """Yields each check's name and result."""
    checks: dict[str, Callable[[], Finding]] = {
        "driver": driver_state,
        "torch's CUDA": torch_state,
        "GPU": gpu_state,
        "compute capability": capability_state,
        "GPU memory": memory_state,
        "compiler": compiler_state,
        "gsplat's kernels": renderer_state,
        "noise kernels": noise_state,
    }
    for name, check in checks.items():
        yield name, check()


def driver_state() -> Finding:
    if (fault := driver.fault()) is not None:
        words, _, action = fault.partition("; ")
        state: State = "broken" if "torch needs" in words else "missing"
        return Finding(state, words, action or "install the driver of the GPU's vendor again")
    return Finding("ok", "supports CUDA {}.{}".format(*driver.version()))


def torch_state() -> Finding:
    if torch.version.cuda is None:
        return Finding("missing", f"torch {torch.__version__} was built without CUDA", CUDA_BUILD)
    return Finding("ok", f"torch {torch.__version__}, CUDA {torch.version.cuda}")


def gpu_state() -> Finding:
    if not torch.cuda.is_available():
        return Finding("missing", "torch finds no GPU", "mend the lines above; until then, runs use the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("ok", ", ".join(names))


def without_gpu() -> Finding:
    return Finding("missing", "no GPU to ask", "mend the lines above")


def capability_state() -> Finding:
    if not torch.cuda.is_available():
        return without_gpu()
    major, minor = torch.cuda.get_device_capability()
    if 10 * major + minor < nvrtc.OLDEST:
        return Finding("broken", f"{major}.{minor}, and gscfd needs 8.0", "use an A100, RTX 30xx or newer, or the CPU")
    return Finding("ok", f"{major}.{minor}")


def memory_state() -> Finding:
    if not torch.cuda.is_available():
        return without_gpu()
    free, total = torch.cuda.mem_get_info()
    words = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if free < LEAST_MEMORY:
        return Finding("broken", words, "end other programs on the GPU (`nvidia-smi` lists them)")
    return Finding("ok", words)


def compiler_state() -> Finding:
    if (fault := kernels.compiler_fault()) is None:
        home = toolkit.find()
        return Finding("ok", f"nvcc {toolkit.version(home)}, CUDA_HOME {home}")
    if kernels.there():
        return Finding("ok", "none, and none needed: gsplat's kernels are compiled")
    words, _, action = fault.partition("; ")
    return Finding("missing" if "got none" in words else "broken", words, action)


def renderer_state() -> Finding:
    if not kernels.there():
        if kernels.compiler_fault() is not None:
            return Finding("missing", "neither compiled nor to be compiled", "mend the compiler")
        half = torch.cuda.is_available() and any(kernels.build_folder(kernels.architectures()).glob("*.o"))
        words = "an interrupted build of them is continued" if half else "compiled"
        return Finding("ok", f"{words} at the first run, which takes 2 to 10 minutes, once")
    try:
        kernels.load()
    except UserError as error:
        words, _, action = str(error).partition("; ")
        return Finding("broken", words, action)
    return Finding("ok", "in gsplat's package" if kernels.installed() else "compiled on this machine")


def noise_state() -> Finding:
    try:
        found = f"NVRTC {nvrtc.version()}"
    except ImportError as error:
        return Finding("missing", str(error).splitlines()[0], str(error).splitlines()[-1])
    if not torch.cuda.is_available():
        return Finding("ok", f"{found} compiles them at the first use on a GPU")
    try:
        cuda.check(torch.device("cuda"))
    except (ImportError, RuntimeError) as error:
        return Finding("broken", str(error), "report this, or draw the noise on the CPU: --noise.device cpu")
    return Finding("ok", f"compiled by {found} and loaded")


def weights() -> Iterator[tuple[str, Finding]]:
    """Yields which teachers' weights are on this machine; nothing is fetched."""
    for name in TEACHERS:
        if is_here(name):
            yield name, Finding("ok", "here")
        else:
            yield name, Finding("missing", "not on this machine", "fetched by the first run that uses them")
