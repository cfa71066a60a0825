"""Faults of the machine: disks that are full or cannot be written, locales other than UTF-8."""

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from gscfd.cli import check_out, exit_code
from gscfd.config import Config
from gscfd.errors import UserError
from gscfd.export import FORMATS
from gscfd.export.__main__ import main as export
from gscfd.export.mesh import Mesh
from gscfd.export.write import MESHES
from gscfd.gaussians import Gaussians, ball
from gscfd.runs.names import check_folder

NOBODY = 65534
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FAST = {"mp4": ["--frames", "2", "--size", "32"], "png": ["--frames", "2", "--size", "32"]}


@contextmanager
def full_disk(room: int = 200) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def as_a_user() -> Iterator[None]:
    """Without the rights of root, to whom every folder is open."""
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.fixture
def splat(tmp_path: Path) -> Path:
    """In a folder whose name is not ASCII."""
    folder = tmp_path / "\u00dcbung \u732b"
    folder.mkdir()
    ball(300, radius=0.5, opacity=0.9, generator=torch.Generator().manual_seed(0)).save_ply(folder / "splat.ply")
    return folder / "splat.ply"


@pytest.mark.parametrize("to", [to for to in FORMATS if to not in MESHES])
def test_a_full_disk_during_an_export_is_one_line_and_the_old_file_stays(
    to: str, splat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = splat.with_name(f"out.{to}")
    out.write_bytes(b"what was there")
    arguments = [str(splat), "--to", to, "--out", str(out), "--overwrite", *FAST.get(to, [])]
    with full_disk():
        assert export(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(out) in error and "Traceback" not in error
    assert out.read_bytes() == b"what was there"
    assert {path.name for path in splat.parent.iterdir()} == {"splat.ply", out.name}, "nothing half written"
    assert export(arguments) == 0 and out.stat().st_size > 200, "with room it is written"


def tetrahedron() -> Mesh:
    """With a texture of noise."""
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.uint32)
    texture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Mesh(corners, np.arange(4), np.ascontiguousarray(corners[:, :2]), faces, texture)


@pytest.mark.parametrize("to", MESHES)
def test_a_mesh_and_its_texture_are_replaced_together_or_not_at_all(
    to: str, splat: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gscfd.export.write.extract_mesh", lambda *_: tetrahedron())
    out = splat.with_name(f"out.{to}")
    arguments = [str(splat), "--to", to, "--out", str(out), "--overwrite"]
    assert export(arguments) == 0
    files = {path: path.stat().st_size for path in splat.parent.iterdir() if path != splat}
    assert len(files) == {"obj": 3, "mesh.glb": 1, "mesh.ply": 2}[to]
    for path in files:
        path.write_bytes(b"what was there")
    for room in {200, *(size - 1 for size in files.values())}:
        with full_disk(room):
            assert export(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(out) in error and "Traceback" not in error
        assert {path: path.read_bytes() for path in files} == dict.fromkeys(files, b"what was there"), room
        assert set(splat.parent.iterdir()) == {splat, *files}, "nothing half written"
    assert export(arguments) == 0, "with room it is written"
    assert {path: path.stat().st_size for path in files} == files


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder that a user may read but not write, outside the private folder of the tests."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ball(30, radius=0.5, opacity=0.9, generator=torch.Generator().manual_seed(0)).save_ply(folder / "splat.ply")
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_that_cannot_be_written_is_named_before_the_work(locked: Path, mode: int) -> None:
    locked.chmod(mode)
    with as_a_user():
        with pytest.raises(UserError, match=f"can be written, got {locked / 'run'}"):
            check_folder(Config(prompt="a mug", out=locked / "run"))
        with pytest.raises(UserError, match="out: "):
            check_out(locked / "a.spz", ".spz", overwrite=False)
    locked.chmod(0o777)
    with as_a_user():
        assert check_folder(Config(prompt="a mug", out=locked / "run")) == locked / "run"


def fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number), "/a/file")


def test_a_fault_of_a_file_is_one_line_in_any_command(capsys: pytest.CaptureFixture[str]) -> None:
    for number, words in ((errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")):
        assert exit_code(partial(fail, number)) == 2
        assert capsys.readouterr().err.startswith(f"error: /a/file: {words}; ")
    with pytest.raises(OSError, match="Broken pipe"):  # the control: a fault of the program
        exit_code(partial(fail, errno.EPIPE))


def test_a_prompt_is_the_text_that_was_typed_in_any_locale() -> None:
    typed = "ein Ger\u00e4t \u732b"
    assert Config(prompt=typed).prompt == typed
    assert Config(prompt=typed.encode().decode("ascii", "surrogateescape")).prompt == typed


SCRIPT = """
import sys
from gscfd import train
from gscfd.export.__main__ import main as export
from gscfd.lab.examine import recorded
from pathlib import Path

folder, prompt = sys.argv[1:]
run = ["--refine.steps", "0", "--polish.steps", "0", "--init.count", "100", "--no-viewer", "--device", "cpu"]
assert train.main(["--prompt", prompt, "--out", folder + "/x"]) == 2
assert train.main(["--prompt", "a yellow duck", "--out", folder, "--coarse.steps", "2", *run]) == 0
assert train.main(["--resume", folder]) == 2
assert export([folder, "--to", "spz", "--out", folder + "/" + prompt + ".spz"]) == 0
assert recorded(Path(folder))["seconds"] > 0
"""


def test_names_and_prompts_that_are_not_ascii_in_a_locale_that_is(tmp_path: Path) -> None:
    folder = tmp_path / "Ger\u00e4t \u732b"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), "gr\u00fcn"],
        env={**os.environ, **LOCALE},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr and "gr\u00fcn".encode() in done.stdout
    assert len(Gaussians.load_ply(folder / "splat.ply")) > 0 and (folder / "gr\u00fcn.spz").is_file()
