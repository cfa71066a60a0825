"""The live-run part of the page: progress, steering and the teacher's input."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import torch
import viser
from viser import uplot

from gscfd.config import Config, Edit, StageName
from gscfd.distil.edits import time_range
from gscfd.errors import UserError
from gscfd.viewer import content
from gscfd.viewer.controls import Controls
from gscfd.viewer.display import JPEG_SHARE, OBJECT
from gscfd.viewer.snapshot import Snapshot

PICTURE_SIZE = 128
"""Width and height in pixels of a view in the panel and in its frustum."""
COLUMN_WIDTH = 320
FRUSTUM_SCALE = 0.15
MOST_VIEWS = 4
"""Maximum number of views per step shown as images in the panel."""
BLUE, ORANGE = "#2f6db5", "#d9730d"


class Panel:
    """Progress and steering. Buttons only write to the controls; only the viewer's own thread calls `show`."""

    def __init__(self, server: viser.ViserServer, controls: Controls, config: Config):
        self.server, self.controls = server, controls
        self.stage: StageName = next(iter(config.stages()))
        self.settings: Config | None = None
        self.frustums: list[viser.CameraFrustumHandle] = []
        self.snapshot: Snapshot | None = None
        self.decoded: Snapshot | None = None
        self.ended = False
        self.add_status(config.prompt)
        self.add_steering()
        self.add_pictures()
        self.fill(config, self.stage)

    def add_status(self, prompt: str) -> None:
        gui = self.server.gui
        self.status = gui.add_html(content.text_block(f"<b>{html.escape(prompt)}</b><br>starting"))
        self.progress = gui.add_progress_bar(0.0)
        self.picture = gui.add_image(np.full((1, 1, 3), 255, np.uint8), visible=False)
        self.pause = gui.add_button("Pause", icon=viser.Icon.PLAYER_PAUSE)
        self.step = gui.add_button("Single step", icon=viser.Icon.PLAYER_SKIP_FORWARD)
        self.stop = gui.add_button("Stop and save", icon=viser.Icon.PLAYER_STOP, color="red")
        self.pause.on_click(lambda _: self.controls.pause(not self.controls.paused))
        self.step.on_click(lambda _: self.controls.step())
        self.stop.on_click(lambda _: self.controls.stop())

    def add_steering(self) -> None:
        gui = self.server.gui
        self.steering = gui.add_folder("Change")
        with self.steering:
            self.prompt = gui.add_text("Prompt", "", multiline=True)
            self.cfg = gui.add_number("CFG", 0.0, min=0.0, step=0.1, hint="How firmly the teacher follows the prompt.")
            self.times = gui.add_vector2(
                "t range", (0.0, 0.0), min=(0.0, 0.0), max=(0.999, 0.999), step=0.01, hint="t_min and t_max."
            )
            self.apply = gui.add_button("Apply from the next step on", icon=viser.Icon.PENCIL)
            self.answer = gui.add_html("")
        self.apply.on_click(lambda _: self.ask())

    def add_pictures(self) -> None:
        """Adds plots and images in a separate column on the left."""
        gui = self.server.gui
        column = gui.add_panel()
        with column.add_tab("Training"):
            blank = content.row(torch.ones(1, 1, 1, 3), PICTURE_SIZE)
            self.images = gui.add_image(blank, label="Teacher's input, before noise")
            self.noise = gui.add_image(blank, label="Noise, first three channels")
            self.show_target = gui.add_checkbox(
                "What it makes of them", False, hint="Denoised images z0, decoded by its VAE; takes time from the run."
            )
            self.target = gui.add_image(blank, visible=False)
            self.show_frustums = gui.add_checkbox("Cameras in the scene", True)
            self.loss = add_plot(gui, "loss", BLUE)
            self.count = add_plot(gui, "Gaussians", ORANGE)
        column.dock_left()
        column.set_width(COLUMN_WIDTH)

    def fill(self, config: Config, stage: StageName) -> None:
        """Puts the settings of the next step into the fields, unless they are already there."""
        now = self.values(config, stage)
        if self.settings is None or now != self.values(self.settings, self.stage) or stage != self.stage:
            self.prompt.value, self.cfg.value, self.times.value = now["prompt"], now["cfg"], now["t_range"]
        self.settings, self.stage = config, stage

    def values(self, config: Config, stage: StageName) -> dict[str, Any]:
        return {
            "prompt": config.prompt,
            "cfg": config.stage(stage).cfg,
            "t_range": tuple(map(float, time_range(config, stage))),
        }

    def ask(self) -> None:
        """Requests the changes between the fields and the current settings."""
        assert self.settings is not None
        asked = {
            "prompt": " ".join(self.prompt.value.split()),
            "cfg": self.cfg.value,
            "t_range": tuple(self.times.value),
        }
        now = self.values(self.settings, self.stage)
        changed: dict[str, Any] = {name: value for name, value in asked.items() if value != now[name]}
        if not changed:
            self.controls.answer = "Nothing to change."
            return
        try:
            edit = Edit(**changed | {"stage": self.stage})
        except UserError as error:
            self.controls.answer = f"Not changed. {error}"
            return
        self.controls.answer = "Takes effect with the next step."
        self.controls.edit(edit)

    def tell(self) -> None:
        """Updates cheap elements at once: the paused state and the result of the last edit."""
        paused = self.controls.paused
        self.pause.label = "Resume" if paused else "Pause"
        if self.pause.icon != (icon := viser.Icon.PLAYER_PLAY if paused else viser.Icon.PLAYER_PAUSE):
            self.pause.icon = icon
        self.answer.content = content.text_block(html.escape(self.controls.answer))
        if self.snapshot is not None:
            self.status.content = content.status(self.snapshot, paused)
        self.target.visible = self.show_target.value
        for frustum in self.frustums:
            frustum.visible = self.show_frustums.value

    def show(self, snapshot: Snapshot) -> float:
        """Sends a step; returns the approximate number of megabytes sent to each browser."""
        self.snapshot = snapshot
        self.fill(snapshot.config, snapshot.stage)
        self.progress.value = 100 * (snapshot.step + 1) / snapshot.steps
        steps, losses, counts = content.curves(snapshot.points)
        self.loss.data, self.count.data = (steps, losses), (steps, counts)
        self.images.image = content.row(snapshot.images[:MOST_VIEWS], PICTURE_SIZE)
        self.noise.image = content.row(content.noise_colors(snapshot.noise[:MOST_VIEWS]), PICTURE_SIZE)
        self.show_cameras(snapshot)
        self.tell()
        pictures = 4 * len(snapshot.images) * PICTURE_SIZE**2 * 3
        return (pictures * JPEG_SHARE + 2 * 16 * len(steps)) / 1e6

    def decode(self) -> None:
        """Shows the teacher's denoised images if requested."""
        snapshot = self.snapshot
        if snapshot is not None and self.decoded is not snapshot and self.show_target.value:
            self.show_decoded(snapshot)
            self.decoded = snapshot

    def show_decoded(self, snapshot: Snapshot) -> None:
        """Decodes one view at a time, to save memory."""
        try:
            views = [snapshot.decode(z[None]) for z in snapshot.target[:MOST_VIEWS]]
        except torch.OutOfMemoryError:
            self.show_target.value = False
            self.controls.answer = "Not enough GPU memory to decode the teacher's images."
            return
        pictures = torch.cat(views).permute(0, 2, 3, 1)
        if not pictures.isfinite().all():
            self.controls.answer = "The teacher's images are not finite numbers, and are not shown."
            return
        self.target.image = content.row(pictures, PICTURE_SIZE)

    def show_cameras(self, snapshot: Snapshot) -> None:
        """Shows the training cameras, each with its rendered image."""
        scene, count = self.server.scene, len(snapshot.cameras)
        while len(self.frustums) > count:
            self.frustums.pop().remove()
        views = zip(content.poses(snapshot.cameras), content.fields_of_view(snapshot.cameras), strict=True)
        aspect = snapshot.cameras.width / snapshot.cameras.height
        for i, ((wxyz, position), fov) in enumerate(views):
            if i == len(self.frustums):
                name = f"{OBJECT}/views/{i}"
                self.frustums.append(scene.add_camera_frustum(name, fov, aspect, scale=FRUSTUM_SCALE, thickness=0.004))
            frustum = self.frustums[i]
            frustum.wxyz, frustum.position, frustum.fov, frustum.aspect = wxyz, position, fov, aspect
            frustum.image = content.row(snapshot.images[i : i + 1], PICTURE_SIZE)

    def end(self, message: str, picture: np.ndarray | None) -> None:
        """Shows how the run ended in place of its progress and steering. picture: of the splat, [H, W, 3] uint8."""
        self.ended, self.snapshot, self.decoded = True, None, None
        prompt = "" if self.settings is None else f"<b>{html.escape(self.settings.prompt)}</b><br>"
        self.status.content = content.text_block(prompt + html.escape(message))
        for handle in (self.progress, self.pause, self.step, self.stop, self.steering, self.show_target, self.target):
            handle.visible = False
        self.show_frustums.visible = False
        while self.frustums:
            self.frustums.pop().remove()
        if picture is not None:
            self.picture.image, self.picture.visible = picture, True


def add_plot(gui: viser.GuiApi, name: str, color: str) -> viser.GuiUplotHandle:
    """Adds a plot over the steps of a run."""
    series = (uplot.Series(label="step"), uplot.Series(label=name, stroke=color, width=1.5))
    scales = {"x": uplot.Scale(time=False)}
    return gui.add_uplot(
        (np.zeros(1), np.zeros(1)),
        series,
        scales=scales,
        title=name,
        height=140,
        padding=(12, 12, 0, 0),  # room for half a label above and beside the axes
        legend=uplot.Legend(show=False),
    )
