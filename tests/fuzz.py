"""Damages files of every kind for some minutes and keeps those whose readers fail: `python tests/fuzz.py MINUTES`."""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from test_fuzz import NAMES, REFUSALS, attack, kind_named, peak_memory

ROUND = 100
"""Mutations of a kind before the next kind's turn."""
SECONDS = 20
"""Time that reading a file of some kilobytes may take."""
MOST_BYTES = 16 * 2**30
"""Address space of the process."""


class Late(BaseException):
    """The reader takes too long. No reader turns it into another error."""


def late(*_: object) -> None:
    raise Late(f"more than {SECONDS} s")


def fuzz(names: list[str], minutes: float, seed: int, kept: Path) -> int:
    """Prints the counts of each kind; returns how many files failed. kept: folder for them."""
    made, refused, failed, peaks = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    end, turn = time.monotonic() + 60 * minutes, 0
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / f"of {name}" for name in names}  # no kind's file is another's neighbor
        for place in places.values():
            place.mkdir()
        kinds = {name: kind_named(name, places[name]) for name in names}
        contents = {name: kind.make() for name, kind in kinds.items()}
        while time.monotonic() < end:
            for name, kind in kinds.items():
                draw, path, before = random.Random(f"{seed} {turn} {name}"), places[name] / name, peak_memory()
                for number in range(ROUND):
                    signal.alarm(SECONDS)
                    try:
                        error: BaseException | None = attack(kind, contents[name], path, draw)
                    except Late as found:
                        error = found
                    signal.alarm(0)
                    made[name] += 1
                    if isinstance(error, REFUSALS):
                        refused[name] += 1
                    elif error is not None:
                        failed[name] += 1
                        (kept / f"{turn}-{number}-{name}").write_bytes(path.read_bytes())
                        print(f"{turn}-{number}-{name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
                peaks[name] = max(peaks[name], peak_memory() - before)
            turn += 1
    for name in names:
        counts = f"{made[name]:>7} read, {refused[name]:>7} refused, {failed[name]:>5} failed"
        print(f"{name:<15} {counts}, {peaks[name] / 2**20:.0f} MiB at most")
    print(f"{made.total()} in all, {failed.total()} failed; seed {seed}")
    return failed.total()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kept", type=Path, default=Path("fuzzed"), help="folder for files whose readers fail")
    parser.add_argument("--kinds", nargs="+", default=NAMES, choices=NAMES, metavar="KIND")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("ignore")
    options.kept.mkdir(parents=True, exist_ok=True)
    return min(fuzz(options.kinds, options.minutes, options.seed, options.kept), 1)


if __name__ == "__main__":
    sys.exit(main())
