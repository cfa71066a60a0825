"""Options of `gscfd studio`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gscfd.config import ServerConfig


@dataclass(kw_only=True)
class StudioOptions(ServerConfig):
    """Type prompts, watch their splats grow, and keep all runs of a folder, in the browser. Ctrl-C quits; the run in
    progress and the queue go on at the next start."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("outputs")
    """Folder of the runs; created if it is missing."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of new runs. auto: CUDA if torch finds a CUDA device."""
