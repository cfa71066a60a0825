"""Device and precision of a run."""

from __future__ import annotations

import torch

from gscfd.config import Config, Dtype
from gscfd.errors import UserError
from gscfd.gpu import driver
from gscfd.noise_kernels import cuda
from gscfd.rasterize import kernels

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Returns the device; auto is CUDA if torch finds a CUDA device, otherwise the CPU. A GPU given by its number
    becomes this thread's current one: gsplat and events use that.

    Raises UserError, with the reason, if CUDA is requested but not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not torch.cuda.is_available():
        if torch.version.cuda is None:
            reason = f"torch {torch.__version__} was built without CUDA; install a CUDA build of torch"
        else:
            reason = driver.fault() or "the driver is in order; `nvidia-smi` must list a GPU"
        raise UserError(
            f"device: expected a CUDA device, got none that torch can use: {reason} (`gscfd doctor` checks all parts), "
            "or use --device cpu"
        )
    device, count = torch.device(name), torch.cuda.device_count()
    if device.index is not None:
        if device.index >= count:
            raise UserError(f"device: expected cuda:0 to cuda:{count - 1}, the GPUs that torch finds, got {name}")
        torch.cuda.set_device(device)
    return device


def choose_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """Returns the precision of the teachers. auto is bfloat16, but float32 on a CPU without bfloat16 instructions,
    where bfloat16 is slow."""
    if name == "auto":
        name = "float32" if device.type == "cpu" and not cpu_has_bfloat16() else "bfloat16"
    return DTYPES[name]


def cpu_has_bfloat16() -> bool:
    """Returns whether this CPU can multiply in bfloat16 (AVX-512 BF16 or AMX)."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def run_device(config: Config) -> torch.device:
    """Returns the device of a run; auto is CUDA if there is a CUDA device and the run's compiled kernels are present.

    Raises UserError if CUDA is requested but not available.
    """
    if left_alone(config):
        return torch.device("cpu")
    return choose_device(config.device)


def left_alone(config: Config) -> str | None:
    """Returns the reason that a run with --device auto does not use the CUDA device, or None if it does or there is no
    such device."""
    return missing_kernels(config) if config.device == "auto" and torch.cuda.is_available() else None


def missing_kernels(config: Config) -> str | None:
    """Returns which compiled code a run on CUDA lacks and how to get it, or None if nothing is missing."""
    device = choose_device(config.device)
    if (fault := kernels.fault()) is not None:
        return f"device: gsplat's CUDA kernels cannot be used: {fault}"
    if config.noise.device == "cpu":
        return None
    try:
        cuda.check(device)
    except (ImportError, RuntimeError) as error:
        return (
            f"noise.device: expected noise kernels that run on this GPU. {error}\n"
            "Or draw the noise on the CPU, which takes a few milliseconds per view: --noise.device cpu"
        )
    return None
