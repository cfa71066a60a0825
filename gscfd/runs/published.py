"""Sizes of published teachers and estimates of the presets that use them, for teachers that are not on this machine.

The figures are those of docs/speed.md and docs/real.md: counted with the networks at their published sizes, not
measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from gscfd.teachers.find import MVDREAM_MIRROR, SD21_MIRROR


@dataclass(frozen=True)
class Published:
    """Sizes of a published teacher, in units of 10^9 bytes."""

    name: str
    download: float
    """All that a run fetches, in the precision that is published; half if the repository has only half precision."""
    weights: float
    """Denoiser and VAE in bfloat16."""
    held: float | None
    """Largest intermediate results of a step with the views of the preset; None if they have not been counted."""


PUBLISHED = {
    MVDREAM_MIRROR: Published("MVDream", 5.2, 1.9, 1.58),
    SD21_MIRROR: Published("Stable Diffusion 2.1", 5.2, 1.9, 6.31),
    "stabilityai/stable-diffusion-xl-base-1.0": Published("SDXL", 13.9, 5.3, 6.31),
    "black-forest-labs/FLUX.1-dev": Published("FLUX.1-dev", 33.7, 24.0, None),
}
"""Teachers of the presets, by their repositories."""
MINUTES = {"fast": (0.4, 1.1, 2.1), "mvdream-sd21": (3.6, 11, 20), "paper": (7.5, 22, 42)}
"""Minutes of the teachers' part of a preset on the GPUS."""
GPUS = ("H200", "A100 80 GB", "RTX 4090")


def size_line(repository: str) -> str | None:
    """Returns the sizes of a teacher as a line of the plan; None for a teacher that is not listed."""
    found = PUBLISHED.get(repository)
    if found is None:
        return None
    held = "" if found.held is None else f", at most {found.held:.3g} GB held by a step"
    return f"  size     {found.download:.3g} GB to fetch, {found.weights:.3g} GB of weights in bfloat16{held} (counted)"


def time_line(preset: str) -> str | None:
    """Returns the time of a preset's teachers as a line of the plan; None for a preset that is not listed."""
    if preset not in MINUTES:
        return None
    times = ", ".join(f"{minutes:.3g} on an {gpu}" for minutes, gpu in zip(MINUTES[preset], GPUS, strict=True))
    return f"         minutes of the preset as it is: {times} (estimates, docs/speed.md)"
