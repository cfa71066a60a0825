"""Shows one or two splats in the browser: `gscfd view RUN_DIR|PLY [RUN_DIR2|PLY2]`."""

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
    """Show a splat in the browser, or two side by side. A run in progress is shown at its saved steps, as they appear.
    Ctrl-C quits."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """One or two paths, each a run folder or a 3DGS .ply from any program."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= len(self.paths) <= 2, "paths", "one or two", len(self.paths))


def settings_of(path: Path) -> Config | None:
    """Returns the settings of the run at the path, or None for a splat without settings.

    Raises UserError if the path is neither a run nor a splat.
    """
    if (path / "config.yaml").is_file():
        return load_run(path)
    if not path.is_file() and not (path / "splat.ply").is_file():
        raise UserError(f"paths: expected a .ply or the folder of a run, but there is no {path}, or it is neither")
    return None


def view(options: ViewOptions) -> None:
    """Serves the viewer until Ctrl-C. Raises UserError for bad input."""
    from gscfd.distil.noises import painted_noise
    from gscfd.viewer.saved import SavedViewer

    config = [settings_of(path) for path in options.paths][0] or Config()
    viewer = SavedViewer(list(options.paths), options, partial(painted_noise, config))
    print(f"viewer: {viewer.address}", flush=True)
    viewer.serve()


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: view(tyro.cli(ViewOptions, args=arguments, prog="gscfd view")))


if __name__ == "__main__":
    sys.exit(main())
