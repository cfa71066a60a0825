"""CUDA's driver, the only part of CUDA that is installed with the GPU: contexts and compiled kernels, by ctypes."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch


@functools.cache
def library() -> ctypes.CDLL:
    """Returns the driver's library, loaded at the first call.

    Raises ImportError if there is none.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ImportError(
            f"CUDA's driver could not be loaded ({error}); install the driver of the GPU's vendor "
            "(`nvidia-smi` must list the GPU)"
        ) from None


def call(name: str, *arguments: Any) -> None:
    """Calls a function of the driver.

    Raises RuntimeError with the driver's own words if it fails, ImportError if there is no driver.
    """
    if code := int(library()[name](*arguments)):
        raise RuntimeError(f"CUDA's driver, {name}: {words(code)}")


def words(code: int) -> str:
    """Returns the driver's description of an error code."""
    text = ctypes.c_char_p()
    library().cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
    return f"{text.value.decode() if text.value else 'unknown error'} (CUresult {code})"


def version() -> tuple[int, int]:
    """Returns the newest version of CUDA that the driver supports."""
    number = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(number))
    return number.value // 1000, number.value % 1000 // 10


def fault() -> str | None:
    """Returns why this torch cannot use the driver, and the next step after a semicolon; None if it can."""
    try:
        major, minor = version()
    except (ImportError, RuntimeError) as error:
        return str(error)
    wanted = torch.version.cuda
    if wanted and major < int(wanted.partition(".")[0]):
        return (
            f"the GPU's driver supports CUDA {major}.{minor}, and torch needs {wanted}; install a newer driver, or a "
            f"build of torch for CUDA {major}"
        )
    return None


@functools.cache
def context(index: int) -> int:
    """Returns the primary context of a device, which torch uses too."""
    device, found = ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(found), device)
    return int(found.value or 0)


def load(index: int, code: bytes, names: Sequence[str]) -> list[int]:
    """Returns the kernels of these names, all of them loaded onto the device: a later load could fall into the capture
    of a graph.

    code: a cubin, or PTX text that ends with a null byte.
    """
    module, kernels = ctypes.c_void_p(), []
    call("cuCtxPushCurrent_v2", ctypes.c_void_p(context(index)))
    try:
        call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(code))
        for name in names:
            kernel, registers = ctypes.c_void_p(), ctypes.c_int()
            call("cuModuleGetFunction", ctypes.byref(kernel), module, name.encode())
            call("cuFuncGetAttribute", ctypes.byref(registers), NUM_REGS, kernel)
            kernels.append(int(kernel.value or 0))
    finally:
        call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    return kernels


NUM_REGS = 4
"""CU_FUNC_ATTRIBUTE_NUM_REGS. To answer, the driver must have loaded the kernel."""


def address(name: str) -> int:
    """Returns the address of a function of the driver, for native code that calls it."""
    return ctypes.cast(library()[name], ctypes.c_void_p).value or 0
