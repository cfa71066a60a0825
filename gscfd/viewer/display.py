"""The scene and its view controls, shared by live and saved runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import viser
from viser import transforms

from gscfd.errors import UserError
from gscfd.export import FORMATS, Format
from gscfd.export.write import download
from gscfd.gaussians import Gaussians
from gscfd.viewer import content
from gscfd.viewer.door import Door

SECONDS_PER_TURN = 24.0
TICK_SECONDS = 0.05
"""Interval at which the turntable moves."""
SPLAT_BYTES = 32
"""Bytes sent to the browser per Gaussian."""
JPEG_SHARE = 0.1
"""Approximate size of an image after JPEG compression, as a share of its raw bytes."""
CAMERA = (4.0, -2.7, 1.4)
"""Initial camera position: at three quarters and above the object, farther away than the training cameras."""
FOV = 0.7
"""Initial vertical field of view, radians."""
LEAST_ASPECT = 0.9
"""Width / height of a window below which the camera stands back."""
OBJECT = "/object"
"""Scene node that the turntable rotates."""


class Display:
    """Shows the splat drawn by the browser, or views rendered here.

    Only the viewer's own thread calls `turn` and `refresh`, which read the current values of the controls.
    """

    def __init__(self, server: viser.ViserServer, door: Door, paint: content.Paint):
        self.server, self.paint = server, paint
        self.gaussians: Gaussians | None = None
        """The splat to show; replaced, never modified."""
        self.splat: viser.GaussianSplatHandle | None = None
        self.sent: Gaussians | None = None
        self.backdrop: tuple[Any, ...] | None = None
        self.views: dict[int, tuple[Any, ...]] = {}
        """For each browser, the state last rendered and sent, in the modes rendered here."""
        self.turned, self.last_turn = 0.0, 0.0
        self.center, self.position = np.zeros(3), np.array(CAMERA)
        """Point that the cameras look at, about which the object turns, and where they stand at first."""
        self.aim(self.center, self.position)
        server.initial_camera.fov = FOV
        server.on_client_connect(self.follow)
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
            self.turntable = gui.add_checkbox("Turntable", True, hint="Stops at the first touch of the scene.")
        door.actions["touch"] = lambda _: setattr(self.turntable, "value", False)
        door.actions["still"] = lambda _: self.stand()

    def add_download(
        self,
        name: Callable[[], str],
        splat: Callable[[], Gaussians | None],
        title: Callable[[], str],
        formats: Sequence[Format] = FORMATS,
    ) -> Download:
        """Adds controls that send the splat to the browser that asks. name: of the file, without its ending. title: of
        a page; "": the file's name."""
        return Download(self.server.gui, name, splat, title, formats)

    def turn(self, now: float) -> None:
        """Moves the turntable. now: seconds."""
        if self.turntable.value:
            self.turned += (now - self.last_turn) * math.tau / SECONDS_PER_TURN
            turn = transforms.SO3.from_z_radians(self.turned)
            self.frame.wxyz, self.frame.position = turn.wxyz, self.center - turn @ self.center
        self.last_turn = now

    def stand(self) -> None:
        """Stops the turntable, and turns the object back."""
        self.turntable.value, self.turned = False, 0.0
        self.frame.wxyz, self.frame.position = (1.0, 0.0, 0.0, 0.0), np.zeros(3)

    def aim(self, center: np.ndarray, position: np.ndarray) -> None:
        """Places the camera of every browser, also of later ones. center: [3], what it looks at. position: [3]."""
        self.center, self.position = center, position
        camera = self.server.initial_camera
        camera.position, camera.look_at = tuple(position), tuple(center)
        for client in self.server.get_clients().values():
            client.camera.position, client.camera.look_at = tuple(position), tuple(center)
            self.fit(client)

    def fit(self, client: viser.ClientHandle) -> None:
        """Moves a camera back until the object is as wide in a narrow window, such as a phone's, as in a wide one."""
        if client.camera.aspect < LEAST_ASPECT:
            self.place(client)

    def follow(self, client: viser.ClientHandle) -> None:
        """Fits the camera of a browser, and again when the scene in it becomes wider or narrower: the panels come after
        the connection, a phone is turned. A camera that was moved by hand stays."""
        camera, aspect, first = client.camera, client.camera.aspect, client.camera.position
        self.fit(client)

        def refit(_: viser.CameraHandle) -> None:
            nonlocal aspect
            before, aspect = aspect, camera.aspect
            reach = 0.01 * float(np.linalg.norm(self.position - self.center))
            homes = (first, self.position, self.standing(before))
            if aspect != before and any(np.linalg.norm(camera.position - home) < reach for home in homes):
                self.place(client)

        camera.on_update(refit)

    def place(self, client: viser.ClientHandle) -> None:
        """Places a camera where it stands in a window of its aspect."""
        client.camera.position = tuple(self.standing(client.camera.aspect))
        client.camera.look_at = tuple(self.center)

    def standing(self, aspect: float) -> np.ndarray:
        """Returns where the cameras stand at first in a window of an aspect, [3]."""
        place: np.ndarray = self.center + (self.position - self.center) * max(1.0, LEAST_ASPECT / max(aspect, 0.05))
        return place

    def refresh(self) -> float:
        """Sends whatever has changed; returns the approximate number of megabytes sent to each browser."""
        drawn = self.mode.value == "splat"
        self.resolution.visible = not drawn
        if self.gaussians is None:
            self.clear()
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

    def clear(self) -> None:
        """Empties the scene."""
        if self.splat is not None:
            self.splat.remove()
        self.splat = self.sent = None
        self.views.clear()
        self.show_backdrop()

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
            camera.wxyz, camera.position, camera.fov, camera.aspect, self.resolution.value, self.turned, self.center
        )
        mode, _, degree = looks
        image = content.picture(gaussians, view, mode, background, self.paint, degree)
        client.scene.set_background_image(image, format="jpeg")
        self.views[client.client_id] = wanted
        return image.size * JPEG_SHARE / 1e6


class Download:
    """A button that sends a splat to the browser that presses it, and the choice of its format."""

    def __init__(
        self,
        gui: viser.GuiApi,
        name: Callable[[], str],
        splat: Callable[[], Gaussians | None],
        title: Callable[[], str],
        formats: Sequence[Format],
    ):
        self.name, self.splat, self.title = name, splat, title
        self.format = gui.add_dropdown(
            "Format",
            formats,
            visible=len(formats) > 1,
            hint="ply and the next five: Gaussians. html: a page. obj, mesh.*: triangles. mp4, png: pictures.",
        )
        label = "Download" if len(formats) > 1 else f"Download .{formats[0]}"
        self.button = gui.add_button(label, icon=viser.Icon.DOWNLOAD)
        self.button.on_click(lambda event: self.send(event.client))

    @property
    def visible(self) -> bool:
        return bool(self.button.visible)

    @visible.setter
    def visible(self, visible: bool) -> None:
        self.button.visible = visible
        self.format.visible = visible and len(self.format.options) > 1

    def send(self, client: viser.ClientHandle) -> None:
        """Writes the splat in the chosen format and sends it; whatever prevents it is said in the browser."""
        gaussians, to = self.splat(), self.format.value
        if to not in self.format.options:
            return
        if gaussians is None:
            client.add_notification("Nothing to download", "There is no splat yet.", auto_close_seconds=5)
            return
        name = self.name()
        note = client.add_notification("Writing", f"{name}.{to}", loading=True, with_close_button=False)
        try:
            client.send_file_download(*download(gaussians, to, name, self.title()), save_immediately=True)
        except (UserError, OSError) as error:
            client.add_notification("Not downloaded", str(error), color="red")
        finally:
            note.remove()
