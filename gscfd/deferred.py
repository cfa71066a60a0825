"""Scalars that a CUDA device is still computing. Reading one now would stall the host; a step later it is free.

On the CPU they are available immediately.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Returns the tensor on the device. Copying from the CPU does not wait for the device; copying back does."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def event() -> torch.cuda.Event:
    """Records and returns an event at the current position of the device's stream."""
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


class Deferred:
    """A number computed on a device; float() waits until it is available. value: tensor with one element."""

    def __init__(self, value: Tensor):
        self.value = value.detach().to("cpu", non_blocking=True)
        self.arrival = event() if value.is_cuda else None

    def __float__(self) -> float:
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.value.item()


class DeferredNumbers(Mapping[str, float]):
    """Numbers computed on a device, by name; reading one waits until it is available."""

    def __init__(self, values: Mapping[str, Tensor]):
        """values: tensors with one element."""
        self.numbers = {name: Deferred(value) for name, value in values.items()}

    def __getitem__(self, name: str) -> float:
        return float(self.numbers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


class Clock(Mapping[str, float]):
    """Times the named parts of a step: a mapping from name to seconds, measured on the device if it is CUDA. Reading a
    value waits until the device has finished that part."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.names: list[str] = []
        self.times: list[float] = []
        self.events: list[torch.cuda.Event] = []
        self.mark()

    def mark(self) -> None:
        if self.cuda:
            self.events.append(event())
        else:
            self.times.append(time.perf_counter())

    def lap(self, name: str) -> None:
        """Ends the part `name` and begins the next one."""
        self.names.append(name)
        self.mark()

    def __getitem__(self, name: str) -> float:
        i = self.names.index(name)
        if not self.cuda:
            return self.times[i + 1] - self.times[i]
        self.events[i + 1].synchronize()
        milliseconds: float = self.events[i].elapsed_time(self.events[i + 1])
        return milliseconds / 1e3

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
