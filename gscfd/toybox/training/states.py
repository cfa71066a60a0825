"""States of a training on disk: whole or not at all, and two of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from gscfd.errors import UserError, warn


def before(file: Path) -> Path:
    """Returns where the state before the newest is kept: state.before.pt for state.pt."""
    return file.with_suffix(f".before{file.suffix}")


def save(state: dict[str, Any], file: Path) -> None:
    """Writes a state; the one before it is kept beside it. A full disk is warned of, and training goes on."""
    partial = file.with_suffix(".partial")
    try:
        torch.save(state, partial)
        if file.exists():
            os.replace(file, before(file))
        os.replace(partial, file)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        warn(f"{file}: the state could not be saved ({error}); training goes on, and the last saved state is kept")


def newest(file: Path, device: torch.device) -> dict[str, Any] | None:
    """Returns the newest state that is whole, on the device; None if none was saved.

    Raises UserError if all are damaged.
    """
    damaged = []
    for place in (file, before(file)):
        if not place.exists():
            continue
        try:
            state = torch.load(place, map_location=device, weights_only=True)
            if not isinstance(state, dict):
                raise TypeError(f"a {type(state).__name__}")
        except Exception as error:  # torch.load raises anything for a damaged file
            warn(f"{place}: expected a whole state, got {type(error).__name__}")
            damaged.append(place.name)
        else:
            return state
    if damaged:
        raise UserError(
            f"out: expected a whole state in {file.parent}, got damaged files ({', '.join(damaged)}); choose another "
            "folder, or delete them to begin anew"
        )
    return None
