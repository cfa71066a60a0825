"""The scene and its view controls, shared by live and saved runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import viser
from viser import transforms

from gscfd.gaussians import Gaussians
from gscfd.ply import ply_bytes
from gscfd.viewer import content

SECONDS_PER_TURN = 20.0
SPLAT_BYTES = 32
"""Bytes sent to the browser per Gaussian."""
JPEG_SHARE = 0.1
"""Approximate size of an image after JPEG compression, as a share of its raw bytes."""
CAMERA = (4.0, -2.7, 1.4)
"""Initial camera position: slightly left of the object's front and above it, farther away than the training cameras."""
FOV = 0.7
"""Initial vertical field of view, radians."""
OBJECT = "/object"
"""Scene node that the turntable rotates."""


class Display:
    """Shows the splat drawn by the browser, or views rendered here.

    Only the viewer's own thread calls `turn` and `refresh`, which read the current values of the controls.
    """

    def __init__(self, server: viser.ViserServer, paint: content.Paint):
        self.server, self.paint = server, paint
        self.gaussians: Gaussians | None = None
        """The splat to show; replaced, never modified."""
        self.splat: viser.GaussianSplatHandle | None = None
        self.sent: Gaussians | None = None
        self.backdrop: tuple[Any, ...] | None = None
        self.views: dict[int, tuple[Any, ...]] = {}
        """For each browser, the state last rendered and sent, in the modes rendered here."""
        self.turned, self.last_turn = 0.0, 0.0
        server.initial_camera.position = CAMERA
        server.initial_camera.look_at = (0.0, 0.0, 0.0)
        server.initial_camera.fov = FOV
        self.frame = server.scene.add_frame(OBJECT, show_axes=False)
        gui = server.gui
        with gui.add_folder("View"):
            self.mode = gui.add_dropdown(
                "Show",
                content.MODES,
                hint="splat: drawn by the browser. The others are rendered by gscfd from your point of view.",
            )
            self.resolution = gui.add_slider(
                "Resolution", 64, 1024, 64, 384, visible=False, hint="Height in pixels of a view rendered by gscfd."
            )
            self.degree = gui.add_slider(
                "SH degree", 0, 3, 1, 3, visible=False, hint="Maximum degree of the view-dependent color to show."
            )
            self.background = gui.add_rgb("Background", (255, 255, 255))
            self.turntable = gui.add_checkbox("Turntable", False)

    def add_download(self, label: str, name: str, splat: Callable[[], Gaussians | None]) -> viser.GuiButtonHandle:
        """Adds a button that sends `name`.ply to the browser that presses it."""
        button = self.server.gui.add_button(label, icon=viser.Icon.DOWNLOAD)

        def send(event: viser.GuiEvent) -> None:
            gaussians = splat()
            if gaussians is None:
                event.client.add_notification("Nothing to download", "There is no splat yet.", auto_close_seconds=5)
                return
            event.client.send_file_download(f"{name}.ply", ply_bytes(gaussians.tensors()), save_immediately=True)

        button.on_click(send)
        return button

    def turn(self, now: float) -> None:
        """Moves the turntable. now: seconds."""
        if self.turntable.value:
            self.turned += (now - self.last_turn) * math.tau / SECONDS_PER_TURN
            self.frame.wxyz = transforms.SO3.from_z_radians(self.turned).wxyz
        self.last_turn = now

    def refresh(self) -> float:
        """Sends whatever has changed; returns the approximate number of megabytes sent to each browser."""
        drawn = self.mode.value == "splat"
        self.resolution.visible = not drawn
        if self.gaussians is None:
            return 0.0
        degree = self.gaussians.sh_degree
        self.degree.visible = not drawn and degree > 0
        if self.splat is not None:
            self.splat.visible = drawn
        if drawn:
            self.views.clear()
            self.show_backdrop()
            return self.show_splat(self.gaussians)
        self.backdrop = None
        clients = self.server.get_clients()
        self.views = {number: seen for number, seen in self.views.items() if number in clients}
        return max((self.show_view(client, self.gaussians) for client in clients.values()), default=0.0)

    def show_splat(self, gaussians: Gaussians) -> float:
        if self.sent is gaussians:
            return 0.0
        arrays = content.splat_arrays(gaussians)
        if self.splat is None:
            self.splat = self.server.scene.add_gaussian_splats(f"{OBJECT}/splat", **arrays)
        else:
            self.splat.set_gaussians(**arrays)
        self.sent = gaussians
        return len(gaussians) * SPLAT_BYTES / 1e6

    def show_backdrop(self) -> None:
        """Fills the background behind the splat."""
        if self.backdrop != self.background.value:
            self.backdrop = self.background.value
            self.server.scene.set_background_image(np.full((4, 4, 3), self.backdrop, np.uint8), format="png")

    def show_view(self, client: viser.ClientHandle, gaussians: Gaussians) -> float:
        """Renders the client's view as the background image, behind everything the browser draws."""
        camera, background = client.camera, tuple(c / 255 for c in self.background.value)
        looks = (self.mode.value, background, self.degree.value)
        place = (*camera.wxyz, *camera.position, camera.fov, camera.aspect, self.resolution.value, self.turned)
        wanted = (id(gaussians), looks, place)
        if self.views.get(client.client_id) == wanted:
            return 0.0
        view = content.camera_of(
            camera.wxyz, camera.position, camera.fov, camera.aspect, self.resolution.value, self.turned
        )
        mode, _, degree = looks
        image = content.picture(gaussians, view, mode, background, self.paint, degree)
        client.scene.set_background_image(image, format="jpeg")
        self.views[client.client_id] = wanted
        return image.size * JPEG_SHARE / 1e6
