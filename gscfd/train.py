"""The command line, `python -m gscfd.train --prompt "a yellow duck"`: chooses the parts; all else receives them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from gscfd.config import Config, presets
from gscfd.devices import choose_dtype, run_device
from gscfd.distil.pipeline import painted_noise
from gscfd.distil.preflight import check_settings, load_teachers, preflight, warn_of_left_gpu
from gscfd.distil.start import read_start
from gscfd.errors import UserError
from gscfd.runs.folder import Stopped
from gscfd.runs.make import Steer, make_run
from gscfd.runs.names import check_folder
from gscfd.runs.options import default_preset, option, parse
from gscfd.runs.plan import plan
from gscfd.toybox.words import vocabulary


def train(config: Config) -> int:
    """The whole command: run folder, progress, viewer, exports. Returns the exit code."""
    preflight(config)
    check_folder(config)
    teachers = load_teachers(config)
    warn_of_left_gpu(config)
    if run_device(config).type == "cuda" and config.noise.device == "cpu":
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


def show_plan(config: Config) -> int:
    """The whole command of --dry-run: what a run would do, and nothing of it. Returns the exit code."""
    check_settings(config)
    folder = check_folder(config)
    device = run_device(config)
    start = read_start(config.init) if config.resume is None else None
    print("\n".join(plan(config, folder, device, choose_dtype(config.dtype, device), start)))
    return 0


@contextmanager
def watched(config: Config) -> Iterator[Steer | None]:
    """Serve the viewer, if it is wanted; yields what steers the run. Raises UserError when it cannot be served."""
    if not config.viewer.on:
        yield None
        return
    from gscfd.viewer.live import LiveViewer
    from gscfd.viewer.steer import steer

    viewer = LiveViewer(config, lambda cameras, render: painted_noise(config, cameras, render))
    print(f"viewer: {viewer.address}", flush=True)
    try:
        yield partial(steer, viewer)
    finally:
        viewer.close()


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--list-words" in arguments:
        print(" ".join(vocabulary()))
        return 0
    try:
        config = parse(arguments)
        if option(arguments, "--preset") is None and config.resume is None:
            others = ", ".join(name for name in presets() if name != config.preset)
            print(f"preset: {config.preset}, {default_preset(config.device)[1]}; others by --preset: {others}")
        return show_plan(config) if config.dry_run else train(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
