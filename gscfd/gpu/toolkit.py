"""The CUDA compiler, which builds gsplat's kernels once, and the folder where torch looks for it, CUDA_HOME."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from gscfd.errors import UserError
from gscfd.files import cache_folder

INSTALL = "install it with `pip install 'gscfd[cuda]'`, which needs no root, or set CUDA_HOME to a CUDA toolkit"


@functools.cache
def set_up() -> Path:
    """Finds or assembles CUDA_HOME, tells torch of it, and returns it. A folder that the user has set stays.

    Raises UserError with the next step if there is no compiler that fits this torch.
    """
    home = find()
    os.environ["CUDA_HOME"] = str(home)
    extension = sys.modules.get("torch.utils.cpp_extension")
    if extension is not None:
        extension.CUDA_HOME = str(home)  # type: ignore[attr-defined]
    return home


def find() -> Path:
    """Returns the first toolkit without a fault: the user's, the one of nvcc on PATH, the system's, that of pip.

    Raises UserError with the fault of the first one found, or if there is none.
    """
    faults = []
    for home in homes():
        found = fault(home)
        if found is None:
            return home
        faults.append(found)
    raise UserError(f"CUDA_HOME: {faults[0] if faults else 'expected a CUDA compiler (nvcc), got none'}; {INSTALL}")


def homes() -> Iterator[Path]:
    """Yields the folders that may be a toolkit."""
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if given:
        yield Path(given)
        return
    nvcc = shutil.which("nvcc")
    if nvcc and (top := top_of(nvcc)):
        yield top
    if Path("/usr/local/cuda/bin/nvcc").is_file():
        yield Path("/usr/local/cuda")
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia.submodule_search_locations or []) if nvidia else []:
        for compiler in sorted(Path(folder).glob("cu[0-9]*/bin/nvcc"), reverse=True):
            yield assembled(compiler.parents[1])


def top_of(nvcc: str) -> Path | None:
    """Returns the toolkit that a compiler belongs to, which may be far from the program found on PATH."""
    words = run([nvcc, "--dryrun", "-x", "cu", "/dev/null"])
    found = re.search(r"^#\$ TOP=(.+)$", words, re.M)
    return Path(found[1].strip()).resolve() if found else None


def fault(home: Path) -> str | None:
    """Returns what is wrong with a toolkit, or None if it can compile for this torch."""
    if not (home / "bin" / "nvcc").is_file():
        return f"expected bin/nvcc in {home}, got no such file"
    if not any(any(home.glob(folder + "/cuda_runtime.h")) for folder in ("include", "targets/*/include")):
        return f"expected include/cuda_runtime.h in {home}, got no such file"
    if not any((home / folder / "libcudart.so").exists() for folder in ("lib64", "lib")):
        return f"expected lib64/libcudart.so in {home}, got no such file"
    release = version(home)
    wanted = (torch.version.cuda or "").partition(".")[0]
    if release is None:
        return f"expected a compiler that answers to --version in {home}, got none"
    if wanted and release.partition(".")[0] != wanted:
        return f"expected nvcc {wanted}.x, as torch {torch.__version__} was built with, got {release} in {home}"
    return None


def version(home: Path) -> str | None:
    """Returns the version of a toolkit's compiler, such as "13.0"."""
    found = re.search(r"release (\d+\.\d+)", run([str(home / "bin" / "nvcc"), "--version"]))
    return found[1] if found else None


def run(command: list[str]) -> str:
    """Returns all that a program prints, or nothing if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def assembled(root: Path) -> Path:
    """Returns a folder of links to a toolkit of pip: nvcc looks in lib64 for libcudart.so, where the packages have
    lib/libcudart.so.13, and finds its own folder by the place of bin, which therefore is a real folder.

    Raises UserError if the folder cannot be made.
    """
    home = cache_folder() / "cuda" / re.sub(r"\W+", "-", str(root)).strip("-")
    try:
        for file in (root / "bin").iterdir():
            link(home / "bin" / file.name, file)
        for name in ("include", "nvvm"):
            link(home / name, root / name)
        for file in (root / "lib").iterdir():
            link(home / "lib64" / file.name, file)
            stem, _, number = file.name.partition(".so.")
            if number and not (root / "lib" / f"{stem}.so").exists():
                link(home / "lib64" / f"{stem}.so", file)
    except OSError as error:
        raise UserError(
            f"CUDA_HOME: expected a writable cache folder, got {home} ({error.strerror}); set XDG_CACHE_HOME to one"
        ) from None
    return home


def link(name: Path, target: Path) -> None:
    """Makes a link, replacing one to another place."""
    if name.is_symlink() and Path(os.readlink(name)) == target:
        return
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    name.symlink_to(target)
