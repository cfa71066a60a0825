"""Makes a run, prompt in, run folder out: `gscfd train "a yellow duck"`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gscfd.cli import exit_code, option
from gscfd.config import Config, presets
from gscfd.runs.options import default_preset, parse_command

if TYPE_CHECKING:
    from gscfd.runs.make import Steer
    from gscfd.viewer.live import LiveViewer

SIGNALS = {129, 130, 143}
"""Exit codes after SIGHUP, SIGINT (Ctrl-C) and SIGTERM."""


def train(config: Config) -> int:
    """Makes the run, with progress, viewer and exports. Returns the exit code."""
    from gscfd.devices import run_device
    from gscfd.distil.preflight import preflight, warn_of_left_gpu
    from gscfd.rasterize import cuda_renderer
    from gscfd.runs.names import check_folder, folder_of

    preflight(config)
    check_folder(config)
    # These load the libraries of the teachers, for seconds.
    from gscfd.distil.loading import load_teachers
    from gscfd.runs.folder import Stopped
    from gscfd.runs.make import make_run

    device = run_device(config)
    if device.type == "cuda":
        cuda_renderer()  # its kernels are compiled now, if they never were, and not amid the first step
    teachers = load_teachers(config)
    warn_of_left_gpu(config)
    if device.type == "cuda" and config.noise.device == "cpu":
        print("noise: drawn on the CPU and copied to the GPU (--noise.device cpu)")
    if config.compile:
        print("compile: the first steps of each stage compile the teacher's networks, which takes minutes")
    if config.edits:
        print(f"edits made in the viewer are made again at their steps: {len(config.edits)} (edits: in config.yaml)")
    with watched(config) as viewer:
        steer = None if viewer is None else steered_by(viewer)
        message, code = f"finished, saved in {folder_of(config)}", 0
        try:
            make_run(config, teachers, steer)
        except Stopped as stopped:
            message, code = f"stopped: {stopped}", stopped.code
            print(f"\n{message}")
        teachers.clear()
        if viewer is not None:
            show_end(viewer, message, folder_of(config), code)
    return code


def steered_by(viewer: LiveViewer) -> Steer:
    """Returns the callable by which the page steers the run."""
    from gscfd.viewer.steer import steer

    return partial(steer, viewer)


def show_end(viewer: LiveViewer, message: str, folder: Path, code: int) -> None:
    """Shows how the run ended until the page is closed; returns at once after a signal, or if no browser is there."""
    if code in SIGNALS and not viewer.controls.stopping:
        return
    viewer.end(message, folder)
    if viewer.server.get_clients():
        print(f"viewer: {viewer.address} stays until it is closed in the browser; Ctrl-C ends it", flush=True)
    with suppress(KeyboardInterrupt):
        viewer.stay()


def show_plan(config: Config) -> None:
    """Prints the plan of a run without making it."""
    from gscfd.devices import choose_dtype, run_device
    from gscfd.distil.preflight import check_settings
    from gscfd.distil.start import read_start
    from gscfd.runs.names import check_folder
    from gscfd.runs.plan import plan

    check_settings(config)
    folder = check_folder(config)
    device = run_device(config)
    start = read_start(config.init) if config.resume is None else None
    print("\n".join(plan(config, folder, device, choose_dtype(config.dtype, device), start)))


def list_words() -> None:
    """Prints the words that the toybox teachers know."""
    from gscfd.toybox.forms import word_table

    print(word_table())


@contextmanager
def watched(config: Config) -> Iterator[LiveViewer | None]:
    """Serves the viewer if it is enabled, and yields it, or None. Raises UserError if it cannot be served."""
    if not config.viewer.on:
        yield None
        return
    from gscfd.distil.noises import painted_noise
    from gscfd.viewer.live import LiveViewer

    viewer = LiveViewer(config, partial(painted_noise, config))
    print(f"viewer: {viewer.address}", flush=True)
    try:
        yield viewer
    finally:
        viewer.close()


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments

    def command() -> int:
        config = parse_command(arguments)
        if config.list_words:
            list_words()
            return 0
        if option(arguments, "--preset") is None and config.resume is None:
            others = ", ".join(name for name in presets() if name != config.preset)
            print(f"preset: {config.preset}, {default_preset(config.device)[1]}; others by --preset: {others}")
        if config.dry_run:
            show_plan(config)
            return 0
        return train(config)

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
