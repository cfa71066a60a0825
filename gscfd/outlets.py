"""Functions of rooms above that methods of values below hand themselves to, by name; `gscfd` says where they are."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

_homes: dict[str, str] = {}


def register(name: str, module: str) -> None:
    """Says that `name` is a function of `module`, which is imported at its first use."""
    _homes[name] = module


def find(name: str) -> Callable[..., Any]:
    """Returns a registered function. Raises KeyError if there is none."""
    found: Callable[..., Any] = getattr(import_module(_homes[name]), name)
    return found
