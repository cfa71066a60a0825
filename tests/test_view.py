"""python -m gscfd.view: finished splats, saved steps, two runs side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from present import present
from viewing import browsing, paint, until

from gscfd import view
from gscfd.config import Config, ServerConfig, plain, to_yaml
from gscfd.distil.state import Checkpoint, StageState
from gscfd.errors import UserError
from gscfd.export.transform import transformed
from gscfd.gaussians import Gaussians, ball
from gscfd.runs.checkpoint import Checkpoints
from gscfd.viewer import content
from gscfd.viewer.display import Display
from gscfd.viewer.saved import SavedViewer, labels, saved

Show = Callable[..., SavedViewer]


def splat(seed: int = 0, count: int = 30) -> Gaussians:
    return ball(count, radius=0.6, opacity=0.5, generator=torch.Generator().manual_seed(seed))


def ticked(viewer: SavedViewer) -> Display:
    viewer.tick(time.monotonic())
    return viewer.display


def save_checkpoint(folder: Path, step: int, keep: int = 5) -> None:
    """As a run would; the splat has step + 20 Gaussians."""
    state = StageState(splat(step, step + 20), Config().coarse, seed=0, keep_every=1)
    state.step = step
    checkpoint = Checkpoint("coarse", state.state_dict(), rows=0, device="cpu", config=plain(Config()))
    Checkpoints(folder / "checkpoints", keep).save(checkpoint)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was stopped after its second checkpoint."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(Config(prompt="a mug")))
    for step in (10, 20):
        save_checkpoint(folder, step)
    return folder


@pytest.fixture
def show() -> Iterator[Show]:
    """A viewer of these paths, at work only when it is told to."""
    viewers = []

    def of(*paths: Path) -> SavedViewer:
        viewers.append(SavedViewer(list(paths), ServerConfig(port=8760), paint))
        return viewers[-1]

    yield of
    for viewer in viewers:
        viewer.server.stop()


def test_a_ply_is_shown_as_it_is(tmp_path: Path, show: Show) -> None:
    splat().save_ply(tmp_path / "duck.ply")
    viewer = show(tmp_path / "duck.ply")
    assert torch.equal(present(viewer.display.gaussians).means, splat().means)
    assert (
        not viewer.showcase.sources[0].slider.visible
        and "duck.ply: 30 Gaussians" in viewer.showcase.sources[0].text.content
    )


@pytest.mark.parametrize("scale", [1000.0, 0.001, 1e-5])
def test_a_splat_too_large_or_small_for_the_browser_is_shown_at_a_radius_of_one(
    tmp_path: Path, show: Show, scale: float
) -> None:
    transformed(splat(), torch.eye(3, dtype=torch.float64), scale).save_ply(tmp_path / "big.ply")
    viewer = show(tmp_path / "big.ply")
    shown, kept = present(viewer.display.gaussians), present(viewer.showcase.splat(0))
    center, radius = content.extent(shown)
    assert radius == pytest.approx(1.0, rel=1e-4) and np.abs(center).max() < 1e-5
    assert torch.allclose(shown.scales - splat().scales, (shown.scales - splat().scales).mean(), atol=1e-4)
    assert torch.allclose(kept.means, scale * splat().means), "the download is not scaled"


@pytest.mark.parametrize(("radius", "left"), [(0.6, True), (5.0, False)])
def test_two_large_splats_do_not_overlap(tmp_path: Path, show: Show, radius: float, left: bool) -> None:
    for name in ("a.ply", "b.ply"):
        transformed(splat(), torch.eye(3, dtype=torch.float64), radius / 0.6).save_ply(tmp_path / name)
    means = present(show(tmp_path / "a.ply", tmp_path / "b.ply").display.gaussians).means.detach()
    assert means[:30, 1].max() < 0 < means[30:, 1].min()
    assert torch.allclose(means[:30] + torch.tensor([0.0, 1.1, 0.0]), splat().means) is left, "control: as it is"


def test_one_gaussian_is_seen_from_outside(tmp_path: Path, show: Show) -> None:
    splat(count=1).save_ply(tmp_path / "one.ply")
    viewer = show(tmp_path / "one.ply")
    size = float(present(viewer.display.gaussians).scales.detach().max().exp())
    distance = np.linalg.norm(viewer.display.position - viewer.display.center)
    assert distance > 10 * size


def test_a_ply_that_is_cut_while_it_is_watched_leaves_what_was_shown(tmp_path: Path, show: Show) -> None:
    path = tmp_path / "duck.ply"
    splat().save_ply(path)
    viewer, whole = show(path), path.read_bytes()

    def written(content: bytes) -> int:
        path.write_bytes(content)
        viewer.showcase.sources[0].look()
        viewer.showcase.update()
        return len(present(viewer.display.gaussians))

    assert written(whole[:-300]) == 30 and "bytes" in viewer.showcase.sources[0].text.content
    splat(count=50).save_ply(path)
    assert written(path.read_bytes()) == 50, "the next one is shown"
    path.write_bytes(whole[:-300])
    with pytest.raises(UserError):
        show(path)  # the control: nothing was shown yet


def test_a_run_has_its_checkpoints_and_then_its_splat(run: Path, show: Show) -> None:
    splat(count=7).save_ply(run / "splat.ply")
    viewer = show(run)
    source = viewer.showcase.sources[0]
    assert source.slider.visible and source.slider.max == source.slider.value == 2
    counts = []
    for place in range(3):
        source.slider.value = place
        viewer.showcase.update()
        counts.append(len(present(viewer.display.gaussians)))
    assert counts == [30, 40, 7]
    source.slider.value = 0
    viewer.showcase.update()
    assert "coarse, step 10: 30 Gaussians" in source.text.content


def test_a_run_that_goes_on_is_followed(run: Path, show: Show) -> None:
    viewer = show(run)
    save_checkpoint(run, 30, keep=2)
    viewer.showcase.sources[0].look()
    viewer.showcase.update()
    assert len(present(viewer.display.gaussians)) == 50, "the newest was shown, and the newest is shown"
    viewer.showcase.sources[0].slider.value = 0
    save_checkpoint(run, 40, keep=2)
    viewer.showcase.sources[0].look()
    viewer.showcase.update()
    assert len(present(viewer.display.gaussians)) == 50, "an older one stays where the slider is"


def test_a_checkpoint_that_is_gone_when_it_is_read_leaves_what_was_shown(run: Path, show: Show) -> None:
    viewer = show(run)
    viewer.showcase.sources[0].slider.value = 0
    for path in (run / "checkpoints").glob("000001.*"):
        path.unlink()
    viewer.showcase.update()
    assert len(present(viewer.display.gaussians)) == 40


def test_a_run_without_anything_saved_is_waited_for(run: Path, show: Show) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    viewer = show(run)
    assert viewer.display.gaussians is None and "nothing is saved yet" in viewer.showcase.sources[0].text.content
    with browsing(viewer):
        viewer.tick(time.monotonic())
        save_checkpoint(run, 10)
        viewer.showcase.looked = 0.0
        until(lambda: ticked(viewer).splat is not None)


def test_two_are_side_by_side_each_with_its_own_slider(run: Path, tmp_path: Path, show: Show) -> None:
    splat(count=7).save_ply(tmp_path / "other.ply")
    viewer = show(run, tmp_path / "other.ply")
    assert len(present(viewer.display.gaussians)) == 47
    assert (
        present(viewer.display.gaussians).means[:40, 1].max()
        < 0
        < present(viewer.display.gaussians).means[40:, 1].min()
    )
    viewer.showcase.sources[0].slider.value = 0
    viewer.showcase.update()
    assert len(present(viewer.display.gaussians)) == 37


@pytest.mark.parametrize("late", [0, 1])
def test_a_splat_that_appears_later_moves_no_other_and_is_in_view(tmp_path: Path, show: Show, late: int) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.mkdir()
    save_checkpoint(paths[1 - late], 10)
    viewer = show(*paths)
    display = viewer.display
    aimed: list[tuple[np.ndarray, np.ndarray]] = []
    first = present(display.gaussians)
    display.aim = lambda *where: aimed.append(where)  # type: ignore[method-assign]

    def look() -> None:
        for source in viewer.showcase.sources:
            source.look()
        viewer.showcase.update()

    save_checkpoint(paths[1 - late], 20)
    look()
    assert len(present(display.gaussians)) == 40 and not aimed, "control: another step of the same leaves the camera"
    save_checkpoint(paths[late], 10)
    look()
    both = present(display.gaussians)
    ys = both.means[:, 1].split([30, 40] if late == 0 else [40, 30])
    assert (ys[0] < 0).all() and (ys[1] > 0).all() and len(aimed) == 1
    assert bool((first.means[:, 1] > 0).all()) is (late == 0)
    center, position = aimed[0]
    assert abs(center[1]) < 1e-6 and position[1] == 0.0 and position[0] > 4.0


def test_a_browser_is_shown_the_splat_and_the_views(run: Path, show: Show) -> None:
    viewer = show(run)
    with browsing(viewer):
        viewer.tick(time.monotonic())
        assert present(viewer.display.splat).buffer.shape == (40, 8)
        viewer.display.mode.value = "opacity"
        until(lambda: ticked(viewer).views)
        assert not present(viewer.display.splat).visible


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "there is no"),
        (["empty"], "or it is neither"),
        (["broken.ply"], "expected a 3DGS .ply"),
        (["good.ply", "--host", "192.0.2.1"], "expected an address of this machine"),
    ],
)
def test_what_cannot_be_shown_is_one_clear_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.ply").write_text("ply\nend_header\n")
    splat().save_ply(tmp_path / "good.ply")
    assert view.main([str(tmp_path / arguments[0]), *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


def test_ctrl_c_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    splat().save_ply(tmp_path / "duck.ply")

    def interrupted(self: SavedViewer, now: float) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(SavedViewer, "tick", interrupted)
    assert view.main([str(tmp_path / "duck.ply"), "--port", "8770"]) == 0
    assert "viewer: http://127.0.0.1:8770" in capsys.readouterr().out


def test_what_is_saved_is_known_by_its_place_and_time(run: Path) -> None:
    before = [state.key for state in saved(run)]
    splat().save_ply(run / "splat.ply")
    after = [state.key for state in saved(run)]
    assert after[:2] == before and len(after) == 3 and len(set(after)) == 3


def test_results_of_one_name_are_told_apart() -> None:
    assert labels([Path("/a/cfd/duck-0"), Path("/a/sds/duck-0")]) == ["cfd/duck-0", "sds/duck-0"]
    assert labels([Path("/a/duck-0"), Path("/a/duck-1")]) == ["duck-0", "duck-1"]
    assert labels([Path("/a/duck-0"), Path("/a/duck-0")]) == ["duck-0 (1)", "duck-0 (2)"]
