"""Options of commands that make many runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gscfd.config import check


@dataclass(kw_only=True)
class Workers:
    """Worker settings."""

    workers: int = 1
    """Number of runs made at the same time."""
    threads: int | None = None
    """CPU threads per worker. Unset: the cores divided among the workers."""
    gpus: float | None = None
    """GPUs per worker; 0.5 puts two workers on one. Unset: one if the machine has any, but none for runs on the CPU."""
    address: str | None = None
    """Address of a Ray cluster: auto, or HOST:PORT. Unset: this machine only."""
    retries: int = 2
    """Number of retries for a run that failed or lost its worker."""

    def __post_init__(self) -> None:
        check(self.workers >= 1, "workers", "at least 1", self.workers)
        check(self.threads is None or self.threads >= 1, "threads", "at least 1", self.threads)
        check(self.gpus is None or self.gpus >= 0, "gpus", "at least 0", self.gpus)
        check(self.retries >= 0, "retries", "at least 0", self.retries)


@dataclass(kw_only=True)
class SweepOptions(Workers):
    """Make a run for every prompt, method, setting and seed. All other options are those of gscfd train and apply to
    every run."""

    prompts: Path | None = None
    """Text file with one prompt per line; empty lines and lines that start with # are skipped."""
    matrix: Path | None = None
    """A .yaml file with lists of `prompts`, `methods` and `seeds`, and `settings` by name, instead of --prompts,
    --guidance and --seeds."""
    seeds: str | None = None
    """Seeds and ranges: 0:8 is 0 to 7, 0,3,7:9 is 0, 3, 7 and 8. Unset: 0."""
    guidance: str | None = None
    """Methods separated by commas, such as cfd,sds. Unset: the preset's method."""
    out: Path = Path("sweep")
    """Folder in which the run folders are created."""
    table: Path | None = None
    """File for a table of all runs, .csv or .parquet, written when the sweep ends. Unset: runs.csv in `out`."""
    dry_run: bool = False
    """List the runs and their states, then exit."""
