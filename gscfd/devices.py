"""Where a run computes, and in which precision."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from gscfd.config import Config, Dtype
from gscfd.errors import UserError
from gscfd.noise_kernels import cuda

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """auto: CUDA when there is a CUDA device. Raises UserError when CUDA is asked for and absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device: expected a CUDA device, got none that torch can use; "
            "install a CUDA build of torch and a driver that fits it, or use --device cpu"
        )
    return torch.device(name)


def choose_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """Of the teachers. auto: bfloat16, but float32 on a CPU that does not multiply in bfloat16, where that is slow."""
    if name == "auto":
        name = "float32" if device.type == "cpu" and not cpu_has_bfloat16() else "bfloat16"
    return DTYPES[name]


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, AVX-512 BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def run_device(config: Config) -> torch.device:
    """Of a run. auto: CUDA when there is a CUDA device and the compiled code that a run needs besides torch's."""
    if left_alone(config):
        return torch.device("cpu")
    return choose_device(config.device)


def left_alone(config: Config) -> str | None:
    """Why a run that may choose leaves the CUDA device alone; None: it does not, or there is none."""
    return missing_kernels(config) if config.device == "auto" and torch.cuda.is_available() else None


def missing_kernels(config: Config) -> str | None:
    """What a run on CUDA lacks of compiled code, and how to get it; None: nothing."""
    if importlib.util.find_spec("gsplat.csrc") is None and not torch_finds_nvcc():
        return (
            "device: expected gsplat's CUDA kernels or nvcc, which compiles them at their first use, got neither; "
            "install the CUDA toolkit and put nvcc on PATH (`nvcc --version` must answer), or set CUDA_HOME"
        )
    if config.noise.device == "cpu":
        return None
    try:
        cuda.check(torch.device("cuda"))
    except (ImportError, RuntimeError) as error:
        return (
            f"noise.device: expected a CUDA library that runs on this GPU. {error}\n"
            "Or draw the noise on the CPU, which takes some milliseconds per view: --noise.device cpu"
        )
    return None


def torch_finds_nvcc() -> bool:
    """Whether torch, and so gsplat, can compile CUDA code."""
    from torch.utils import cpp_extension  # takes half a second, and only a machine with a GPU asks

    return cpp_extension.CUDA_HOME is not None and Path(cpp_extension.CUDA_HOME, "bin", "nvcc").is_file()
