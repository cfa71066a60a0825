"""Damaged files: each is read, or refused with a UserError, in bounded memory, and no code in it is run."""

from __future__ import annotations

import io
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh as untyped
from mutations import (
    Damage,
    damaged_archive,
    damaged_bytes,
    damaged_glb,
    damaged_json,
    damaged_lines,
    damaged_rows,
    damaged_safetensors,
    truncated,
)
from PIL import Image
from present import as_a, present
from safetensors.torch import save
from tiny import stage_config, tiny_stage
from tiny_teachers import clip_tokenizer, stable_diffusion

from gscfd.config import Config, load_preset, plain
from gscfd.distil.meshes import mesh_gaussians
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
from gscfd.sweeps.matrix import read_matrix, read_prompts
from gscfd.teachers.load import load_teacher
from gscfd.teachers.texts import read_tokenizer
from gscfd.teachers.weights import read_json, read_state
from gscfd.viewer.saved import read_checkpoint

trimesh: Any = untyped
MUTATIONS = 190
"""For each kind of file, and fewer for a teacher's: 3 600 in all; tests/fuzz.py goes on for as long as it is told."""
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
    mutations: int = MUTATIONS


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


# -------------------------------------------------------------------------------------------------------------- meshes

SQUARE = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
FACES = [[0, 1, 2], [0, 2, 3]]
OBJ = b"mtllib m.mtl\nusemtl paint\n" + b"".join(
    b"v %g %g %g\nvt %g %g\nvn 0 0 1\n" % (x, y, z, x, y) for x, y, z in SQUARE
) + b"f 1/1/1 2/2/2 3/3/3\nf 1/1/1 3/3/3 4/4/4\n"  # fmt: skip
MTL = b"newmtl paint\nKa 1 1 1\nKd 0.8 0.2 0.1\nd 1.0\nmap_Kd t.png\n"


def picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(file, "png")
    return file.getvalue()


def glb() -> bytes:
    visual = trimesh.visual.TextureVisuals(uv=[row[:2] for row in SQUARE], image=Image.open(io.BytesIO(picture())))
    return as_a(bytes, trimesh.Trimesh(SQUARE, FACES, visual=visual, process=False).export(file_type="glb"))


def read_mesh(path: Path) -> None:
    """Read a mesh, of whose three files the others are whole."""
    for name, content in {"m.obj": OBJ, "m.mtl": MTL, "t.png": picture()}.items():
        if name != path.name:
            path.with_name(name).write_bytes(content)
    gaussians = mesh_gaussians(path if path.suffix == ".glb" else path.with_name("m.obj"), 50)
    assert all(value.isfinite().all() for value in gaussians.tensors().values())


# ----------------------------------------------------------------------------------------------------------- tokenizers


def tokenizer_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        clip_tokenizer().save_pretrained(folder)
        return (Path(folder) / "tokenizer.json").read_bytes()


def read_words(path: Path) -> None:
    read_tokenizer(path.parent)("a mug")


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


MATRIX = b"""prompts: [a mug, a red car]
methods: [cfd, sds]
seeds: 0:2
settings:
  plain: {}
  slow:
    coarse: {cfg: 4.0, steps: 12}
    noise: {beta: 1.0}
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
    "m.glb": Kind(glb, read_mesh, (damaged_glb,) * 3),
    "m.obj": Kind(lambda: OBJ, read_mesh, (damaged_lines,) * 3),
    "m.mtl": Kind(lambda: MTL, read_mesh, (damaged_lines,) * 3, checked=False),
    "t.png": Kind(picture, read_mesh, (), checked=False),
    "tokenizer.json": Kind(tokenizer_file, read_words, (damaged_json,) * 3),
    "matrix.yaml": Kind(lambda: MATRIX, read_matrix, (damaged_lines,) * 3),
    "prompts.txt": Kind(lambda: b"a mug\na red car\n# a comment\n\na duck\n", read_prompts, HEADER, checked=False),
}
CONFIGS = {
    "unet.json": "unet/config.json",
    "vae.json": "vae/config.json",
    "scheduler.json": "scheduler/scheduler_config.json",
}
"""Settings of a teacher's parts, by kind."""
NAMES = [*KINDS, *CONFIGS, "checkpoint"]
REFUSALS = (UserError, DamagedError)


def config_kind(place: Path) -> Kind:
    """The config at a place of a teacher, of which all else is whole."""
    teacher = place.parents[1]

    def make() -> bytes:
        return (stable_diffusion(teacher) / place.relative_to(teacher)).read_bytes()

    def read(path: Path) -> None:
        place.write_bytes(path.read_bytes())
        load_teacher(str(teacher), device="cpu")

    return Kind(make, read, (damaged_json,) * 3, mutations=60)


def kind_named(name: str, folder: Path) -> Kind:
    """Returns a kind of KINDS, or one whose files are made in the folder."""
    if name in CONFIGS:
        return config_kind(folder / f"teacher of {name}" / CONFIGS[name])
    damages = (both_files(damaged_json, damaged_safetensors),) * 4 + (both_files(damaged_bytes, damaged_bytes),)
    return KINDS.get(name) or Kind(lambda: checkpoint_files(folder), resume_checkpoint, damages)


def peak_memory() -> int:
    """Peak resident memory in bytes since the last call; 0 on systems that do not tell."""
    if not sys.platform.startswith("linux"):
        return 0
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(line.split()[1])


def attack(kind: Kind, content: bytes, path: Path, draw: random.Random) -> Exception | None:
    """Reads a damaged file; returns the error that it raised."""
    damage = draw.choice([damaged_bytes, truncated, *kind.damages])
    path.unlink(missing_ok=True)  # a file that is mapped into memory is not overwritten
    path.write_bytes(damage(content, draw))
    try:
        kind.read(path)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    kind, path, draw = kind_named(name, tmp_path), tmp_path / name, random.Random(0)
    content = kind.make()
    path.write_bytes(content)
    kind.read(path)
    before, refused = peak_memory(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(kind.mutations):
            error = attack(kind, content, path, draw)
            assert error is None or isinstance(error, REFUSALS), f"mutation {number} of {path}: {error!r}"
            refused += error is not None
    assert peak_memory() - before < MOST_BYTES
    assert refused > kind.mutations // 10 or not kind.checked, "control: the changes do damage"
