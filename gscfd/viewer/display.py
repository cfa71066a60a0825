"""The scene, and the controls of how it is looked at: the same for a live run and for saved ones."""

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
"""Of one Gaussian on its way to the browser."""
JPEG_SHARE = 0.1
"""Of a picture's bytes that are left, about."""
CAMERA = (4.0, -2.7, 1.4)
"""Where a new browser stands: a little to the left of the object's front and above it, behind the training cameras."""
FOV = 0.7
"""Its vertical field of view, radians."""
OBJECT = "/object"
"""What the turntable turns."""


class Display:
    """The splat as the browser draws it, or views that are rendered here.

    Only the viewer's own thread calls `turn` and `refresh`; what people set is read there.
    """

    def __init__(self, server: viser.ViserServer, paint: content.Paint):
        self.server, self.paint = server, paint
        self.gaussians: Gaussians | None = None
        """What is to be shown; replaced, never changed."""
        self.splat: viser.GaussianSplatHandle | None = None
        self.sent: Gaussians | None = None
        self.backdrop: tuple[Any, ...] | None = None
        self.views: dict[int, tuple[Any, ...]] = {}
        """What each browser has been sent, when views are rendered here."""
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
                hint="splat: drawn by the browser. The others are rendered by gscfd from where you stand.",
            )
            self.resolution = gui.add_slider(
                "Resolution", 64, 1024, 64, 384, visible=False, hint="Rows of pixels of a view that gscfd renders."
            )
            self.degree = gui.add_slider(
                "SH degree", 0, 3, 1, 3, visible=False, hint="Most that is used of the colors' dependence on the view."
            )
            self.background = gui.add_rgb("Background", (255, 255, 255))
            self.turntable = gui.add_checkbox("Turntable", False)

    def add_download(self, label: str, name: str, splat: Callable[[], Gaussians | None]) -> viser.GuiButtonHandle:
        """A button that sends `name`.ply to whoever presses it."""
        button = self.server.gui.add_button(label, icon=viser.Icon.DOWNLOAD)

        @button.on_click
        def _(event: viser.GuiEvent) -> None:
            gaussians = splat()
            if gaussians is None:
                event.client.add_notification("Nothing to download", "There is no splat yet.", auto_close_seconds=5)
                return
            event.client.send_file_download(f"{name}.ply", ply_bytes(gaussians.tensors()), save_immediately=True)

        return button

    def turn(self, now: float) -> None:
        """Move the turntable. now: seconds."""
        if self.turntable.value:
            self.turned += (now - self.last_turn) * math.tau / SECONDS_PER_TURN
            self.frame.wxyz = transforms.SO3.from_z_radians(self.turned).wxyz
        self.last_turn = now

    def refresh(self) -> float:
        """Send what has changed; returns about how many megabytes that is for each browser."""
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
        """Fill the page behind the splat."""
        if self.backdrop != self.background.value:
            self.backdrop = self.background.value
            self.server.scene.set_background_image(np.full((4, 4, 3), self.backdrop, np.uint8), format="png")

    def show_view(self, client: viser.ClientHandle, gaussians: Gaussians) -> float:
        """Render what the client's camera sees, behind everything that the browser draws."""
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
