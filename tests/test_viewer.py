"""The live viewer without a browser: what it shows, what its controls do to a run, and that it never holds one up."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import threading
import time
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from present import present
from tiny import tiny_stage
from torch import Tensor
from viewing import STEPS, Run, ToldTeacher, browsing, paint, press, settings, until, viewing, watched
from websockets.asyncio.server import ServerConnection, serve

from gscfd import geometry, pictures
from gscfd.cameras import orbit, turntable
from gscfd.config import Edit, NoiseKind, ServerConfig
from gscfd.distil.noises import painted_noise
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians, ball
from gscfd.runs.options import parse
from gscfd.runs.signals import Interrupted
from gscfd.types import Cameras, Render
from gscfd.viewer import content, server
from gscfd.viewer.door import Door
from gscfd.viewer.live import LiveViewer
from gscfd.viewer.pace import Pace
from gscfd.viewer.snapshot import Point


def gray(count: int = 40) -> Gaussians:
    return ball(count, radius=0.5, opacity=0.6, generator=torch.Generator().manual_seed(0))


def sphere_render(size: int = 64) -> tuple[Render, Cameras]:
    """Of the unit sphere from the front."""
    azimuth, elevation, distance, fov = (torch.tensor([x]) for x in (0.0, 0.0, 4.0, 40.0))
    camera = orbit(azimuth, elevation, distance, fov, size, size)
    rows, columns = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    x, y = (columns - size / 2) / camera.Ks[0, 0, 0], (rows - size / 2) / camera.Ks[0, 1, 1]
    a = x * x + y * y + 1
    discriminant = 16 - a * 15
    depth = torch.where(discriminant > 0, (4 - discriminant.clamp(min=0).sqrt()) / a, 0.0)[None, ..., None]
    return Render(torch.zeros(1, size, size, 3), depth, (depth > 0).float()), camera


# What is shown.


def test_covariances_have_the_squared_scales_as_eigenvalues() -> None:
    gaussians = gray()
    with torch.no_grad():
        gaussians.params["scales"].normal_(-3, 0.5)
        eigenvalues = torch.linalg.eigvalsh(content.covariances(gaussians).double())
    expected = (2 * gaussians.scales.detach().double()).exp().sort(-1).values
    assert torch.allclose(eigenvalues, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("turned", [0.0, 0.7])
def test_a_browsers_camera_sees_what_ours_at_that_place_sees(turned: float) -> None:
    def camera(azimuth: float) -> Cameras:
        place, elevation, distance, fov = (torch.tensor([x]) for x in (azimuth, 20.0, 3.0, 40.0))
        return orbit(place, elevation, distance, fov, 96, 64)

    ours, ((wxyz, position),) = camera(50.0), content.poses(camera(50 + math.degrees(turned)))
    seen = content.camera_of(wxyz, position, math.radians(40), 1.5, 64, turned)
    assert (seen.width, seen.height) == (96, 64)
    assert torch.allclose(seen.viewmats, ours.viewmats, atol=1e-5)
    assert torch.allclose(seen.Ks, ours.Ks, atol=1e-3)
    assert content.fields_of_view(ours)[0] == pytest.approx(math.radians(40))


def test_the_color_mode_is_the_render_over_the_background() -> None:
    camera, blue = turntable(1, size=32), (0.0, 0.2, 1.0)
    shown = content.picture(gray(), camera, "color", blue, paint)
    assert np.array_equal(shown, pictures.as_bytes(gray().render(camera).over(torch.tensor(blue))[0]))
    assert not np.array_equal(shown, content.picture(gray(), camera, "color", (1.0, 1.0, 1.0), paint))


def test_normals_of_a_sphere_point_away_from_its_center() -> None:
    render, camera = sphere_render()
    normals = geometry.normals(render, camera)[0]
    assert normals[32, 32] @ torch.tensor([1.0, 0.0, 0.0]) > 0.99, "the middle faces the camera at +x"
    assert normals[32, 40, 1] > 0.2 and normals[32, 24, 1] < -0.2, "right is +y"
    assert normals[24, 32, 2] > 0.2 and normals[40, 32, 2] < -0.2, "up is +z"


def test_near_is_lighter_than_far() -> None:
    render, _ = sphere_render()
    shades = content.shades(render)[0, :, :, 0]
    assert shades[32, 32] == shades[render.opacity[0, ..., 0] > 0].max() == pytest.approx(0.95)
    assert shades[render.opacity[0, ..., 0] > 0].min() == pytest.approx(0.15)


@pytest.mark.parametrize("mode", [mode for mode in content.MODES if mode != "splat"])
def test_every_mode_shows_the_object_and_an_empty_splat(mode: str) -> None:
    config = parse(["--prompt", "a mug"])
    camera, white = turntable(1, size=48), (1.0, 1.0, 1.0)

    def paint(cameras: Cameras, render: Render) -> Tensor:
        return painted_noise(config, cameras, render)

    nothing = Gaussians(**{name: value[:0] for name, value in gray().tensors().items()})
    shown, empty = (content.picture(splat, camera, mode, white, paint) for splat in (gray(), nothing))
    assert shown.shape == empty.shape == (48, 48, 3) and shown.dtype == np.uint8
    assert not np.array_equal(shown, empty)


@pytest.mark.parametrize("kind", ["surface", "radial", "world_map", "fixed"])
def test_the_painted_noise_is_white_in_each_view(kind: NoiseKind) -> None:
    config = parse(["--prompt", "a mug"])
    config = replace(config, noise=replace(config.noise, kind=kind), guidance="fsd" if kind == "world_map" else "cfd")
    camera = turntable(1, size=256)
    noise = painted_noise(config, camera, gray().render(camera))
    assert noise.shape == (1, 3, 64, 64)
    assert abs(noise.mean()) < 0.05 and noise.std() == pytest.approx(1, abs=0.05)


def test_the_degree_is_cut_where_it_is_asked_for() -> None:
    gaussians = ball(40, radius=0.5, opacity=0.6, sh_degree=1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gaussians.params["shN"].normal_()
    views = [content.picture(gaussians, turntable(1, size=32), "color", (0, 0, 0), paint, d) for d in (0, 1, 3)]
    assert not np.array_equal(views[0], views[1]) and np.array_equal(views[1], views[2])


def test_two_splats_stand_side_by_side_as_the_front_camera_sees_them() -> None:
    left, right = gray(10), gray(20)
    both = content.side_by_side([left, right])
    assert len(both) == 30
    assert torch.allclose(both.means[:10] - left.means, torch.tensor([0.0, -1.1, 0.0]))
    assert torch.allclose(both.means[10:] - right.means, torch.tensor([0.0, 1.1, 0.0]))


@pytest.mark.parametrize("missing, place", [(0, 1.1), (1, -1.1), (None, 0.0)])
def test_a_splat_keeps_its_place_beside_one_that_is_not_there_yet(missing: int | None, place: float) -> None:
    splats: list[Gaussians | None] = [gray(10)] if missing is None else [gray(10), gray(10)]
    if missing is not None:
        splats[missing] = None
    assert torch.allclose(content.side_by_side(splats).means - gray(10).means, torch.tensor([0.0, place, 0.0]))


def test_the_middle_of_two_splats_does_not_depend_on_their_numbers_of_gaussians() -> None:
    both = content.side_by_side([gray(10), gray(200)])
    assert abs(content.extent(both, 2)[0][1]) < 1e-6
    assert content.extent(both)[0][1] > 0.5, "control: most Gaussians are on the right"


def test_plots_keep_the_last_step_however_many_there_are() -> None:
    points = [Point(i, 2.0 * i, 100 + i) for i in range(5000)]
    steps, losses, counts = content.curves(points)
    assert len(steps) == content.MOST_POINTS and steps[0] == 0 and steps[-1] == 4999
    assert np.array_equal(losses, 2 * steps) and np.array_equal(counts, 100 + steps)
    assert [len(curve) for curve in content.curves(points[:1])] == [1, 1, 1]


@pytest.mark.parametrize("seconds, text", [(0.4, "0:00"), (75, "1:15"), (3700, "1:01:40")])
def test_times_are_read_as_clocks(seconds: float, text: str) -> None:
    assert content.clock(seconds) == text


def test_a_viewer_takes_its_share_of_time_and_bandwidth_and_no_more() -> None:
    pace = Pace(0.1, 2.0)
    assert pace.ready(0.0)
    pace.worked(1.0, 0.5, 1.0)
    assert not pace.ready(5.4) and pace.ready(5.6), "a tenth of the time"
    assert not pace.ready(1.4, alone=True) and pace.ready(1.6, alone=True), "two megabytes per second"


# The server.


def test_the_page_is_served_to_this_machine_only() -> None:
    with viewing() as viewer:
        assert viewer.server.get_host() == "127.0.0.1"
        with urllib.request.urlopen(viewer.address) as page:
            assert b"<html" in page.read().lower()


def test_a_busy_port_is_replaced_by_a_free_one() -> None:
    with viewing() as first, viewing() as second:
        assert first.server.get_port() != second.server.get_port()
        assert str(second.server.get_port()) in second.address


def test_an_address_that_is_not_this_machines_is_one_clear_error() -> None:
    for host in ("192.0.2.1", "no such host", "256.1.1.1"):
        with pytest.raises(UserError, match="host: expected an address of this machine, got"):
            server.serve(ServerConfig(host=host), Door(host, "page"))


def test_no_free_port_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PORTS_TRIED", 1)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match=f"port: expected a free port from {port} to {port}"):
            server.serve(ServerConfig(port=port), Door("127.0.0.1", "page"))


def test_the_viewer_is_on_in_a_terminal_and_off_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--prompt", "a mug"]
    assert not parse(arguments).viewer.on and parse([*arguments, "--viewer"]).viewer.on
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert parse(arguments).viewer.on and not parse([*arguments, "--no-viewer"]).viewer.on


# A run that is watched.


def test_the_page_follows_the_run() -> None:
    with viewing() as viewer, browsing(viewer):
        run = watched(viewer)
        run.finish()
        until(lambda: present(viewer.shown).step == STEPS - 1)
        until(lambda: f"step {STEPS} of {STEPS}" in viewer.panel.status.content)
        assert viewer.panel.progress.value == 100
        assert len(viewer.panel.frustums) == 2 and viewer.panel.frustums[0].image.std() > 0
        assert torch.equal(present(viewer.newest()).means, run.gaussians.means)
        until(lambda: present(viewer.display.splat).buffer.shape == (len(run.gaussians), 8))
        assert len(viewer.panel.loss.data[0]) == STEPS


def test_a_snapshot_does_not_change_when_the_run_goes_on() -> None:
    with viewing() as viewer, browsing(viewer):
        viewer.controls.pause(True)
        run = Run(viewer)
        until(lambda: viewer.shown is not None)
        first = present(viewer.snapshot)
        before = first.gaussians.tensors()
        viewer.controls.pause(False)
        run.finish()
        assert viewer.snapshot is not first
        assert all(torch.equal(value, before[name]) for name, value in first.gaussians.tensors().items())
        assert not torch.equal(before["means"][:20], run.gaussians.means[:20]), "control: the run went on"


def test_the_viewer_makes_no_second_team_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads and the run's together would be more than the cores, and slow down the run's."""
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr("gscfd.viewer.live.LiveViewer.tick", lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        with viewing():
            until(lambda: seen)
        assert seen[0] == 1 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_that_nobody_watches_copies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gscfd.viewer.live.take", lambda *_: pytest.fail("a copy"))
    with viewing() as viewer:
        assert Run(viewer).finish() is not None


def test_a_watched_run_gives_the_same_splat() -> None:
    with viewing() as viewer, browsing(viewer):
        viewer.display.mode.value = "normal"
        viewer.panel.show_target.value = True
        viewer.display.turntable.value = True
        seen = watched(viewer, seconds=0.05).finish()
        until(lambda: viewer.panel.decoded is not None)
    alone = tiny_stage(settings().coarse)
    assert all(torch.equal(value, alone.tensors()[name]) for name, value in seen.tensors().items())


def test_views_are_rendered_for_every_browser_and_only_when_something_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    picture = content.picture

    def noted(gaussians: Gaussians, camera: Cameras, *arguments: Any) -> np.ndarray:
        sizes.append(camera.width)
        return picture(gaussians, camera, *arguments)

    monkeypatch.setattr(content, "picture", noted)
    with viewing() as viewer, browsing(viewer), browsing(viewer, size=(480, 480)):
        viewer.controls.pause(True)
        viewer.display.turntable.value = False
        viewer.display.mode.value = "depth"
        Run(viewer)
        until(lambda: len(sizes) >= 2)
        time.sleep(0.3)
        assert sorted(sizes) == [384, 512]
        viewer.display.resolution.value = 64
        until(lambda: len(sizes) >= 4)
        assert {64} < set(sizes)
        viewer.controls.pause(False)


def test_the_teachers_images_are_decoded_only_while_they_are_asked_for() -> None:
    with viewing() as viewer, browsing(viewer):
        viewer.controls.pause(True)
        run = Run(viewer)
        until(lambda: viewer.shown is not None)
        time.sleep(0.3)
        assert viewer.panel.decoded is None and not viewer.panel.target.visible
        viewer.panel.show_target.value = True
        until(lambda: viewer.panel.decoded is viewer.shown)
        expected = run.teacher.decode(present(viewer.shown).target).permute(0, 2, 3, 1)
        assert np.array_equal(viewer.panel.target.image, content.row(expected, 128))
        viewer.controls.pause(False)


def test_images_that_do_not_fit_the_memory_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: ToldTeacher, z: Tensor) -> NoReturn:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(ToldTeacher, "decode", full)
    with viewing() as viewer, browsing(viewer):
        viewer.panel.show_target.value = True
        assert watched(viewer).finish() is not None
        until(lambda: "Not enough GPU memory" in viewer.controls.answer)
        assert not viewer.panel.show_target.value and viewer.thread.is_alive()


def test_images_that_are_not_finite_are_named_and_not_shown_as_black(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToldTeacher, "decode", lambda self, z: torch.full((1, 3, 16, 16), torch.nan))
    with viewing() as viewer, browsing(viewer):
        viewer.panel.show_target.value = True
        before = viewer.panel.target.image
        assert watched(viewer).finish() is not None
        until(lambda: "not finite" in viewer.controls.answer)
        assert np.array_equal(viewer.panel.target.image, before)


# A run that is steered.


def test_pause_holds_the_run_a_step_makes_one_and_resume_goes_on() -> None:
    with viewing() as viewer:
        run = Run(viewer, gate_at=2)
        until(lambda: len(run.steps) == 3)
        press(viewer.panel.pause)
        until(lambda: viewer.controls.paused)
        run.gate.set()
        until(lambda: run.looks.count(2) >= 3)
        assert run.steps == [0, 1, 2], "held"
        press(viewer.panel.step)
        until(lambda: run.looks.count(3) >= 3)
        assert run.steps == [0, 1, 2, 3], "held after one step"
        press(viewer.panel.pause)
        assert run.finish() is not None and run.steps == list(range(STEPS))


def test_the_button_says_what_it_does() -> None:
    with viewing() as viewer, browsing(viewer):
        press(viewer.panel.pause)
        until(lambda: viewer.panel.pause.label == "Resume")
        press(viewer.panel.pause)
        until(lambda: viewer.panel.pause.label == "Pause")


def test_stop_saves_the_step_and_ends_like_ctrl_c() -> None:
    with viewing() as viewer:
        run = Run(viewer, gate_at=2)
        until(lambda: len(run.steps) == 3)
        press(viewer.panel.stop)
        until(lambda: viewer.controls.stopping)
        run.gate.set()
        run.thread.join(120)
        assert isinstance(run.ended, Interrupted) and run.ended.code == 130
        assert run.saved == [2] and run.steps == [0, 1, 2]


def test_a_paused_run_hears_a_signal() -> None:
    with viewing() as viewer:
        viewer.controls.pause(True)
        run = Run(viewer)
        until(lambda: run.steps)
        run.signal = Interrupted(15)
        run.thread.join(60)
        assert run.ended is run.signal


def change(viewer: LiveViewer, **values: object) -> None:
    """Type into the fields and apply."""
    for name, value in values.items():
        getattr(viewer.panel, name).value = value
    press(viewer.panel.apply)


def test_an_edit_counts_from_the_next_step_on_and_is_recorded() -> None:
    with viewing() as viewer:
        viewer.controls.pause(True)
        run = Run(viewer)
        until(lambda: run.steps)
        change(viewer, prompt="a red\nmug ", cfg=7.5, times=(0.1, 0.5))
        until(lambda: "From step 2" in viewer.controls.answer)
        edit = Edit(stage="coarse", step=1, prompt="a red mug", cfg=7.5, t_range=(0.1, 0.5))
        assert run.recorded[-1].edits == (edit,)
        assert run.teacher.prompts[-1].text == "a red mug" and run.teacher.prompts[-1].cfg in (1.0, 7.5)
        assert {prompt.cfg for prompt in run.teacher.prompts} == {1.0, 7.5}, "the cfg is this stage's alone"
        assert (run.live.now.coarse.t_min, run.live.now.coarse.t_max) == (0.1, 0.5)
        viewer.controls.pause(False)
        run.finish()
        assert run.steps == list(range(STEPS))


def test_the_fields_show_the_settings_after_an_edit() -> None:
    with viewing() as viewer, browsing(viewer):
        viewer.controls.pause(True)
        run = Run(viewer)
        until(lambda: viewer.shown is not None)
        run.viewer.controls.edit(Edit(stage="coarse", prompt="a blue mug"))
        until(lambda: viewer.panel.prompt.value == "a blue mug")
        until(lambda: "a blue mug" in viewer.panel.status.content)
        viewer.controls.pause(False)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"prompt": "  "}, "prompt: expected a description"),
        ({"times": (0.6, 0.5)}, "t_min, t_max: expected 0 <= t_min <= t_max < 1"),
        ({}, "Nothing to change"),
    ],
)
def test_a_bad_edit_is_answered_and_changes_nothing(values: dict[str, object], words: str) -> None:
    with viewing() as viewer:
        viewer.controls.pause(True)
        run = Run(viewer)
        until(lambda: run.steps)
        change(viewer, **values)
        until(lambda: words in viewer.controls.answer)
        assert run.live.now == run.config and not run.recorded and not run.teacher.prompts
        viewer.controls.pause(False)


@pytest.mark.parametrize("error", [UserError("text encoder: gone"), torch.OutOfMemoryError(), OSError(28, "No space")])
def test_an_edit_that_fails_leaves_the_teachers_as_they_were(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with viewing() as viewer:
        viewer.controls.pause(True)
        run = Run(viewer)
        until(lambda: run.steps)

        def fails(*_: object) -> NoReturn:
            raise error

        if isinstance(error, OSError):
            run.kept.record = fails
        else:
            told = run.teacher.set_prompt
            monkeypatch.setattr(
                run.teacher, "set_prompt", lambda prompt: told(prompt) if prompt.text == "a mug" else fails()
            )
        change(viewer, prompt="a red mug")
        until(lambda: "Not changed" in viewer.controls.answer)
        assert run.live.now == run.live.config == run.config
        assert run.teacher.prompts[-1].text == "a mug"
        viewer.controls.pause(False)


def test_an_edit_after_the_last_step_of_a_stage_is_refused() -> None:
    with viewing() as viewer:
        run = Run(viewer)
        run.finish()
        viewer.controls.edit(Edit(stage="refine", prompt="a red mug"))
        again = Run(viewer)
        again.finish()
        assert "the refine stage has made its last step" in viewer.controls.answer and not again.recorded


# A viewer that is in trouble.


def test_a_dead_viewer_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(self: object) -> NoReturn:
        raise RuntimeError("connection lost")

    monkeypatch.setattr("gscfd.viewer.display.Display.refresh", broken)
    with viewing() as viewer, browsing(viewer):
        viewer.controls.pause(True)
        run = Run(viewer)
        assert run.finish() is not None, "not even one that was paused"
        viewer.thread.join(30)
        assert not viewer.thread.is_alive() and "the run continues" in caplog.text


def test_a_stuck_viewer_does_not_hold_up_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, free = threading.Event(), threading.Event()

    def never_done(self: object) -> None:
        stuck.set()
        free.wait(120)

    monkeypatch.setattr("gscfd.viewer.display.Display.refresh", never_done)
    monkeypatch.setattr("gscfd.viewer.live.CLOSING_SECONDS", 0.1)
    viewer = LiveViewer(settings(), paint)
    with browsing(viewer):
        run = Run(viewer, seconds=0.02)
        until(stuck.is_set)
        assert run.finish() is not None and viewer.thread.is_alive()
    viewer.close()
    free.set()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps browsers which answer no pings; after 40 s it would end their connections."""
    monkeypatch.setattr("websockets.asyncio.server.serve", partial(serve, ping_interval=None))


def waiting_bytes(viewer: LiveViewer) -> int:
    """Bytes that the server keeps for browsers which do not read them."""
    connections = viewer.server._websock_server._live_connections.values()
    return sum(connection.transport.get_write_buffer_size() for connection in connections)


def deafen(viewer: LiveViewer) -> None:
    """Send until browsers that read nothing can be sent no more."""

    def stuck() -> bool:
        viewer.server.gui.add_html(os.urandom(4_000_000).hex())
        time.sleep(0.2)
        return waiting_bytes(viewer) > 0

    until(stuck)


def test_a_browser_that_reads_nothing_or_leaves_does_not_hold_up_the_run(patient: None) -> None:
    from viewer_client import join

    with viewing() as viewer:
        deaf, leaving = join(viewer.address), join(viewer.address)
        until(lambda: len(viewer.server.get_clients()) == 2)
        leaving.close_socket()
        deafen(viewer)
        assert watched(viewer, seconds=0.05).finish() is not None
        until(lambda: len(viewer.server.get_clients()) == 1)
        assert waiting_bytes(viewer) > 0, "control: it is stuck to the end"
        deaf.close_socket()


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_browser_that_reads_nothing_keeps_nothing_from_another(
    patient: None, monkeypatch: pytest.MonkeyPatch, in_turn: bool
) -> None:
    """The control: a server that sends to one browser at a time."""
    from viewer_client import join, messages

    turn, send = asyncio.Lock(), ServerConnection.send

    async def send_in_turn(connection: ServerConnection, message: bytes) -> None:
        async with turn:
            await send(connection, message)

    if in_turn:
        monkeypatch.setattr(ServerConnection, "send", send_in_turn)
    heard = threading.Event()

    def read(connection: Any) -> None:
        for frame in connection:
            if b"the last word" in messages(frame):
                heard.set()

    with viewing() as viewer, join(viewer.address) as deaf:
        until(viewer.server.get_clients)
        deafen(viewer)
        with join(viewer.address) as reading:
            threading.Thread(target=read, args=(reading,), daemon=True).start()
            until(lambda: len(viewer.server.get_clients()) == 2)
            viewer.server.gui.add_html("the last word")
            assert heard.wait(2 if in_turn else 60) is not in_turn
            assert waiting_bytes(viewer) > 0, "control: the other one is stuck"
            deaf.close_socket()
            assert heard.wait(60)


# The end.


def test_the_end_is_shown_with_the_saved_splat_and_stays_while_a_browser_is_there(tmp_path: Path) -> None:
    gray().save_ply(tmp_path / "splat.ply")
    with viewing() as viewer:
        viewer.stay()  # control: nobody is there, and it returns at once
        with browsing(viewer) as connection:
            viewer.end("finished, saved in x", tmp_path)
            until(lambda: "finished, saved in x" in viewer.panel.status.content and viewer.display.splat)
            assert viewer.panel.picture.visible and viewer.downloads.visible and not viewer.panel.stop.visible
            assert torch.equal(present(viewer.newest()).means, gray().means)
            staying = threading.Thread(target=viewer.stay)
            staying.start()
            staying.join(1.0)
            assert staying.is_alive()
            connection.close()
        staying.join(60)
        assert not staying.is_alive()


def test_the_end_without_a_splat_has_no_downloads(tmp_path: Path) -> None:
    with viewing() as viewer, browsing(viewer):
        viewer.end("stopped: no splat was made yet", tmp_path)
        until(lambda: "no splat was made" in viewer.panel.status.content)
        assert not viewer.panel.picture.visible and not viewer.downloads.visible


def test_a_camera_turned_about_a_center_sees_that_center_where_it_was() -> None:
    center = np.array([3.0, -2.0, 1.0])
    wxyz, position = np.array([0.5, -0.5, -0.5, 0.5]), center + [4.0, 0.0, 0.0]
    for turned in (0.0, 1.1):
        view = content.camera_of(wxyz, position, 0.7, 1.0, 64, turned, center).viewmats[0].double().numpy()
        seen = view[:3, :3] @ center + view[:3, 3]
        assert np.allclose(np.linalg.norm(seen), 4.0, atol=1e-5) and np.allclose(seen[:2], 0, atol=1e-5)
