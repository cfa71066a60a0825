"""Rehearses `first.py` and `second.py` on the CPU with small sizes, so that on a GPU only the GPU itself is new.

`rehearse.py` uses this environment; `rehearse.py --python build/gpu/venv/bin/python` the GPU machine's own packages and
the archive of `prepare.py`. Everything must pass, and the results must fit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kit import ARCHIVE, ROOT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="Python to rehearse with (default: this one)")
    parser.add_argument(
        "--archive", type=Path, default=ARCHIVE, help="archive to use (default: prepare's, if it exists)"
    )
    parser.add_argument("--out", type=Path, default=None, help="folder of results (default: a temporary one)")
    parser.add_argument("--seconds", type=float, default=1800, help="of each command; the CPU is slow (default 1800)")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="rehearsal-"))
    codes = []
    for name in ("first", "second"):
        begin = time.monotonic()
        command = [options.python, str(ROOT / f"scripts/gpu/{name}.py"), "--device", "cpu", "--small"]
        command += ["--out", str(out / name), "--archive", str(options.archive), "--seconds", str(options.seconds)]
        codes.append(subprocess.run(command, cwd=ROOT).returncode)
        print(f"{name}: exit code {codes[-1]} after {time.monotonic() - begin:.0f} s; see {out / name}", flush=True)
    print("the rehearsal is green" if not any(codes) else "the rehearsal FAILED")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
