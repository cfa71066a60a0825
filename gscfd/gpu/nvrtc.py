"""Compiles CUDA source by NVRTC, the compiler library that every CUDA build of torch brings, and keeps the result.

Compiling takes about a second per architecture. The result is kept in the user's cache folder under a name made of the
architecture, the version of NVRTC and a hash of the source.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gscfd.errors import warn
from gscfd.files import atomic_write, cache_folder

OLDEST = 80
"""Oldest architecture: compute capability 8.0 (A100, RTX 30xx)."""
OPTIONS = ("--std=c++17", "--fmad=false")
"""As on the CPU, decisions about cells must not depend on the contraction of products and sums."""


def places() -> Iterator[Path | str]:
    """Yields the files that may be NVRTC: those of the nvidia packages, torch's own, then the system's."""
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia.submodule_search_locations or []) if nvidia else []:
        yield from sorted(Path(folder).glob("*/lib/libnvrtc.so.*"), reverse=True)
    yield from sorted(Path(torch.__file__).with_name("lib").glob("libnvrtc*.so*"))
    major = (torch.version.cuda or "13").partition(".")[0]
    yield f"libnvrtc.so.{major}"


@functools.cache
def library() -> ctypes.CDLL:
    """Returns NVRTC, loaded at the first call.

    Raises ImportError, listing every place tried and the next step to take.
    """
    failures = []
    for place in places():
        if "builtins" in str(place) or ".alt." in str(place):
            continue
        try:
            if isinstance(place, Path):  # NVRTC asks for this library by name alone, and finds a loaded one
                for part in place.parent.glob("libnvrtc-builtins*.so*"):
                    if ".alt." not in part.name:
                        ctypes.CDLL(str(part))
            found = ctypes.CDLL(str(place))
            found.nvrtcGetErrorString.restype = ctypes.c_char_p
            return found
        except OSError as error:
            failures.append(f"  {place}: {error}")
    tried = "\n".join(failures)
    raise ImportError(
        f"NVRTC, which compiles gscfd's CUDA kernels, could not be loaded\n{tried}\n"
        "CUDA builds of torch bring it: install one, or `pip install nvidia-cuda-nvrtc`"
    )


def call(name: str, *arguments: object) -> None:
    """Calls a function of NVRTC. Raises RuntimeError with NVRTC's own words if it fails."""
    if code := int(library()[name](*arguments)):
        raise RuntimeError(f"NVRTC, {name}: {library().nvrtcGetErrorString(code).decode()}")


def version() -> str:
    """Returns the version of NVRTC, such as "13.0"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def architectures() -> list[int]:
    """Returns the architectures that NVRTC compiles for, such as 80 for compute capability 8.0, in ascending order."""
    count = ctypes.c_int()
    call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    call("nvrtcGetSupportedArchs", numbers)
    return sorted(numbers)


def target(capability: tuple[int, int]) -> str:
    """Returns the architecture to compile for: sm_90 for compute capability 9.0. A GPU that is newer than NVRTC gets
    the newest PTX, such as compute_90, which its driver translates.

    Raises RuntimeError if the GPU is too old for gscfd.
    """
    wanted = 10 * capability[0] + capability[1]
    if wanted < OLDEST:
        raise RuntimeError(
            f"expected a GPU of compute capability 8.0 (A100, RTX 30xx) or newer, got {capability[0]}.{capability[1]}"
        )
    known = architectures()
    return f"sm_{wanted}" if wanted in known else f"compute_{max(a for a in known if a <= wanted)}"


def compiled(source: Path, architecture: str, *options: str) -> tuple[bytes, str]:
    """Returns the compiled source (a cubin, or PTX for compute_XX) and the compiler's log.

    Raises RuntimeError with the compiler's messages if it fails.
    """
    program = ctypes.c_void_p()
    text = source.read_bytes()
    call("nvrtcCreateProgram", ctypes.byref(program), text, source.name.encode(), 0, None, None)
    try:
        chosen = (f"--gpu-architecture={architecture}", f"--include-path={source.parent}", *OPTIONS, *options)
        words = (ctypes.c_char_p * len(chosen))(*(option.encode() for option in chosen))
        code = library().nvrtcCompileProgram(program, len(chosen), words)
        log = _bytes(program, "ProgramLog").rstrip(b"\0").decode().strip()
        if code:
            raise RuntimeError(f"NVRTC could not compile {source.name} for {architecture}:\n{log}")
        return _bytes(program, "CUBIN" if architecture.startswith("sm_") else "PTX"), log
    finally:
        call("nvrtcDestroyProgram", ctypes.byref(program))


def _bytes(program: ctypes.c_void_p, kind: str) -> bytes:
    size = ctypes.c_size_t()
    call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    call(f"nvrtcGet{kind}", program, buffer)
    return buffer.raw


def cache_file(sources: Sequence[Path], architecture: str) -> Path:
    """Returns where the compiled first source is kept. sources: the source and the headers that it includes."""
    digest = hashlib.sha256("\0".join(OPTIONS).encode())
    for source in sources:
        digest.update(source.read_bytes())
    name = f"{sources[0].stem}-{architecture}-nvrtc-{version()}-{digest.hexdigest()[:16]}"
    return cache_folder() / "kernels" / name


def kernels(sources: Sequence[Path], architecture: str) -> bytes:
    """Returns the compiled first source, from the cache if it is there and intact. A cache that cannot be written costs
    a second at every start, and is reported.

    sources: the source and the headers that it includes.
    """
    path = cache_file(sources, architecture)
    if kept := read_intact(path):
        return kept
    code, _ = compiled(sources[0], architecture)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(hashlib.sha256(code).digest() + code)
    except OSError as error:
        warn(
            f"kernels: expected a writable cache folder, got {path.parent} ({error.strerror}); they are compiled at "
            "every start, which takes a second, unless XDG_CACHE_HOME names a writable folder"
        )
    return code


def read_intact(path: Path) -> bytes | None:
    """Returns the code kept in a cache file, or None if the file is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None
