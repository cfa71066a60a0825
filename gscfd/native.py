"""Loads the compiled libraries. Importing this module loads nothing and never builds anything."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


@functools.cache
def library() -> ctypes.CDLL:
    """The CPU library, loaded at the first call.

    Raises ImportError that lists every path tried with its cause, and what to do.
    """
    return _load(
        "libgscfd_cpu.so",
        "CPU",
        "Build it with `pip install .` (or `pip install -e .` in a checkout); it needs a C++17 compiler"
        " (Debian, Ubuntu: sudo apt install g++).",
    )


@functools.cache
def cuda_library() -> ctypes.CDLL:
    """The CUDA library, loaded at the first call.

    Raises ImportError that lists every path tried with its cause, and what to do.
    """
    return _load(
        "libgscfd_cuda.so",
        "CUDA",
        "It is built when nvcc is found: install the CUDA toolkit, put nvcc on PATH (`nvcc --version` must answer), and"
        " in a checkout of gscfd run `pip install --force-reinstall --no-deps -e .` again.",
    )


def _load(name: str, kind: str, advice: str) -> ctypes.CDLL:
    failures = []
    for folder in sys.modules[__package__].__path__:
        path = Path(folder) / name
        if not path.exists():
            failures.append(f"  {path}: no such file")
            continue
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            failures.append(f"  {path}: {error}")
    tried = "\n".join(failures)
    raise ImportError(f"gscfd's compiled {kind} library could not be loaded. Tried:\n{tried}\n{advice}")


def function(
    name: str, *argtypes: type, restype: type | None = None, of: Callable[[], ctypes.CDLL] = library
) -> Callable[..., Any]:
    """Returns the C function `name` with its signature declared, so that ctypes converts and checks arguments.

    of: the library, `library` or `cuda_library`.
    """
    return _declared(of(), name, argtypes, restype)


@functools.cache
def _declared(library: ctypes.CDLL, name: str, argtypes: tuple[type, ...], restype: type | None) -> Callable[..., Any]:
    """Declares a signature once per library, which is part of the key: a library loaded anew gets its own."""
    result = library[name]  # a new object, unlike getattr: other signatures of the same name stay as they are
    result.argtypes = argtypes
    result.restype = restype
    return result


def pointer(tensor: Tensor | None) -> int | None:
    """Address of the first element for a `c_void_p` argument; None stays the null pointer.

    The caller keeps the tensor alive, contiguous and of the type that the C function reads.
    """
    return None if tensor is None else tensor.data_ptr()


def threads() -> int:
    """Threads a native call uses: torch's own setting (`torch.set_num_threads`)."""
    return torch.get_num_threads()


def instruction_set() -> str:
    """The instruction set ("baseline", "avx2" or "avx512") that the library runs with on this CPU."""
    return _INSTRUCTION_SETS[function("gscfd_isa", restype=ctypes.c_int)()]


def set_instruction_set(name: str) -> None:
    """Choose a narrower instruction set than the CPU's widest, to test or compare.

    Raises ValueError where this CPU or this build lacks it.
    """
    if name not in _INSTRUCTION_SETS:
        raise ValueError(f"name: expected one of {_INSTRUCTION_SETS}, got {name!r}")
    if function("gscfd_set_isa", ctypes.c_int, restype=ctypes.c_int)(_INSTRUCTION_SETS.index(name)):
        raise ValueError(f"name: this CPU or this build has no {name!r}; the widest it has was chosen at the start")
