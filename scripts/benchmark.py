"""Benchmarks of gscfd: `benchmark.py rasterize`, `noise`, `step`, `cost`, `viewer` or `sweep`. Prints Markdown."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from algorithm2 import algorithm2
from full_size import CASES, cost_row, cost_table
from shapes import Scene, ball, render, sphere

from gscfd import native
from gscfd.cameras import turntable
from gscfd.config import Config, StageName, merged
from gscfd.distil.edits import LiveSettings
from gscfd.distil.loading import load_teachers
from gscfd.distil.noises import painted_noise
from gscfd.distil.pipeline import distil
from gscfd.distil.stage import PARTS, TEACHER_PARTS, StepReport
from gscfd.noise.field import NoiseField
from gscfd.noise.kinds import iid, radial, surface, world_map
from gscfd.rasterize import rasterization, reference
from gscfd.teachers.guided import GuidedTeacher
from gscfd.types import Cameras
from gscfd.viewer.live import LiveViewer


def median_times(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Returns median wall-clock and CPU time of a call in milliseconds, after two warm-up calls."""
    for _ in range(2 if repeats > 1 else 0):
        function()
    wall, cpu = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    return 1e3 * statistics.median(wall), 1e3 * statistics.median(cpu)


def render_and_differentiate(function: Callable[..., Any], scene: Scene, cameras: Cameras, **settings: Any) -> None:
    leaves = {name: value.requires_grad_() for name, value in scene.items()}
    colors, alphas = render(function, leaves, cameras, **settings)
    torch.autograd.grad(colors.sum() + alphas.sum(), list(leaves.values()))


def torch_in_bands(scene: Scene, cameras: Cameras, rows: int) -> None:
    """Runs the plain torch compositor on bands of rows, because the whole image would not fit in memory."""
    for top in range(0, cameras.height, rows):
        Ks = cameras.Ks.clone()
        Ks[:, 1, 2] -= top
        render_and_differentiate(reference.rasterization, scene, Cameras(cameras.viewmats, Ks, cameras.width, rows))


def rasterize(arguments: argparse.Namespace) -> None:
    """forward and backward times of the CPU rasterizer, and of the plain torch compositor for comparison"""
    threads, repeats = torch.get_num_threads(), arguments.repeats
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{platform.machine()}, {native.instruction_set()}, {threads} threads, torch {torch.__version__}, ", end="")
    print(f"load average at start {load:.1f}.\nColor and expected depth (4 channels), medians of {repeats}. ", end="")
    print("On a busy machine, compare CPU time on one thread.\n")
    print("| Gaussians | views | pixels | tile | forward ms | forward + backward ms | CPU ms on one thread |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for count, views, size in ((10_000, 1, 128), (30_000, 1, 256), (2_000, 4, 64), (5_000, 4, 64)):
        scene, cameras = ball(count), turntable(views, size=size)
        for tile in (None, 8, 16):

            def both(scene: Scene = scene, cameras: Cameras = cameras, tile: int | None = tile) -> None:
                render_and_differentiate(rasterization, scene, cameras, tile_size=tile)

            def forward(scene: Scene = scene, cameras: Cameras = cameras, tile: int | None = tile) -> None:
                with torch.no_grad():
                    render(rasterization, scene, cameras, tile_size=tile)

            forward_wall, _ = median_times(forward, repeats)
            wall, _ = median_times(both, repeats)
            torch.set_num_threads(1)
            _, cpu = median_times(both, repeats)
            torch.set_num_threads(threads)
            times = f"{forward_wall:.1f} | {wall:.1f} | {cpu:.1f}"
            print(f"| {count:,} | {views} | {size}² | {tile or 'default'} | {times} |", flush=True)
    if arguments.compare:
        compare_with_torch(repeats)


def compare_with_torch(repeats: int) -> None:
    """Prints the CPU times of both on one thread, forward + backward."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print(
        "\n| forward + backward, CPU ms on one thread | native | plain torch compositor | ratio |\n|---|---:|---:|---:|"
    )
    for count, size, rows in ((1_000, 64, 64), (10_000, 128, 8)):
        scene, cameras = ball(count), turntable(1, size=size)
        _, ours = median_times(partial(render_and_differentiate, rasterization, scene, cameras), repeats)
        _, theirs = median_times(partial(torch_in_bands, scene, cameras, rows), 3 if rows == size else 1)
        note = "" if rows == size else f", torch in bands of {rows} rows, one run"
        print(f"| {count:,} Gaussians, {size}²{note} | {ours:.1f} | {theirs:.0f} | {theirs / ours:.0f} |", flush=True)
    torch.set_num_threads(threads)


def noise(arguments: argparse.Namespace) -> None:
    """times of the noise functions, of the paper's Algorithm 2 in torch, and the noise's share of a training step"""
    print(f"{platform.machine()}, {native.instruction_set()}, {torch.get_num_threads()} threads, 4 views of a sphere,")
    print(f"load average at start {os.getloadavg()[0]:.1f}, medians of {arguments.repeats}. Times per view.\n")
    print("| latents | depth | noise | ms | CPU ms | time / surface, gamma 1e-4 | bytes kept between steps |")
    print("|---:|---:|---|---:|---:|---:|---:|")
    for latent, size in ((16, 64), (32, 128), (64, 512)):
        cameras = turntable(4, size=size)
        render = sphere(cameras)
        rows = []
        for name, function, gamma in (
            ("surface, gamma 1e-4", surface, 1e-4),
            ("surface, gamma 0", surface, 0.0),
            ("iid", iid, 1e-4),
            ("world_map, gamma 1e-4", world_map, 1e-4),
            ("radial, gamma 1e-4", radial, 1e-4),
        ):
            field = NoiseField(0, 4, latent, latent, gamma=gamma)
            call = partial(function, field, cameras, render, 1001)
            rows.append((name, 0, *median_times(call, arguments.repeats)))
        if arguments.compare:
            noise_map = torch.randn(4, 2048, 2048, generator=torch.Generator().manual_seed(0))
            call = partial(algorithm2, noise_map, cameras, render, latent, latent)
            kept = noise_map.numel() * noise_map.element_size()
            rows.append(("Algorithm 2 in torch, 2048² map", kept, *median_times(call, max(1, arguments.repeats // 30))))
        for name, kept, wall, cpu in rows:
            times = f"{wall / 4:.3f} | {cpu / 4:.3f} | {wall / rows[0][2]:.2f}"
            print(f"| {latent}² x 4 | {size}² | {name} | {times} | {kept:,} |", flush=True)
    if arguments.compare:
        share_of_a_step(arguments.steps)


class Enough(Exception):
    """Ends a run after enough steps have been measured."""


LENGTHS: dict[str, dict[str, dict[str, int]]] = {
    "coarse": {"polish": {"steps": 0}},
    "refine": {"coarse": {"steps": 1}, "refine": {"steps": 100}, "polish": {"steps": 0}},
}
"""Changes of the default run that make its steps those of a stage. It has no refine stage: one follows a coarse
step."""


def share_of_a_step(steps: int) -> None:
    """Prints the noise's share of the first `steps` toybox steps of each stage."""
    print("\n| toybox stage | noise | noise ms | whole step ms | share |\n|---|---|---:|---:|---:|")
    for stage, lengths in LENGTHS.items():
        for kind in ("surface", "radial", "world_map"):
            config = merged(Config(), {"prompt": "a yellow duck", "seed": 1, "noise": {"kind": kind}, **lengths})
            reports: list[StepReport] = []

            def on_step(report: StepReport, stage: str = stage, reports: list[StepReport] = reports) -> None:
                if report.stage == stage:
                    reports.append(report)
                if len(reports) == steps:
                    raise Enough

            with suppress(Enough):
                distil(config, load_teachers(config), on_step)
            drawn = 1e3 * statistics.median(report.seconds["noise"] for report in reports)
            whole = 1e3 * statistics.median(sum(report.seconds.values()) for report in reports)
            print(f"| {stage} | {kind} | {drawn:.2f} | {whole:.1f} | {drawn / whole:.2%} |", flush=True)


def step(arguments: argparse.Namespace) -> None:
    """time of the parts of a toybox step in both precisions, and its ratio to the teacher's time"""
    print(f"{platform.machine()}, {native.instruction_set()}, {torch.get_num_threads()} threads; medians in ms\n")
    print("| stage | teachers in | " + " | ".join(PARTS) + " | whole step ms | outside the teacher | step / teacher |")
    print("|---" * (len(PARTS) + 5) + "|")
    for dtype in ("float32", "bfloat16"):
        for name, lengths in LENGTHS.items():
            config = merged(Config(), {"prompt": arguments.prompt, "seed": 1, "dtype": dtype, **lengths})
            rows: list[Mapping[str, float]] = []

            def on_step(report: StepReport, name: str = name, rows: list[Mapping[str, float]] = rows) -> None:
                if report.stage == name:
                    rows.append(report.seconds)

            distil(config, load_teachers(config), on_step)
            parts = {part: 1e3 * statistics.median(row[part] for row in rows) for part in PARTS}
            whole, networks = sum(parts.values()), sum(parts[part] for part in TEACHER_PARTS)
            cells = " | ".join(f"{parts[part]:.1f}" for part in PARTS)
            ratios = f"{1 - networks / whole:.1%} | {whole / networks:.2f}"
            print(f"| {name} | {dtype} | {cells} | {whole:.1f} | {ratios} |", flush=True)


def cost(arguments: argparse.Namespace) -> None:
    """operations and bytes of a step with large teachers, counted without running them, and the estimated time"""
    print(cost_table([cost_row(case) for case in CASES]))


WARM_UP = 3
"""Number of warm-up steps that are not timed."""


def timed_steps(
    config: Config, teachers: dict[StageName, GuidedTeacher], steps: int, viewer: LiveViewer | None
) -> list[float]:
    """Returns seconds of the first steps of a run, including all work of the training thread."""
    live = LiveSettings(config, teachers)
    ends: list[float] = []

    def on_step(report: StepReport) -> None:
        if viewer is not None:
            viewer.on_step(report, live)
        ends.append(time.perf_counter())
        if len(ends) == WARM_UP + steps:
            raise Enough

    with suppress(Enough):
        distil(config, teachers, on_step, live=live)
    return [after - before for before, after in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]


def watched_steps(config: Config, teachers: dict[StageName, GuidedTeacher], steps: int, browser: bool) -> list[float]:
    """Like `timed_steps`, with a viewer, and with or without a browser that reads everything it is sent."""
    viewer = LiveViewer(config, partial(painted_noise, config))
    client = None
    try:
        if browser:
            program = Path(__file__).with_name("viewer_client.py")
            client = subprocess.Popen([sys.executable, program, viewer.address], stdout=subprocess.DEVNULL)
            while not viewer.server.get_clients():
                time.sleep(0.1)
        return timed_steps(config, teachers, steps, viewer)
    finally:
        viewer.close()
        if client is not None:
            client.wait()


def viewer(arguments: argparse.Namespace) -> None:
    """steps per second with and without the viewer, alternating over the same steps"""
    config = merged(Config(), {"prompt": "a yellow duck", "seed": 1, "refine": {"steps": 0}, "polish": {"steps": 0}})
    teachers = load_teachers(config)
    runs: dict[str, Callable[[], list[float]]] = {
        "no viewer": partial(timed_steps, config, teachers, arguments.steps, None),
        "viewer, no browser": partial(watched_steps, config, teachers, arguments.steps, False),
        "viewer, one browser": partial(watched_steps, config, teachers, arguments.steps, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            seconds[name] += run()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}, toybox\n")
    print("| | steps/s | of no viewer |\n|---|---:|---:|")
    base = statistics.mean(seconds["no viewer"])
    for name, values in seconds.items():
        print(f"| {name} | {1 / statistics.mean(values):.2f} | {base / statistics.mean(values):.1%} |")


def seconds_of(*command: str | Path) -> float:
    """Returns the wall-clock time of a gscfd module run in its own process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def own_seconds(folder: Path) -> float:
    """Returns the time a finished run reports, from its first step to its last file."""
    (seconds,) = re.findall(r"done in ([\d.]+) s", (folder / "log.txt").read_text())
    return float(seconds)


def sweep(arguments: argparse.Namespace) -> None:
    """overhead of a sweep over `train` alone, and two workers against one run after another"""
    count, prompt, options = arguments.runs, "a yellow duck", arguments.rest
    print(f"{platform.machine()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; {count} runs\n")
    print("| | total seconds | before the first run | per run | overhead per run |\n|---" + "|---:" * 4 + "|")
    whole: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.txt").write_text(prompt)
        for workers in (0, 1, 2):
            out = folder / str(workers)
            if workers:
                out.mkdir()
                common: list[str | Path] = ["--prompts", folder / "prompts.txt", "--seeds", f"0:{count}", "--out", out]
                began = time.time()
                whole[workers] = seconds_of("gscfd.sweep", *common, "--workers", str(workers), *options)
                rows = [json.loads(line) for line in (out / "sweep.jsonl").read_text().splitlines()]
                started = {row["run"]: row["time"] for row in rows if row["event"] == "started"}
                took = {row["run"]: row["time"] - started[row["run"]] for row in rows if row["event"] == "finished"}
                first = min(started.values()) - began
            else:
                runs: list[list[str | Path]] = [
                    ["--prompt", prompt, "--seed", str(seed), "--out", out / str(seed)] for seed in range(count)
                ]
                took = {str(seed): seconds_of("gscfd.train", *run, *options) for seed, run in enumerate(runs)}
                whole[0], first = sum(took.values()), 0.0
            beside = statistics.mean(seconds - own_seconds(out / run) for run, seconds in took.items())
            kind = f"sweep, {workers} workers" if workers else "train, a process for each run"
            print(
                f"| {kind} | {whole[workers]:.1f} | {first:.1f} | {whole[workers] / count:.1f} | {beside:.2f} |",
                flush=True,
            )
    print(f"\nA run of the sweep: {(whole[1] - whole[0]) / count:+.2f} s against train, with a share of Ray's start;")
    print(f"two workers take {whole[2] / whole[0]:.2f} of the time of train, one run after another.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="PART")
    command = commands.add_parser("rasterize", help=rasterize.__doc__)
    command.add_argument("--repeats", type=int, default=30, help="calls per figure (default 30)")
    compare = "also time the plain torch compositor (half a minute on an idle machine)"
    command.add_argument("--compare", action=argparse.BooleanOptionalAction, default=True, help=compare)
    command.set_defaults(run=rasterize)
    command = commands.add_parser("noise", help=noise.__doc__)
    command.add_argument("--repeats", type=int, default=100, help="calls per figure (default 100)")
    compare = "also time the paper's Algorithm 2 in torch, and the share of a training step"
    command.add_argument("--compare", action=argparse.BooleanOptionalAction, default=True, help=compare)
    command.add_argument("--steps", type=int, default=20, help="training steps of each stage (default 20)")
    command.set_defaults(run=noise)
    command = commands.add_parser("step", help=step.__doc__)
    command.add_argument("--prompt", default="a yellow duck", help="prompt of the run (default: a yellow duck)")
    command.set_defaults(run=step)
    command = commands.add_parser("cost", help=cost.__doc__)
    command.set_defaults(run=cost)
    command = commands.add_parser("viewer", help=viewer.__doc__)
    command.add_argument("--steps", type=int, default=30, help="training steps timed per round (default 30)")
    command.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    command.set_defaults(run=viewer)
    command = commands.add_parser("sweep", help=sweep.__doc__)
    command.add_argument("--runs", type=int, default=4, help="seeds of one prompt (default 4)")
    command.add_argument("rest", nargs="*", help="options of gscfd.train for every run, after --")
    command.set_defaults(run=sweep)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
