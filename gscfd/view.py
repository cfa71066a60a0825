"""Look at what runs have made: `python -m gscfd.view RUN_DIR|PLY [RUN_DIR2|PLY2]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from gscfd.cli import exit_code
from gscfd.config import Config, ServerConfig, check, load_run
from gscfd.errors import UserError


@dataclass(kw_only=True)
class ViewOptions(ServerConfig):
    """Show a splat in the browser, or two side by side; of a run that still goes on, also its saved steps as they come.
    Ctrl-C ends it."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """One or two: the folder of a run, or a 3DGS .ply of any program."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= len(self.paths) <= 2, "paths", "one or two", len(self.paths))


def settings_of(path: Path) -> Config | None:
    """Of the run there, if it is one. Raises UserError when there is nothing to show, now or later."""
    if (path / "config.yaml").is_file():
        return load_run(path)
    if not path.is_file() and not (path / "splat.ply").is_file():
        raise UserError(f"paths: expected a .ply or the folder of a run, but there is no {path}, or it is neither")
    return None


def view(options: ViewOptions) -> None:
    """Raises UserError for what the user can mend."""
    from gscfd.distil.pipeline import painted_noise
    from gscfd.viewer.saved import SavedViewer

    config = [settings_of(path) for path in options.paths][0] or Config()
    viewer = SavedViewer(list(options.paths), options, partial(painted_noise, config))
    print(f"viewer: {viewer.address}", flush=True)
    viewer.serve()


def main(arguments: list[str] | None = None) -> int:
    options = tyro.cli(ViewOptions, args=arguments, prog="python -m gscfd.view")
    return exit_code(lambda: view(options))


if __name__ == "__main__":
    sys.exit(main())
