"""Make the gallery of the documentation's first page, docs/gallery, from finished runs with default settings.

    python scripts/gallery.py RUNS

RUNS is a folder of runs, such as the one that scripts/toybox_results.py makes. Each splat becomes a page, as by
`gscfd export --to html`, and a picture to show until the page is loaded; gallery.json lists them with prompt, seed and
command.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gscfd.cli import exit_code
from gscfd.config import load_run
from gscfd.errors import UserError
from gscfd.export.html import poster, write_html
from gscfd.export.write import WHITE
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians
from gscfd.runs.names import default_folder
from gscfd.toybox.truth import KNOWN_PROMPTS, WITHHELD_PROMPTS

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
PROMPTS = [*KNOWN_PROMPTS, *WITHHELD_PROMPTS]


def entry(run: Path) -> dict[str, object]:
    """Returns name, prompt, seed and command of a run. Raises UserError if the command would not make it."""
    config = load_run(run)
    if config.preset != "toybox" or config.guidance != "cfd" or config.init.ply or config.edits:
        raise UserError(f"runs: expected runs of the preset toybox alone, got {run}; leave it out")
    seed = f" --seed {config.seed}" if config.seed else ""
    name = default_folder(config.prompt, config.seed).name
    command = f'gscfd train "{config.prompt}"{seed}'
    return {"name": name, "prompt": config.prompt, "seed": config.seed, "command": command}


def make(folder: Path) -> None:
    """Writes the gallery of all finished runs in the folder. Raises UserError if there is none."""
    runs = [path.parent for path in sorted(folder.glob("*/splat.ply"))]
    if not runs:
        raise UserError(f"runs: expected a folder of finished runs, got {folder}, which holds none")
    entries = {run: entry(run) for run in runs}
    GALLERY.mkdir(exist_ok=True)
    for run, shown in entries.items():
        gaussians = Gaussians.load_ply(run / "splat.ply")
        page = GALLERY / f"{shown['name']}.html"
        write_html(gaussians, page, WHITE, str(shown["prompt"]))
        with atomic_write(page.with_suffix(".webp")) as file:
            file.write(poster(gaussians, WHITE))
    known = sorted(entries.values(), key=lambda e: (PROMPTS + [e["prompt"]]).index(str(e["prompt"])))
    kept = {f"{e['name']}{ending}" for e in known for ending in (".html", ".webp")} | {"gallery.json"}
    for path in GALLERY.iterdir():
        if path.name not in kept:
            path.unlink()
    with atomic_write(GALLERY / "gallery.json") as file:
        file.write((json.dumps(known, indent=1) + "\n").encode())
    print(f"{GALLERY}  {len(known)} splats, {sum(path.stat().st_size for path in GALLERY.iterdir()) / 1e6:.1f} MB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    options = parser.parse_args()
    return exit_code(lambda: make(options.runs))


if __name__ == "__main__":
    sys.exit(main())
