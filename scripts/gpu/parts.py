"""What only a GPU can tell, in parts. On the CPU the same parts run as a rehearsal; what needs CUDA itself is noted."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import full_size as sizes
import torch
from kit import ROOT, Kit, Part
from shapes import sphere
from torch import Tensor

from gscfd import train
from gscfd.cameras import turntable
from gscfd.config import Config, merged
from gscfd.distil.loading import load_teachers
from gscfd.distil.pipeline import distil
from gscfd.distil.stage import PARTS, TEACHER_PARTS, StepReport
from gscfd.gaussians import ball, rasterize
from gscfd.gpu import driver
from gscfd.health import findings
from gscfd.noise import kinds
from gscfd.noise.field import BACKGROUNDS, NoiseField
from gscfd.rasterize import kernels
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.tuning import compile_networks

NOISES = (("64 x 64 x 4 from 512 x 512", 64, 4, 512, 60.0), ("128 x 128 x 16 from 1024 x 1024", 128, 16, 1024, 200.0))
"""Name, latent size, channels, render size, and the target for 8 views on an H200 in microseconds."""
SMALL_NOISES = (("8 x 8 x 4 from 64 x 64", 8, 4, 64, 60.0), ("16 x 16 x 16 from 64 x 64", 16, 16, 64, 200.0))
PACKAGES = ("torch", "triton", "diffusers", "transformers", "peft", "gsplat", "numpy")
CASES = {f"{case.size.name}, {case.views} views": case for case in sizes.CASES}
TESTS = ("noise_cuda", "rasterize", "regularizers", "saving", "mcmc")
"""All test files with tests that need CUDA; none needs packages that a bare GPU machine lacks."""
CUDA_BIN = "/usr/local/cuda/bin"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
PROMPT = "a yellow duck"


def environment(kit: Kit) -> None:
    """Versions, the machine, and the doctor's findings."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES if has(name)}
    kit.note(python=sys.version.split()[0], cores=os.cpu_count(), versions=found, cuda=torch.version.cuda)
    if kit.device == "cuda":
        kit.note(gpu=str(torch.cuda.get_device_properties(0)), driver=".".join(map(str, driver.version())))
    for name, finding in findings():
        passed = finding.state == "ok" or kit.device == "cpu"
        kit.check(name, passed, state=finding.state, words=finding.words, action=finding.action)
    if kit.device == "cuda" or kernels.installed():
        kernels.load()
        kit.note(gsplat=sys.modules[kernels.NAME].__file__)


def has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def noise_parity(kit: Kit) -> None:
    """The noise of the CPU and of the device, at two sizes on three backgrounds."""
    for name, latent, channels, size, _ in SMALL_NOISES if kit.small else NOISES:
        cameras = turntable(2, size=size)
        render = sphere(cameras)
        there = cameras.to(kit.device), render.to(kit.device)
        for background in BACKGROUNDS:
            field = NoiseField(1, channels, latent, latent, gamma=1e-3, background=background, beta=0.9)
            cpu = kinds.surface_parts(field, cameras, render, 1001)
            found = kinds.surface_parts(field, *there, 1001)
            same = found.counts.cpu() == cpu.counts
            whole = kinds.surface(field, *there, 1001).cpu() - kinds.surface(field, cameras, render, 1001)
            share, error = same.double().mean().item(), whole.abs().amax(1)[same].max().item()
            what = f"{name}, {background}"
            kit.check(f"{what}: pixels with equal counts", share >= 0.999, measured=share, wanted=">= 0.999")
            kit.check(f"{what}: largest difference there", error <= 1e-5, measured=error, wanted="<= 1e-5")
            again = kinds.surface_parts(field, *there, 1001)
            equal = torch.equal(again.noise, found.noise)
            kit.check(f"{what}: equal when drawn again", equal, measured=equal, wanted="bit for bit")


def noise_times(kit: Kit) -> None:
    """Device time of the noise of 8 views, called and replayed as a graph, and of each kernel."""
    calls = list[tuple[str, float, Callable[[], object]]]()
    for name, latent, channels, size, target in SMALL_NOISES if kit.small else NOISES:
        cameras = turntable(8, size=size)
        render, cameras = sphere(cameras).to(kit.device), cameras.to(kit.device)
        for gamma in (0.0, 1e-4):
            field = NoiseField(1, channels, latent, latent, gamma=gamma)
            call = partial(kinds.surface, field, cameras, render, 1001)
            best = called = microseconds(kit, call)
            facts = dict[str, Any]()
            if kit.device == "cuda":
                best = microseconds(kit, captured(call).replay)
                facts = {"graph_us": best}
            draws = len(field.nodes(1001))
            kit.note(noise=name, gamma=gamma, draws=draws, us=called, **facts, target_us=target, reached=best <= target)
            calls.append((name, gamma, call))
    if kit.device == "cuda":  # after all times: a profiler that fails, or that stays in the way, costs none of them
        for name, gamma, drawn in calls:
            kit.note(noise=name, gamma=gamma, kernels_us=kernel_times(drawn))


HEAD_START = 20_000_000
"""Cycles of the GPU, about 10 ms, in which the host launches all calls that are timed."""


def microseconds(kit: Kit, call: Callable[[], object], repeats: int = 30, inner: int = 10) -> float:
    """Returns the median time of a call after a warm-up; on CUDA, device time of `inner` calls between two events."""
    for _ in range(3):
        call()
    times = list[float]()
    for _ in range(2 if kit.small else repeats):
        if kit.device == "cpu":
            begin = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - begin))
            continue
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(HEAD_START)  # the host runs ahead, so that the latency of launches does not count
        start.record()
        for _ in range(inner):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(end) / inner)
    return round(statistics.median(times), 1)


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def kernel_times(call: Callable[[], object], calls: int = 10) -> dict[str, float]:
    """Returns device microseconds per call of each kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    times = Counter[str]()
    for entry in profile.key_averages():
        times[entry.key[:60]] += entry.device_time_total / calls  # torch's own names are long, and share their ends
    return {name: round(time, 1) for name, time in times.items()}


def rasterizer_parity(kit: Kit) -> None:
    """The images, and the gradients of all parameters, of the CPU's rasterizer and the device's."""
    for degree in (0, 3):
        found: dict[str, dict[str, Tensor]] = {"cpu": {}, "device": {}}
        for place, device in (("cpu", "cpu"), ("device", kit.device)):
            generator = torch.Generator().manual_seed(0)
            count = 300 if kit.small else 10_000
            gaussians = ball(count, radius=0.8, opacity=0.4, sh_degree=degree, generator=generator)
            if degree:
                gaussians.shN.data.copy_(0.1 * torch.randn(gaussians.shN.shape, generator=generator))
            gaussians.params.to(device)
            render = rasterize(gaussians, turntable(4, size=32 if kit.small else 128).to(device))
            images = {"rgb": render.rgb, "depth": render.depth, "opacity": render.opacity}
            weights = {name: torch.randn(image.shape, generator=generator) for name, image in images.items()}
            total = torch.stack([(image * weights[name].to(device)).sum() for name, image in images.items()]).sum()
            total.backward()
            found[place] = {name: image.detach().cpu() for name, image in images.items()}
            for name, value in gaussians.params.items():
                if value.numel() and value.grad is not None:
                    found[place][f"gradient of {name}"] = value.grad.cpu()
        for name, ours in found["cpu"].items():
            error = relative_error(ours, found["device"][name])
            what = f"degree {degree}, {name}: 99.9 % of the differences, of the largest value"
            kit.check(what, error <= 1e-3, measured=error, wanted="<= 1e-3")


def relative_error(a: Tensor, b: Tensor) -> float:
    """Returns the 99.9 % quantile of the differences, relative to the largest value: single pixels may include or drop
    a splat at the 1/255 limit."""
    difference = (a - b).abs().flatten().double().sort().values
    return (difference[int(0.999 * (len(difference) - 1))] / a.abs().max()).item()


def short(kit: Kit, steps: int, **changes: Any) -> Config:
    """Returns a run of the toybox with a few steps in its first stage alone."""
    stage = {"steps": 4 if kit.small else steps, **changes.pop("coarse", {})}
    settings = {"prompt": PROMPT, "device": kit.device, "coarse": stage, "refine": {"steps": 0}, "polish": {"steps": 0}}
    config: Config = merged(Config(), {**settings, **changes})
    return config


def whole_run(kit: Kit) -> None:
    """A whole toybox run by its own command; its splat and its picture come back, and the time of each part of a step
    is noted."""
    folder = Path(tempfile.mkdtemp()) / "duck"
    arguments = ["--prompt", PROMPT, "--preset", "toybox", "--device", kit.device, "--no-viewer", "--out", str(folder)]
    if kit.small:
        arguments += ["--coarse.steps", "6", "--polish.steps", "1"]
    begin = time.perf_counter()
    code = train.main(arguments)
    kit.check("a whole run", code == 0, measured=f"{time.perf_counter() - begin:.1f} s", wanted="exit code 0")
    shutil.copy(folder / "splat.ply", kit.out / "duck.ply")
    shutil.copy(folder / "turntable.png", kit.out / "duck.png")
    rows = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    kit.note(troubles=[row["trouble"] for row in rows if "trouble" in row])
    sound = [row for row in rows if "trouble" not in row]
    for stage in dict.fromkeys(row["stage"] for row in sound):
        mine = [row for row in sound if row["stage"] == stage]
        late = [row["seconds"] for row in mine[len(mine) // 2 :]]
        times = {part: round(1e3 * statistics.median(row[part] for row in late), 2) for part in late[0]}
        kit.note(stage=stage, steps=len(mine), ms=times, gaussians=mine[-1]["gaussians"], loss=mine[-1]["loss"])


def waits(kit: Kit) -> None:
    """The calls of a step that wait for the device, by torch's own warnings, with densification and without."""
    for name, densify in (
        ("densifying", {"start": 0.0, "stop": 1.0, "every": 1000}),
        ("still", {"start": 1.0, "stop": 1.0}),
    ):
        config = short(kit, 12, coarse={"densify": densify})
        teachers = load_teachers(config)

        def on_step(report: StepReport) -> None:
            if kit.device == "cuda":
                torch.cuda.set_sync_debug_mode("warn" if 3 <= report.step < report.steps - 1 else "default")

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            distil(config, teachers, on_step)
        places = [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchron" in str(w.message)]
        ours = [w.filename for w in caught if "synchron" in str(w.message) and "gsplat/cuda" not in w.filename]
        kit.check(f"waits outside gsplat's renderer, {name}", not ours, measured=dict(Counter(places)), wanted="none")


def mcmc(kit: Kit) -> None:
    """gsplat's other densification, whose kernels run on CUDA alone."""
    if kit.device == "cpu":
        return kit.note(skipped="gsplat's kernels for it run on CUDA alone")
    counts = list[int]()
    config = short(kit, 40, coarse={"densify": {"strategy": "mcmc", "every": 10}})
    distil(config, load_teachers(config), lambda report: counts.append(report.count))
    kit.check("Gaussians after 40 steps of mcmc", counts[-1] > counts[0], measured=counts[-1], wanted=f"> {counts[0]}")


def sanitizer(kit: Kit, tool: str) -> None:
    """The noise kernels under one of compute-sanitizer's tools."""
    command = [sys.executable, str(ROOT / "scripts/gpu/sanitize.py"), kit.device]
    if kit.device == "cuda":
        program = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), CUDA_BIN]))
        if program is None:
            return kit.note(skipped=f"compute-sanitizer is neither on PATH nor in {CUDA_BIN}")
        # Without torch's own cache of memory, or overruns would stay inside its blocks. The filter matches the names
        # of kernels, which begin with gscfd.
        filters = ["--kernel-name", "kernel_substring=gscfd", *(["--padding", "512"] if tool == "memcheck" else [])]
        command = [program, "--tool", tool, "--error-exitcode", "1", *filters, *command]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
    )
    print(done.stdout, done.stderr, sep="\n", flush=True)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    kit.check(f"compute-sanitizer {tool}", done.returncode == 0, measured=" ".join(last), wanted="no error")


def tests(kit: Kit) -> None:
    """The tests that need CUDA."""
    files = [f"tests/test_{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "requires_cuda", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    last = done.stdout.strip().splitlines()[-1:]
    kit.check("tests that need CUDA", done.returncode == 0, measured=" ".join(last), wanted="all passed")


def full_size(
    kit: Kit,
    names: tuple[str, ...] = ("MVDream, 4 views", "Stable Diffusion 2.1, 1 views", "SDXL, 1 views"),
    way: str = "plain",
    tune: Callable[[GuidedTeacher], None] | None = None,
) -> None:
    """Steps of teachers of the published sizes with random weights, and as many Gaussians as the presets allow."""
    device, dtype = torch.device(kit.device), torch.float32 if kit.device == "cpu" else torch.bfloat16
    for name in names:
        begin, case = time.perf_counter(), CASES[name]
        size = sizes.shrunk(case.size) if kit.small else case.size
        teacher = sizes.build_teacher(size, device=device, dtype=dtype)
        if tune is not None:
            tune(teacher)
        count = 50 if kit.small else case.settings().densify.max_count
        row = sizes.measure(case, teacher, device=device, steps=2 if kit.small else 12, init={"count": count})
        kit.note(
            case=name,
            way=way,
            step_ms=round(row.step, 1),
            over_networks=round(row.ratio(*TEACHER_PARTS), 3),
            memory_gb=None if row.memory is None else round(row.memory / 1e9, 2),
            took_s=round(time.perf_counter() - begin, 1),
            ms={part: round(row.parts[part], 2) for part in PARTS},
        )
        del teacher
        if kit.device == "cuda":
            torch.cuda.empty_cache()


def compiled(kit: Kit, way: str) -> None:
    """A step with the networks compiled, in one of torch's modes; a rehearsal traces them, and generates no code."""
    options: dict[str, Any] = {"backend": "aot_eager"} if kit.small else {"mode": way}
    full_size(kit, ("Stable Diffusion 2.1, 1 views",), way, partial(compile_networks, **options))


CHECKS = {
    part.name: part
    for part in (
        Part("environment", environment, 40),
        Part("noise parity", noise_parity, 60),
        Part("noise times", noise_times, 60),
        Part("rasterizer parity", rasterizer_parity, 60),
        Part("whole run", whole_run, 120),
        Part("waits", waits, 60),
        Part("mcmc", mcmc, 40),
        *(Part(tool, partial(sanitizer, tool=tool), 110) for tool in SANITIZERS),
        Part("tests", tests, 110),
        Part("full size", full_size, 150),
        Part("compiled", partial(compiled, way="default"), 150),
        Part("compiled, reduce-overhead", partial(compiled, way="reduce-overhead"), 150),
    )
}
ALONE = ("environment", "noise parity", "noise times", "rasterizer parity", "whole run", "waits", "mcmc")
TOGETHER = (*SANITIZERS, "tests", "full size")
"""Each of them keeps one core busy. Times beside others are upper bounds; `second` measures them alone."""
