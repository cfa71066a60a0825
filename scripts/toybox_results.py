"""Make and score the runs behind docs/results.md: 20 prompts, one seed, default settings.

    python scripts/toybox_results.py OUT [--guidance cfd sds] [--seed 0] [further gscfd.train options after --]

Ten prompts are (kind, colour) pairs that the teachers never saw together. Finished runs are kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from gscfd.evaluate import Settings
from gscfd.evaluate import main as evaluate
from gscfd.runs import default_folder

KNOWN = (
    "a yellow duck",
    "a red mushroom with a white stem",
    "a snowman with a blue hat",
    "a green cactus in an orange pot",
    "a white house with a red roof",
    "a yellow duck on a brown table",
    "a blue mug",
    "a red car",
    "a brown guitar",
    "a purple crown",
)
WITHHELD = (
    "a purple duck",
    "a cyan mushroom",
    "an orange mug",
    "a purple chair",
    "a pink penguin",
    "a brown teapot",
    "a red lamp",
    "a yellow rocket",
    "a gray fish",
    "a white sofa",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--guidance", nargs="+", default=["cfd"], choices=["cfd", "sds"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("rest", nargs="*", help="further options of gscfd.train, after --")
    arguments = parser.parse_args()
    for guidance in arguments.guidance:
        runs = []
        for prompt in KNOWN + WITHHELD:
            run = arguments.out / guidance / default_folder(prompt, arguments.seed).name
            if not (run / "turntable.mp4").exists():
                command = [sys.executable, "-m", "gscfd.train", "--prompt", prompt, "--guidance", guidance]
                command += ["--seed", str(arguments.seed), "--out", str(run), "--overwrite", *arguments.rest]
                subprocess.run(command, check=True)
            runs.append(run)
        evaluate(Settings(runs=tuple(runs), report=arguments.out / guidance / "report"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
