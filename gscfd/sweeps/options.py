"""Options of commands that make many runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gscfd.config import check


@dataclass(kw_only=True)
class Workers:
    """Who makes the runs."""

    workers: int = 1
    """Runs at a time."""
    threads: int | None = None
    """CPU threads of each worker. Unset: all cores shared out."""
    gpus: float | None = None
    """GPUs of each worker; 0.5 puts two on one. Unset: one where there are any, but none for runs on the CPU."""
    address: str | None = None
    """Of a Ray cluster: auto, or HOST:PORT. Unset: this machine alone."""
    retries: int = 2
    """How often a run that failed, or whose worker died, is tried again."""

    def __post_init__(self) -> None:
        check(self.workers >= 1, "workers", "at least 1", self.workers)
        check(self.threads is None or self.threads >= 1, "threads", "at least 1", self.threads)
        check(self.gpus is None or self.gpus >= 0, "gpus", "at least 0", self.gpus)
        check(self.retries >= 0, "retries", "at least 0", self.retries)


@dataclass(kw_only=True)
class SweepOptions(Workers):
    """Make a run for every prompt, method and seed. All other options are those of gscfd.train, for every run."""

    prompts: Path
    """A text file with one prompt per line; empty lines, and those that start with #, are skipped."""
    seeds: str = "0"
    """Seeds and ranges: 0:8 is 0 to 7, 0,3,7:9 is 0, 3, 7 and 8."""
    guidance: str | None = None
    """Methods, as in cfd,sds. Unset: the one of the preset."""
    out: Path = Path("sweep")
    """Folder of the runs' folders."""
    dry_run: bool = False
    """List the runs and what state each is in, and stop."""
