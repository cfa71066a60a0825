"""What the commands of this folder share: the archive of packages, parts in processes of their own, and results that
are written as they come.

A part runs in a fork of a parent that has imported everything and never used the GPU, so that an illegal access in one
part leaves the others alone. A part over its time is killed with all that it started.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

START = time.monotonic()
ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "build" / "gpu" / "kit.tar.xz"
MOST_FILES, MOST_BYTES = 8, 16 * 2**20
"""Files that come back from the GPU machine, and the size of each."""
MOST_LOG = 4 * 2**20
"""Bytes of the log that are kept: its end."""
LEAST = 5.0
"""Seconds under which no part is started."""
CLOSING = 2.0
"""Seconds kept for the report."""


class Kit:
    """One command: where results go, how much time there is, and on which device."""

    def __init__(self, out: Path, seconds: float, device: str, small: bool):
        """seconds: of the whole command. small: sizes of a rehearsal."""
        self.out, self.seconds, self.device, self.small = out, seconds, device, small
        out.mkdir(parents=True, exist_ok=True)
        self.results = out / "results.jsonl"
        self.results.write_text("")
        self.log = out / "log.txt"
        self.log.write_text("")
        self.part = "start"

    def left(self) -> float:
        """Returns the seconds that are left for parts."""
        return self.seconds - CLOSING - (time.monotonic() - START)

    def note(self, **facts: Any) -> None:
        """Writes a line of the running part to the results, and prints it."""
        line = json.dumps({"part": self.part, "at": round(time.monotonic() - START, 1), **facts}, default=str)
        with open(self.results, "a") as file:
            file.write(line + "\n")
        os.write(CONSOLE, f"{line}\n".encode())

    def check(self, what: str, passed: bool, **facts: Any) -> None:
        """Writes the result of a check."""
        self.note(check=what, passed=bool(passed), **facts)

    def lines(self) -> list[dict[str, Any]]:
        """Returns all results so far."""
        return [json.loads(line) for line in self.results.read_text().splitlines()]

    def failures(self) -> list[str]:
        """Returns the parts that failed or have a check that did not pass, in their order."""
        bad = [line["part"] for line in self.lines() if "failed" in line or line.get("passed") is False]
        return list(dict.fromkeys(bad))


CONSOLE = os.dup(1)
"""The console, also inside a part, whose output goes to the log."""


@dataclass(frozen=True)
class Part:
    """A part of a command: its name, its work, and the seconds after which it is killed."""

    name: str
    work: Callable[[Kit], None]
    seconds: float


def run(kit: Kit, *parts: Part) -> None:
    """Runs parts side by side, each in a fork, and writes the report."""
    running: dict[int, tuple[Part, float, float]] = {}
    try:
        for part in parts:
            limit = kit.left() if kit.small else min(part.seconds, kit.left())  # a rehearsal's CPU may be busy
            kit.part = part.name
            if limit < LEAST:
                kit.note(failed="no time was left")
                continue
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                work(kit, part)
            with suppress(OSError):
                os.setpgid(child, child)
            running[child] = part, time.monotonic(), limit
        while running:
            for child in list(running):
                reap(kit, child, running)
            time.sleep(0.05)
    finally:
        for child in running:
            stop(child)
    write_report(kit)


def reap(kit: Kit, child: int, running: dict[int, tuple[Part, float, float]]) -> None:
    """Notes the end of a part, or ends it if its time is over."""
    part, begin, limit = running[child]
    done, status, used = os.wait4(child, os.WNOHANG)
    seconds, failed = time.monotonic() - begin, None
    kit.part = part.name
    if done:
        code = os.waitstatus_to_exitcode(status)
        failed = None if code == 0 else f"exit code {code}"
    elif seconds > limit:
        failed = f"killed after {limit:.0f} s"
    else:
        return
    stop(child)  # and all that it started
    if not done:
        _, _, used = os.wait4(child, 0)
    cpu = round(used.ru_utime + used.ru_stime, 1)
    kit.note(seconds=round(seconds, 1), cpu_seconds=cpu, **({} if failed is None else {"failed": failed}))
    del running[child]


def stop(child: int) -> None:
    """Kills a part and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def work(kit: Kit, part: Part) -> NoReturn:
    """Does a part's work in its own process, whose output goes to the log, and ends that."""
    with suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log = os.open(kit.log, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)
    faulthandler.enable(sys.stderr)
    print(f"\n==== {part.name}", flush=True)
    code = 1
    try:
        part.work(kit)
        code = 0
    except BaseException as error:  # whatever it is, the next part shall run
        kit.note(failed=f"{type(error).__name__}: {str(error)[:600]}", trace=traceback.format_exc()[-1500:])
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def write_report(kit: Kit) -> None:
    """Writes the results as Markdown to report.md: a table for every group of lines with the same keys."""
    text = ["# gscfd on a GPU\n", f"{time.strftime('%Y-%m-%d %H:%M')}, device {kit.device}.\n"]
    lines = kit.lines()
    for name in dict.fromkeys(line["part"] for line in lines):
        text.append(f"## {name}\n")
        keys: tuple[str, ...] = ()
        for line in lines:
            if line["part"] != name:
                continue
            cells = {key: value for key, value in line.items() if key not in ("part", "at")}
            if tuple(cells) != keys:
                keys = tuple(cells)
                text += ["", f"| {' | '.join(keys)} |", "|---" * len(keys) + "|"]
            text.append(f"| {' | '.join(cell(value) for value in cells.values())} |")
        text.append("")
    failures = kit.failures()
    text.append(f"Failed: {', '.join(failures)}" if failures else "Nothing failed.")
    (kit.out / "report.md").write_text("\n".join(text) + "\n")


def cell(value: Any) -> str:
    """Returns a value in a table's cell."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    if isinstance(value, dict):
        value = ", ".join(f"{key} {cell(entry)}" for key, entry in value.items())
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def finish(kit: Kit) -> int:
    """Makes the results fit for their way back, and says what failed. Returns the exit code."""
    content = kit.log.read_bytes()
    if len(content) > MOST_LOG:
        kit.log.write_bytes(b"(the beginning is cut off)\n" + content[-MOST_LOG:])
    kit.part = "results"
    files = [path for path in kit.out.rglob("*") if path.is_file()]
    large = [path.name for path in files if path.stat().st_size > MOST_BYTES]
    if len(files) > MOST_FILES or large:
        kit.note(failed=f"expected at most {MOST_FILES} files of 16 MiB, got {len(files)}, too large: {large}")
    write_report(kit)
    failures = kit.failures()
    print(f"failed: {', '.join(failures)}" if failures else "nothing failed", flush=True)
    return 1 if failures else 0


def parser(text: str | None, seconds: float) -> argparse.ArgumentParser:
    """Returns a parser with the options that `first` and `second` share."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    out = os.environ.get("OUT")
    made.add_argument("--out", type=Path, default=out, required=out is None, help="folder of results (default $OUT)")
    made.add_argument("--seconds", type=float, default=seconds, help=f"of the whole command (default {seconds:.0f})")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal (default cuda)")
    made.add_argument("--small", action="store_true", help="sizes of a rehearsal")
    made.add_argument("--archive", type=Path, default=ARCHIVE, help="made by prepare; may be absent")
    return made


def begin(arguments: argparse.Namespace) -> Kit:
    """Unpacks the archive, makes its packages and this checkout importable here and in all that is started, and returns
    the kit. Call it before torch is imported."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kit = Kit(arguments.out.resolve(), arguments.seconds, arguments.device, arguments.small)
    places = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]
    if arguments.archive.exists():
        site = Path(tempfile.mkdtemp(prefix="gscfd-kit-"))
        with tarfile.open(arguments.archive) as archive:
            archive.extractall(site, filter="data")
        for library in (site / "lib").glob("*.so"):
            if not (ROOT / "gscfd" / library.name).exists():
                shutil.copy(library, ROOT / "gscfd")
        places.insert(0, str(site))
    kit.note(archive=str(arguments.archive) if arguments.archive.exists() else "none", python=sys.version.split()[0])
    sys.path[:0] = places
    # torch.cuda.is_available() must not start CUDA in the parent of forks.
    os.environ.update(PYTORCH_NVML_BASED_CUDA_CHECK="1", HF_HUB_OFFLINE="1", PYTHONUNBUFFERED="1")
    if kit.small:
        os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])
    return kit


def chosen(names: Sequence[str], known: dict[str, Part]) -> list[Part]:
    """Returns the parts of these names; exits with a message if there is no such part."""
    for name in names:
        if name not in known:
            sys.exit(f"parts: expected some of {', '.join(known)}, got {name}")
    return [known[name] for name in names]
