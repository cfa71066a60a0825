"""--init PLY: a run that starts from a splat that is there already."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from present import present

import gscfd
from gscfd import train
from gscfd.cameras import turntable
from gscfd.config import InitConfig
from gscfd.distil.start import in_unit_ball, reach, read_start
from gscfd.distil.state import StageState
from gscfd.errors import UserError
from gscfd.export.transform import with_degree
from gscfd.gaussians import Gaussians, ball
from gscfd.runs import options as runs_options

RUN = ["--prompt", "a mug", "--coarse.steps", "4", "--refine.steps", "0", "--coarse.densify.start", "1"]
RUN += ["--polish.steps", "0"]
RUN += ["--coarse.densify.stop", "1", "--checkpoint.every", "2", "--checkpoint.seconds", "0", "--no-viewer"]


def splat(radius: float = 0.9, center: tuple[float, float, float] = (0.0, 0.0, 0.0), degree: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(1)
    values = ball(300, radius=radius, opacity=0.6, sh_degree=degree, generator=generator).tensors()
    values["means"] += torch.tensor(center)
    values["shN"] = 0.1 * torch.randn(values["shN"].shape, generator=generator)
    return Gaussians(**values)


def same(a: Gaussians, b: Gaussians) -> bool:
    return all(torch.equal(a.tensors()[name], b.tensors()[name]) for name in a.tensors())


def test_a_splat_that_fills_the_unit_ball_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splat(degree=1).save_ply(tmp_path / "x.ply")
    assert same(present(read_start(InitConfig(ply=tmp_path / "x.ply", sh_degree=1))), splat(degree=1))
    assert capsys.readouterr().err == "" and read_start(InitConfig()) is None


@pytest.mark.parametrize(
    "radius, center", [(40.0, (100.0, -20.0, 3.0)), (0.02, (0.0, 0.0, 0.0)), (0.9, (3.0, 0.0, 0.0))]
)
def test_a_splat_elsewhere_fills_the_unit_ball_and_is_the_same_object(
    radius: float, center: tuple[float, float, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = splat(radius, center)
    there.save_ply(tmp_path / "x.ply")
    here = present(read_start(InitConfig(ply=tmp_path / "x.ply")))
    assert "x.ply is scaled by" in capsys.readouterr().err
    assert reach(here) == pytest.approx(1, abs=1e-3) and not 0.5 <= reach(there) <= 1.2

    # Seen from as many radii away, it looks the same.
    _, moved, scale = in_unit_ball(there)
    cameras = turntable(2, size=32)
    far = turntable(2, size=32)
    far.viewmats[:, :3, 3] /= scale
    far.viewmats[:, :3, 3] -= (far.viewmats[:, :3, :3] @ torch.tensor(moved)[:, None])[..., 0]
    picture = here.render(cameras).rgb
    assert picture.max() > 0.2
    torch.testing.assert_close(picture, there.render(far).rgb, atol=5e-3, rtol=0)
    assert (picture - there.render(cameras).rgb).abs().max() > 0.1, "the control: where it was, it is another picture"


def test_floaters_do_not_decide_the_size() -> None:
    """Two far ones in three hundred; the control: six are more than one in a hundred."""
    values = splat().tensors()
    values["means"][:2] = 500.0
    assert in_unit_ball(Gaussians(**values))[2] == 1
    values["means"][:6] = 500.0
    assert in_unit_ball(Gaussians(**values))[2] < 0.01


def test_one_gaussian_alone_becomes_as_large_as_the_ball() -> None:
    one = Gaussians(**{name: value[:1] for name, value in splat(center=(5.0, 5.0, 5.0)).tensors().items()})
    there, _, _ = in_unit_ball(one)
    assert there.means.norm() == 0 and reach(there) == pytest.approx(1)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_the_harmonics_are_those_that_the_run_optimizes(degree: int, tmp_path: Path) -> None:
    splat(degree=2).save_ply(tmp_path / "x.ply")
    start = present(read_start(InitConfig(ply=tmp_path / "x.ply", sh_degree=degree)))
    assert same(start, with_degree(splat(degree=2), degree)) and start.sh_degree == degree


def write_empty(path: Path) -> None:
    splat().save_ply(path)
    plain = PlyData.read(path)
    PlyData([PlyElement.describe(plain["vertex"].data[:0], "vertex")]).write(path)


def write_points(path: Path) -> None:
    points = np.zeros(3, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])
    PlyData([PlyElement.describe(points, "vertex")]).write(path)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "x.ply/splat.ply"),
        (lambda path: path.write_text("a mug"), "does not begin with the header"),
        (write_empty, "has no Gaussians"),
        (write_points, "has no property f_dc_0"),
    ],
)
@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_a_file_that_is_no_splat_is_one_clear_line_before_anything_is_made(
    make: Callable[[Path], object], words: str, option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "x.ply")
    assert train.main([*RUN, "--init", str(tmp_path / "x.ply"), "--out", str(tmp_path / "run"), *option]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: init: expected a 3DGS .ply") and words in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["splat.spz", "chair.stl", "picture.png"])
def test_a_file_of_another_kind_is_refused_with_the_kinds_that_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(UserError, match=r"^init: expected a 3DGS \.ply or a mesh \(\.glb, \.obj\), got .*" + name):
        read_start(InitConfig(ply=tmp_path / name))
    splat().save_ply(tmp_path / name)
    assert read_start(InitConfig(ply=tmp_path / name)) is not None, "control: the content decides"


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--preset", "refine-splat-toybox"], True),
        (["--coarse.steps", "0", "--refine.steps", "2"], True),
        (["--coarse.steps", "0", "--refine.t-schedule", "uniform", "--refine.steps", "2"], False),
        ([], False),
    ],
)
def test_a_run_that_only_refines_needs_something_to_refine(
    options: list[str], wrong: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--prompt", "a mug", "--out", str(tmp_path / "run"), "--no-viewer", "--dry-run", *options]
    assert train.main(arguments) == (2 if wrong else 0)
    assert ("error: init: expected a splat or a mesh" in capsys.readouterr().err) == wrong


def test_a_run_without_steps_gives_the_splat_it_started_from(tmp_path: Path) -> None:
    splat().save_ply(tmp_path / "x.ply")
    config = runs_options.parse([*RUN, "--coarse.steps", "0"])
    assert same(gscfd.generate("a mug", config=config, init=tmp_path / "x.ply"), splat())
    with pytest.raises(UserError, match="init: expected a splat or a mesh to start from"):
        gscfd.generate("a mug", config=config)
    with pytest.raises(UserError, match="init: expected a 3DGS"):
        gscfd.generate("a mug", config=config, init=tmp_path / "y.ply")


def test_a_dry_run_says_what_the_run_starts_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splat(40.0).save_ply(tmp_path / "x.ply")
    assert train.main([*RUN, "--init", str(tmp_path / "x.ply"), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert f"start    {tmp_path / 'x.ply'}, 300 Gaussians" in said.out and "is scaled by" in said.err
    assert train.main([*RUN, "--dry-run"]) == 0
    assert "start    2000 Gaussians in a ball" in capsys.readouterr().out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run from a splat, and the same one stopped after its third step; the splat's file is gone since."""
    folder = tmp_path_factory.mktemp("runs")
    splat(40.0).save_ply(folder / "x.ply")
    options = [*RUN, "--init", str(folder / "x.ply")]
    assert train.main([*options, "--out", str(folder / "whole")]) == 0
    calls = []

    def advance(self: StageState, original: Callable[[StageState], None] = StageState.advance) -> None:
        calls.append(0)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageState, "advance", advance)
        assert train.main([*options, "--out", str(folder / "stopped")]) == 130
    (folder / "x.ply").unlink()
    return folder


@pytest.mark.parametrize("lost", ["", "checkpoints"])
def test_a_stopped_run_resumes_to_the_same_file_though_the_splat_is_gone(runs: Path, lost: str, tmp_path: Path) -> None:
    stopped = shutil.copytree(runs / "stopped", tmp_path / "run")
    if lost:
        shutil.rmtree(stopped / lost)
    assert train.main(["--resume", str(stopped)]) == 0
    assert (stopped / "splat.ply").read_bytes() == (runs / "whole" / "splat.ply").read_bytes()
    assert f"ply: {runs / 'x.ply'}" in (stopped / "config.yaml").read_text()


def test_another_start_gives_another_file(runs: Path, tmp_path: Path) -> None:
    """The control: the test above would notice a run that starts from the ball."""
    stopped = shutil.copytree(runs / "stopped", tmp_path / "run")
    shutil.rmtree(stopped / "checkpoints")
    splat(0.8).save_ply(stopped / "init.ply")
    assert train.main(["--resume", str(stopped)]) == 0
    assert (stopped / "splat.ply").read_bytes() != (runs / "whole" / "splat.ply").read_bytes()


def test_a_resumed_run_takes_no_other_splat(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = shutil.copytree(runs / "stopped", tmp_path / "run")
    assert train.main(["--resume", str(stopped), "--init", "other.ply"]) == 2
    assert "init.ply = " in capsys.readouterr().err


def test_a_run_may_start_from_the_splat_of_the_run_it_replaces(runs: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(runs / "whole", tmp_path / "run")
    before = Gaussians.load_ply(whole / "splat.ply")
    assert train.main([*RUN, "--init", str(whole / "splat.ply"), "--out", str(whole), "--overwrite"]) == 0
    assert same(Gaussians.load_ply(whole / "init.ply"), before)


def test_sizes_that_are_not_logarithms_are_named(tmp_path: Path) -> None:
    values = splat().tensors()
    linear = Gaussians(**{**values, "scales": values["scales"].exp()})
    linear.save_ply(tmp_path / "linear.ply")
    with pytest.raises(UserError, match="init: .*linear.ply .*holds the natural logarithms of the sizes"):
        read_start(InitConfig(ply=tmp_path / "linear.ply"))
    Gaussians(**values).save_ply(tmp_path / "logs.ply")
    assert read_start(InitConfig(ply=tmp_path / "logs.ply")) is not None, "control"
    large = Gaussians(**{**values, "means": 50 * values["means"], "scales": values["scales"] + 4.5})
    large.save_ply(tmp_path / "large.ply")
    assert read_start(InitConfig(ply=tmp_path / "large.ply")) is not None, (
        "control: a large splat with logarithms above 0"
    )
