"""What a call of networks costs, found without running it: on the meta device, where tensors have shapes alone."""

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
    flops: int
    """Of matrix products, convolutions and attention."""
    peak: int
    """Most bytes of results that are held at once: neither weights nor inputs."""
    traffic: int
    """Bytes that the operations read and write, each by itself: what no cache keeps and nothing fuses."""


class Count(TorchDispatchMode):
    """Adds up, operation by operation, what `Cost` has. A result is held as long as anything holds it, be it the way
    back of a gradient. (torch's FlopCounterMode follows modules as well, and so holds what is computed again there.)"""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[StorageWeakRef, int] = {}
        self.flops = self.peak = self.traffic = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        # A view, and what an operation changed in place, has no memory of its own.
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
    """Attention as kernels do it, without its matrix in memory; the meta device has only the other way.

    It takes the place of torch's own function, so that what is computed again on a way back, where torch's function
    modes do not reach, is the same.
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
    """The cost of the call, whose tensors are all on the meta device."""
    with Count() as count, FusedAttention() as attention:
        call()
    return Cost(count.flops + attention.flops, count.peak, count.traffic)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a large matrix product on the device, measured: the best of a few."""
    factor = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, device=device, dtype=dtype)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best = float("inf")
    for _ in range(PRODUCT_REPEATS):
        wait()
        start = time.perf_counter()
        factor @ factor
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * PRODUCT_SIZE**3 / best
