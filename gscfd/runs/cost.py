"""Cost of a call to the networks, found without running it: on the meta device, tensors have shapes but no data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

PRODUCT_SIZE = 1024
PRODUCT_REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """Cost of a call."""

    flops: int
    """FLOP of matrix products, convolutions and attention."""
    peak: int
    """Peak bytes of intermediate results, without weights and inputs."""
    traffic: int
    """Bytes read and written by the operations, without caching or fusion."""


class Count(TorchDispatchMode):
    """Accumulates the values of `Cost`, operation by operation. A result counts as held while anything references it,
    including the backward graph. (torch's FlopCounterMode also tracks modules, which keeps recomputed results
    alive.)"""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.held: dict[StorageWeakRef, int] = {}
        self.flops = self.peak = self.traffic = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        # Views and results of in-place operations have no memory of their own.
        if not any(value.alias_info for value in func._schema.returns):
            touched = tree_leaves((args, kwargs, result))
            self.traffic += sum(tensor.nbytes for tensor in touched if isinstance(tensor, Tensor))
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    self.held[StorageWeakRef(storage)] = storage.nbytes()
        self.held = {storage: count for storage, count in self.held.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.held.values()))
        return result


class FusedAttention:
    """Attention without its matrix in memory, as fused kernels compute it; the meta device has only the unfused form.

    It replaces torch's function itself because torch's function modes do not reach recomputation in the backward pass.
    """

    def __init__(self) -> None:
        self.flops = 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Two products, query by key and the weights by value: [..., L, D] x [..., D, S] and [..., L, S] x [..., S, D].
        self.flops += 4 * query.numel() * key.shape[-2]
        return query.clone()

    def __enter__(self) -> FusedAttention:
        self.original = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = self
        return self

    def __exit__(self, *error: object) -> None:
        F.scaled_dot_product_attention = self.original


def cost_of(call: Callable[[], Any]) -> Cost:
    """Returns the cost of the call, whose tensors must all be on the meta device."""
    with Count() as count, FusedAttention() as attention:
        call()
    return Cost(count.flops + attention.flops, count.peak, count.traffic)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measures and returns the FLOP per second of a large matrix product on the device, the best of a few attempts."""
    factor = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, device=device, dtype=dtype)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best = float("inf")
    for _ in range(PRODUCT_REPEATS):
        wait()
        start = time.perf_counter()
        factor @ factor
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * PRODUCT_SIZE**3 / best
