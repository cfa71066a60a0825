"""Makes a run, prompt in, run folder out: `python -m gscfd.train --prompt "a yellow duck"`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from gscfd.cli import exit_code
from gscfd.config import Config, presets
from gscfd.runs.options import default_preset, option, parse

if TYPE_CHECKING:
    from gscfd.runs.make import Steer


def train(config: Config) -> int:
    """Makes the run, with progress, viewer and exports. Returns the exit code."""
    from gscfd.devices import run_device
    from gscfd.distil.preflight import load_teachers, preflight, warn_of_left_gpu
    from gscfd.rasterize import cuda_renderer
    from gscfd.runs.folder import Stopped
    from gscfd.runs.make import make_run
    from gscfd.runs.names import check_folder

    preflight(config)
    check_folder(config)
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
    try:
        with watched(config) as steer:
            make_run(config, teachers, steer)
    except Stopped as stopped:
        print(f"\nstopped: {stopped}")
        return stopped.code
    return 0


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
def watched(config: Config) -> Iterator[Steer | None]:
    """Serves the viewer if it is enabled, and yields the callable that steers the run, or None.

    Raises UserError if the viewer cannot be served.
    """
    if not config.viewer.on:
        yield None
        return
    from gscfd.distil.pipeline import painted_noise
    from gscfd.viewer.live import LiveViewer
    from gscfd.viewer.steer import steer

    viewer = LiveViewer(config, partial(painted_noise, config))
    print(f"viewer: {viewer.address}", flush=True)
    try:
        yield partial(steer, viewer)
    finally:
        viewer.close()


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments

    def command() -> int:
        config = parse(arguments)
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
