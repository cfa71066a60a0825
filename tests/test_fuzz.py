"""Damaged files: each is read, or refused with a UserError, in bounded memory, and no code in it is run."""

from __future__ import annotations

import io
import json
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mutations import (
    Damage,
    damaged_archive,
    damaged_bytes,
    damaged_json,
    damaged_lines,
    damaged_rows,
    damaged_safetensors,
    truncated,
)
from present import as_a, present
from safetensors.torch import save
from tiny import stage_config, tiny_stage

from gscfd.config import Config, load_preset, plain
from gscfd.distil.stage import StepReport
from gscfd.distil.state import Checkpoint, StageState
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians, ball
from gscfd.lab.examine import recorded
from gscfd.ply import ply_bytes, read_tensors
from gscfd.runs.checkpoint import Checkpoints, DamagedError, canonical, digest
from gscfd.studio.orders import Orders
from gscfd.studio.progress import Progress
from gscfd.sweeps.journal import last_failures
from gscfd.sweeps.make import reached
from gscfd.teachers.weights import read_json, read_state
from gscfd.viewer.saved import read_checkpoint

MUTATIONS = 190
"""For each of the eleven kinds of file: 2 090 in all."""
MOST_BYTES = 100_000_000
"""Resident memory that reading a file of some kilobytes may take, with what the allocators keep."""
JOINT = b"\n--- the other file ---\n"


@dataclass(frozen=True)
class Kind:
    """One kind of file from outside."""

    make: Callable[[], bytes]
    read: Callable[[Path], object]
    damages: tuple[Damage, ...]
    """Beside any bytes and truncation."""
    checked: bool = True
    """Whether damage is noticed; otherwise damaged rows are skipped."""


def splat_tensors() -> dict[str, torch.Tensor]:
    return ball(20, radius=0.5, opacity=0.5, sh_degree=1, generator=torch.Generator().manual_seed(0)).tensors()


def ascii_ply(color: str = "f_dc", sizes: int = 3) -> bytes:
    colors = ["uchar red", "uchar green", "uchar blue"] if color == "red" else [f"float f_dc_{i}" for i in range(3)]
    names = ["float x", "float y", "float z", *colors, "float opacity"]
    names += [*(f"float scale_{i}" for i in range(sizes)), *(f"float rot_{i}" for i in range(4))]
    head = ["ply", "format ascii 1.0", "element vertex 8", *(f"property {n}" for n in names), "end_header"]
    rows = [[str(i) if "uchar" in n else f"{0.1 * (i + j):.3f}" for j, n in enumerate(names)] for i in range(8)]
    return "\n".join([*head, *map(" ".join, rows), ""]).encode()


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(30.0), "b": torch.ones(4, 4)}, file)
    return file.getvalue()


def read_splat(path: Path) -> None:
    Gaussians(**read_tensors(path))


# ------------------------------------------------------------------------------------------------- checkpoints of a run


def saved_checkpoint(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=2)

    def save_step(report: StepReport) -> None:
        if report.step == 2:
            state = report.state.state_dict()
            checkpoints.save(Checkpoint("coarse", state, rows=3, device="cpu", config=plain(Config(prompt="a mug"))))

    tiny_stage(stage_config(steps=3), on_step=save_step, keep_every=2)
    return checkpoints


def checkpoint_files(tmp: Path) -> bytes:
    checkpoints = saved_checkpoint(tmp / "checkpoints")
    return checkpoints.path(1, "json").read_bytes() + JOINT + checkpoints.path(1, "safetensors").read_bytes()


def resume_checkpoint(path: Path) -> None:
    """Read both files as a resumed run and the viewer do. Their checksums are those of the damaged content, as if
    another program had written it."""
    head, _, tensors = path.read_bytes().partition(JOINT)
    folder = path.with_name("checkpoints")
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    try:
        content = json.loads(head)
        content["sha256"] = {"tensors": digest(tensors), "facts": digest(canonical(content["facts"]))}
        head = json.dumps(content).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    (folder / "000001.json").write_bytes(head)
    (folder / "000001.safetensors").write_bytes(tensors)
    checkpoints = Checkpoints(folder, keep=2)
    read_checkpoint(checkpoints, 1)
    checkpoint = present(checkpoints.newest())
    gaussians = ball(60, radius=0.6, opacity=0.3, generator=torch.Generator().manual_seed(3))
    StageState(gaussians, stage_config(steps=5), seed=5, keep_every=2).load_state_dict(checkpoint.state)
    assert len({len(value) for value in gaussians.params.values()}) == 1


def both_files(head: Damage, tensors: Damage) -> Damage:
    """Damage to one of the two files of a checkpoint."""

    def damage(content: bytes, draw: random.Random) -> bytes:
        first, _, second = content.partition(JOINT)
        if draw.random() < 0.5:
            return head(first, draw) + JOINT + second
        return first + JOINT + tensors(second, draw)

    return damage


# ------------------------------------------------------------------------------------------------ settings and journals


SETTINGS = b"""base: toybox
prompt: a mug
seed: 3
coarse: {steps: 12, cfg: 4.0, lr: {means: 0.02}}
refine:
  t_points: [[0.0, 0.9], [1.0, 0.5]]
  densify: {every: 5}
edits:
- {stage: coarse, step: 3, prompt: a red mug, cfg: 2.0}
init:
  ply: a.ply
  count: 50
"""


def read_settings(path: Path) -> None:
    load_preset(str(path))


STATS = b"".join(
    json.dumps({"stage": "coarse", "step": i, "loss": 0.5, "gaussians": 60, "memory": 9, "seconds": {"render": 0.1}})
    .encode() + b"\n"
    for i in range(6)
)  # fmt: skip
SWEEP = b'{"time": 1, "run": "a", "event": "failed", "error": "x"}\n{"time": 2, "run": "b", "event": "started"}\n'
STUDIO = (
    b'{"run": "", "event": "serving", "address": "http://127.0.0.1:1"}\n'
    b'{"run": "a-0", "event": "queued", "arguments": ["--prompt=a mug", "--seed", "0"]}\n'
    b'{"run": "a-0", "event": "starting"}\n{"run": "a-0", "event": "started", "pid": 99999999}\n'
    b'{"run": "a-0", "event": "failed", "error": "fog"}\n'
)


def read_stats(path: Path) -> None:
    progress = Progress(path.parent, Config(prompt="a mug"))
    progress.look()
    assert 0 <= progress.share <= 1 and str(progress)
    reached(path.parent)
    recorded(path.parent)


def read_studio(path: Path) -> None:
    orders = Orders(path.parent)
    orders.close()
    assert all(isinstance(name, str) for name in orders.waiting)


HEADER = (damaged_lines,)
KINDS: dict[str, Kind] = {
    "a.ply": Kind(lambda: ply_bytes(splat_tensors()), read_splat, HEADER),
    "b.ply": Kind(ascii_ply, read_splat, HEADER),
    "c.ply": Kind(lambda: ascii_ply("red", sizes=2), read_splat, HEADER),
    "a.safetensors": Kind(lambda: as_a(bytes, save(splat_tensors())), read_state, (damaged_safetensors,) * 3),
    "a.pt": Kind(pickled, read_state, (damaged_archive,) * 3),
    "a.json": Kind(lambda: b'{"a": [1, 2, {"b": null}], "c": "d", "e": 1e3}', read_json, (damaged_json,)),
    "config.yaml": Kind(lambda: SETTINGS, read_settings, (damaged_lines,) * 3),
    "stats.jsonl": Kind(lambda: STATS, read_stats, (damaged_rows,) * 3, checked=False),
    "sweep.jsonl": Kind(lambda: SWEEP, last_failures, (damaged_rows,) * 3, checked=False),
    "studio.jsonl": Kind(lambda: STUDIO, read_studio, (damaged_rows,) * 3, checked=False),
}


def peak_memory() -> int:
    """Peak resident memory in bytes since the last call; 0 on systems that do not tell."""
    if not sys.platform.startswith("linux"):
        return 0
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(line.split()[1])


def attack(kind: Kind, content: bytes, path: Path, draw: random.Random, mutations: int) -> int:
    """Reads so many damaged files; returns how many were refused. Fails at the first error of another type."""
    refused = 0
    for number in range(mutations):
        damage = draw.choice([damaged_bytes, truncated, *kind.damages])
        path.unlink(missing_ok=True)  # a file that is mapped into memory is not overwritten
        path.write_bytes(damage(content, draw))
        try:
            kind.read(path)
        except (UserError, DamagedError):
            refused += 1
        except Exception as error:
            kept = path.rename(path.with_name(f"found-{number}-{path.name}"))
            pytest.fail(f"{kept}: {type(error).__name__}: {error}")
    return refused


@pytest.mark.parametrize("name", [*KINDS, "checkpoint"])
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    damages = (both_files(damaged_json, damaged_safetensors),) * 4 + (both_files(damaged_bytes, damaged_bytes),)
    kind = KINDS.get(name) or Kind(lambda: checkpoint_files(tmp_path), resume_checkpoint, damages)
    path, content = tmp_path / name, kind.make()
    path.write_bytes(content)
    kind.read(path)
    before = peak_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = attack(kind, content, path, random.Random(0), MUTATIONS)
    assert peak_memory() - before < MOST_BYTES
    assert refused > MUTATIONS // 10 or not kind.checked, "control: the changes do damage"
