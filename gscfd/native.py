"""Loads the compiled CPU library. Importing this module loads nothing and never builds anything."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_NAME = "libgscfd_cpu.so"
_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


@functools.cache
def library() -> ctypes.CDLL:
    """The CPU library, loaded at the first call.

    Raises ImportError that lists every path tried with its cause, and what to do.
    """
    import gscfd

    failures = []
    for folder in gscfd.__path__:
        path = Path(folder) / _NAME
        if not path.exists():
            failures.append(f"  {path}: no such file")
            continue
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            failures.append(f"  {path}: {error}")
    raise ImportError(
        "gscfd's compiled CPU library could not be loaded. Tried:\n"
        + "\n".join(failures)
        + "\nBuild it with `pip install .` (or `pip install -e .` in a checkout); it needs a C++17 compiler"
        " (Debian, Ubuntu: sudo apt install g++)."
    )


def function(name: str, *argtypes: type, restype: type | None = None) -> Callable:
    """The C function `name` with its signature declared, so that ctypes converts and checks arguments."""
    result = getattr(library(), name)
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
