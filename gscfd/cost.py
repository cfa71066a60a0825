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
from torch.utils.flop_counter import FlopCounterMode

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


class HeldBytes(TorchDispatchMode):
    """Adds up the bytes of every result until nothing, not even the way back of a gradient, holds it; and those that
    operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[StorageWeakRef, int] = {}
        self.peak = self.traffic = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
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
    held, attention = HeldBytes(), FusedAttention()
    with FlopCounterMode(display=False) as counter, held, attention:
        call()
    return Cost(counter.get_total_flops() + attention.flops, held.peak, held.traffic)


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
