"""Watch a run in the browser: the splat, and where it stands. A first, thin version."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch
import viser

from gscfd.gaussians import SH_C0, Gaussians
from gscfd.stage import StepReport

log = logging.getLogger("gscfd")
UPDATE_SECONDS = 0.5


def covariances(gaussians: Gaussians) -> torch.Tensor:
    """[N, 3, 3] R diag(s^2) R^T."""
    w, x, y, z = torch.nn.functional.normalize(gaussians.quats, dim=-1).unbind(-1)
    rotation = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        -1,
    ).unflatten(-1, (3, 3))
    scaled = rotation * gaussians.scales.exp()[:, None, :]
    return scaled @ scaled.transpose(1, 2)


class Viewer:
    """A viser server on 127.0.0.1 that shows the Gaussians at most twice a second. It never stops a run."""

    def __init__(self, port: int, prompt: str):
        self.server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
        self.server.scene.set_up_direction("+z")
        self.server.initial_camera.position = (2.6, 0.0, 0.7)
        self.server.gui.add_markdown(f"**{prompt}**")
        self.status = self.server.gui.add_markdown("starting")
        self.shown = 0.0
        self.alive = True
        print(f"viewer: http://127.0.0.1:{self.server.get_port()}")

    def on_step(self, report: StepReport) -> None:
        last = report.step + 1 == report.steps
        if not self.alive or (time.monotonic() - self.shown < UPDATE_SECONDS and not last):
            return
        try:
            self.show(report)
        except (OSError, RuntimeError) as error:
            self.alive = False
            log.warning("viewer: stopped (%s); the run goes on", error)
        self.shown = time.monotonic()

    @torch.no_grad()
    def show(self, report: StepReport) -> None:
        gaussians = report.gaussians
        rgb = (SH_C0 * gaussians.sh0[:, 0] + 0.5).clamp(0, 1)
        self.server.scene.add_gaussian_splats(
            "/splat",
            centers=gaussians.means.cpu().numpy().astype(np.float32),
            covariances=covariances(gaussians).cpu().numpy().astype(np.float32),
            rgbs=rgb.cpu().numpy().astype(np.float32),
            opacities=gaussians.opacities.sigmoid()[:, None].cpu().numpy().astype(np.float32),
        )
        self.status.content = (
            f"{report.stage}: step {report.step + 1} of {report.steps}, t = {report.t:.2f}, {report.count} Gaussians"
        )
