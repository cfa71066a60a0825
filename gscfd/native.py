"""Loads the compiled library on first use. Importing this module loads and builds nothing."""

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
    """Returns the library, loaded at the first call.

    Raises ImportError, listing every path tried with the reason it failed and the next step to take.
    """
    failures = []
    for folder in sys.modules[__package__].__path__:
        path = Path(folder) / "libgscfd_cpu.so"
        if not path.exists():
            failures.append(f"  {path}: no such file")
            continue
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            failures.append(f"  {path}: {error}")
    tried = "\n".join(failures)
    raise ImportError(
        f"gscfd's compiled CPU library could not be loaded. Tried:\n{tried}\n"
        "Build it with `pip install .` (or `pip install -e .` in a checkout); it needs a C++17 compiler"
        " (Debian, Ubuntu: sudo apt install g++)."
    )


def function(name: str, *argtypes: type, restype: type | None = None) -> Callable[..., Any]:
    """Returns the C function `name` with its signature declared, so that ctypes converts and checks arguments."""
    return _declared(library(), name, argtypes, restype)


@functools.cache
def _declared(library: ctypes.CDLL, name: str, argtypes: tuple[type, ...], restype: type | None) -> Callable[..., Any]:
    """Declares a signature once per library, which is part of the key: a library loaded anew gets its own."""
    # A new object, unlike getattr: other signatures of the same name stay as they are.
    symbol = library[name]
    symbol.argtypes, symbol.restype = argtypes, restype
    result: Callable[..., Any] = symbol
    return result


def pointer(tensor: Tensor | None) -> int | None:
    """Returns the address of the first element, for a `c_void_p` argument; None is the null pointer.

    The caller ensures that the tensor stays alive, is contiguous and has the dtype that the C function expects.
    """
    return None if tensor is None else tensor.data_ptr()


def threads() -> int:
    """Returns the number of threads of a native call, which is torch's setting (`torch.set_num_threads`)."""
    return torch.get_num_threads()


def instruction_set() -> str:
    """Returns the instruction set that the library uses on this CPU: "baseline", "avx2" or "avx512"."""
    return _INSTRUCTION_SETS[function("gscfd_isa", restype=ctypes.c_int)()]


def set_instruction_set(name: str) -> None:
    """Selects an instruction set narrower than the CPU's widest, for tests and comparisons.

    Raises ValueError if the name is unknown, or if this CPU or build lacks the instruction set.
    """
    if name not in _INSTRUCTION_SETS:
        raise ValueError(f"name: expected one of {_INSTRUCTION_SETS}, got {name!r}")
    if function("gscfd_set_isa", ctypes.c_int, restype=ctypes.c_int)(_INSTRUCTION_SETS.index(name)):
        raise ValueError(f"name: this CPU or build has no {name!r}; the widest available is selected at load time")
