"""gsplat's CUDA kernels: taken from its package or from the user's cache folder, or compiled into that, once.

gsplat's own build at the first render shows no progress, keeps a broken build, and turns a missing compiler into an
AttributeError at the first render. Here torch's builder compiles the same sources; objects that an interrupted build
has finished are kept.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import torch
from tqdm import tqdm

from gscfd.errors import UserError
from gscfd.files import atomic_write, cache_folder, lock
from gscfd.gpu import nvrtc, toolkit

NAME = "gsplat.csrc"
LIBRARY = "csrc.so"
MARK = "complete"
"""File beside a finished library: its SHA-256."""
USUAL_MAX_ALPHA = 0.999
"""Of gsplat 1.5.3."""
JOB_MEMORY = 2 * 2**30
"""Bytes that compiling one file takes at most, about."""


def installed() -> bool:
    """Returns whether gsplat's package brings its kernels."""
    return importlib.util.find_spec(NAME) is not None


def there() -> bool:
    """Returns whether the kernels need not be compiled."""
    return installed() or (torch.cuda.is_available() and is_complete(build_folder(architectures())))


def mend() -> str:
    """Returns what to do about kernels that do not load."""
    if installed():
        return "take them out, and they are compiled again: `pip install --force-reinstall --no-deps gsplat`"
    return f"remove {build_folder(architectures())}, and they are compiled again"


@functools.cache
def max_alpha() -> float:
    """Returns the largest alpha of a splat, as the sources of the installed gsplat have it: 0.999 in 1.5.3, 0.99 in
    versions after it."""
    package = Path(str(importlib.util.find_spec("gsplat").origin)).parent / "cuda"  # type: ignore[union-attr]
    places = {
        "include/Common.h": r"#define MAX_ALPHA ([.0-9]+)f",
        "csrc/RasterizeToPixels3DGSFwd.cu": r"alpha = min\(([.0-9]+)f, opac",
    }
    for name, pattern in places.items():
        with suppress(OSError):
            if found := re.search(pattern, (package / name).read_text(encoding="utf-8", errors="replace")):
                return float(found[1])
    return USUAL_MAX_ALPHA


def architectures() -> list[str]:
    """Returns the compute capabilities of the GPUs that torch sees, such as 9.0, in ascending order, without those that
    are too old for gscfd."""
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f"{major}.{minor}" for major, minor in sorted(found) if 10 * major + minor >= nvrtc.OLDEST]


def build_folder(targets: Sequence[str]) -> Path:
    """Returns where the kernels for these compute capabilities are kept: another gsplat, torch, Python or GPU has its
    own folder."""
    versions = f"{importlib.metadata.version('gsplat')}-torch-{torch.__version__}"
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return cache_folder() / "gsplat" / "-".join((versions, python, *(f"sm{t.replace('.', '')}" for t in targets)))


def is_complete(folder: Path) -> bool:
    """Returns whether a folder holds a finished and undamaged build."""
    try:
        return (folder / MARK).read_text() == digest(folder / LIBRARY)
    except OSError:
        return False


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load() -> None:
    """Makes gsplat's kernels importable as gsplat.csrc; compiles them if they never were, which takes minutes.

    Raises UserError if they are missing and cannot be compiled, or do not load.
    """
    try:
        if installed():
            importlib.import_module(NAME)
            return
        targets = architectures()
        if not targets:
            raise UserError("gsplat: expected a GPU of compute capability 8.0 or newer, got none; use --device cpu")
        folder = build_folder(targets)
        if not is_complete(folder):
            build(folder, targets)
        import_from(folder / LIBRARY)
    except ImportError as error:  # gsplat itself would compile them anew, in silence
        raise UserError(f"gsplat: expected its CUDA kernels to load, got {error}; {mend()}") from None


def import_from(library: Path) -> None:
    """Imports a library as the module gsplat.csrc."""
    import gsplat

    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = gsplat.csrc = module


def build(folder: Path, targets: Sequence[str]) -> Path:
    """Compiles the kernels into the folder, with progress, and returns the library. Objects that an interrupted build
    left there are used; where another process builds into the folder, this one waits for it.

    targets: compute capabilities, such as 9.0. Raises UserError, with the compiler's words, if it fails.
    """
    toolkit.set_up()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock.gscfd", "ab") as file:
            wait_for(file, folder)
            if not is_complete(folder):
                compile_all(folder, targets)
                with atomic_write(folder / MARK) as mark:
                    mark.write(digest(folder / LIBRARY).encode())
                for path in folder.glob("*.o"):
                    path.unlink()
    except OSError as error:
        raise UserError(
            f"gsplat: expected a writable cache folder with 200 MB of space, got {folder} ({error.strerror}); free "
            "space there, or set XDG_CACHE_HOME to another folder"
        ) from None
    return folder / LIBRARY


def wait_for(file: IO[bytes], folder: Path) -> None:
    """Locks the file, after any other process that holds the lock, and after what a killed one has left running."""
    told = False
    while not lock(file) or at_work(folder):
        if not told:
            print(f"gsplat: another process compiles its CUDA kernels into {folder}; waiting for it", flush=True)
        told = True
        time.sleep(1)


def at_work(folder: Path) -> bool:
    """Returns whether ninja runs in the folder: it outlives a process that was killed."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "comm").read_text() == "ninja\n" and (process / "cwd").readlink() == folder.resolve():
                return True
    return False


def compile_all(folder: Path, targets: Sequence[str]) -> None:
    """Compiles and links all sources by torch's builder."""
    from torch.utils import cpp_extension

    package = Path(str(importlib.util.find_spec("gsplat").origin)).parent / "cuda"  # type: ignore[union-attr]
    sources = sorted([*package.glob("csrc/*.cu"), *package.glob("csrc/*.cpp"), package / "ext.cpp"])
    (folder / "lock").unlink(missing_ok=True)  # torch's; a killed build leaves it, and torch would wait for ever
    count = jobs()
    again = " (an interrupted build is continued)" if any(folder.glob("*.o")) else ""
    print(
        f"gsplat: compiling its CUDA kernels for {', '.join(targets)}, once{again}: {len(sources)} files, {count} at a "
        f"time, about {max(2, round(11 * len(targets) / count))} minutes",
        flush=True,
    )
    try:
        with environment(TORCH_CUDA_ARCH_LIST=";".join(targets), MAX_JOBS=str(count)), progress(folder, len(sources)):
            cpp_extension.load(
                "csrc",
                [str(source) for source in sources],
                extra_cflags=["-O3", "-Wno-attributes"],
                extra_cuda_cflags=["-O3", "-use_fast_math"],
                extra_include_paths=[str(package / "include"), str(package / "csrc/third_party/glm")],
                build_directory=str(folder),
                is_python_module=False,
            )
    except (RuntimeError, ImportError) as error:
        raise UserError(f"gsplat: expected its CUDA kernels to compile, got {report(folder, str(error))}") from None


def report(folder: Path, words: str) -> str:
    """Returns the first errors among a build's messages, what to do, and where all messages are kept."""
    errors = [line.strip() for line in words.splitlines() if re.search(r"error|no space|cannot find", line, re.I)]
    with atomic_write(folder / "build.log") as file:
        file.write(words.encode())
    return "\n".join(errors[:3] or [words[-300:]]) + (
        f"\nAll messages are in {folder}/build.log. `gscfd doctor` checks the compiler; the CPU needs none: --device "
        "cpu. Finished files are kept: the same command continues"
    )


def jobs() -> int:
    """Returns how many files to compile at a time: one per core, but no more than half of the memory holds. MAX_JOBS
    overrides it."""
    if given := os.environ.get("MAX_JOBS"):
        return max(1, int(given))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, memory // (2 * JOB_MEMORY)))


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables, and ninja's folder in PATH: an environment that is not activated has it not."""
    places = [sysconfig.get_path("scripts"), *os.environ.get("PATH", "").split(os.pathsep)]
    values["PATH"] = os.pathsep.join(places)
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def progress(folder: Path, files: int) -> Iterator[None]:
    """Shows how many files are compiled."""
    done = threading.Event()

    def objects() -> int:
        return min(files, sum(1 for _ in folder.glob("*.o")))

    def show() -> None:
        with tqdm(total=files, initial=objects(), desc="gsplat", unit="file", miniters=1) as bar:
            while not done.wait(1.0):
                bar.update(objects() - bar.n)

    thread = threading.Thread(target=show, name="gsplat's progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def fault() -> str | None:
    """Returns why this thread's GPU cannot run the kernels or they cannot be compiled, with the next step after a
    semicolon; None if there is no such reason."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor < nvrtc.OLDEST:
            wanted = "a GPU of compute capability 8.0 (A100, RTX 30xx) or newer"
            return f"expected {wanted}, got {major}.{minor}; use --device cpu"
    return None if there() else compiler_fault()


def compiler_fault() -> str | None:
    """Returns why the kernels cannot be compiled, with the next step after a semicolon, or None if they can be. Tells
    torch where the compiler is."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "CXX: expected a C++ compiler, got none; install your system's package g++, or set CXX to one"
    try:
        toolkit.set_up()
    except UserError as error:
        return str(error)
    return None
