"""Numbers that a CUDA device still works on: asked for at once they would hold the program up, later they are there.

On the CPU they are there at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on the device, without waiting for what that device still does. Only a way back from it waits."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def event() -> torch.cuda.Event:
    """Where the device's current stream is now."""
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


class Deferred:
    """A number of the device: float() waits until it has come that far. value: a tensor of one element."""

    def __init__(self, value: Tensor):
        self.value = value.detach().to("cpu", non_blocking=True)
        self.arrival = event() if value.is_cuda else None

    def __float__(self) -> float:
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.value.item()


class DeferredNumbers(Mapping[str, float]):
    """Numbers of the device by name. Reading one waits until the device has come that far."""

    def __init__(self, values: Mapping[str, Tensor]):
        """values: tensors of one element."""
        self.numbers = {name: Deferred(value) for name, value in values.items()}

    def __getitem__(self, name: str) -> float:
        return float(self.numbers[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


class Clock(Mapping[str, float]):
    """Splits a step into named parts, and is the seconds of each: of the device, where it is CUDA. Reading waits until
    the device has come that far."""

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
        """The part `name` ends here, and the next one begins."""
        self.names.append(name)
        self.mark()

    def __getitem__(self, name: str) -> float:
        i = self.names.index(name)
        if not self.cuda:
            return self.times[i + 1] - self.times[i]
        self.events[i + 1].synchronize()
        return self.events[i].elapsed_time(self.events[i + 1]) / 1e3

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
