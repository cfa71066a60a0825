import urllib.request

import pytest
import torch

from gscfd.cameras import turntable
from gscfd.config import Config
from gscfd.errors import UserError
from gscfd.gaussians import ball
from gscfd.stage import StepReport
from gscfd.state import StageState
from gscfd.train import start_viewer
from gscfd.viewer import Viewer, covariances


def report(step=0):
    gaussians = ball(20, radius=0.5, opacity=0.3, generator=torch.Generator().manual_seed(0))
    return StepReport(
        stage="coarse",
        step=step,
        steps=2,
        t=0.5,
        loss=1.0,
        regulariser=0.0,
        count=20,
        seconds={},
        gaussians=gaussians,
        cameras=turntable(2, size=8),
        images=torch.zeros(2, 8, 8, 3),
        state=StageState(gaussians, Config().coarse, seed=0, keep_every=1),
    )


@pytest.fixture
def viewer():
    viewer = Viewer(8090, "a mug")
    yield viewer
    viewer.server.stop()


def test_covariances_have_the_squared_scales_as_eigenvalues():
    gaussians = report().gaussians
    with torch.no_grad():
        gaussians.params["scales"].normal_(-3, 0.5)
        eigenvalues = torch.linalg.eigvalsh(covariances(gaussians).double())
    expected = (2 * gaussians.scales.detach().double()).exp().sort(-1).values
    assert torch.allclose(eigenvalues, expected, rtol=1e-4, atol=1e-9)


def test_the_page_is_served_to_this_machine_only(viewer):
    assert viewer.server.get_host() == "127.0.0.1"
    with urllib.request.urlopen(f"http://127.0.0.1:{viewer.server.get_port()}") as page:
        assert b"<html" in page.read().lower()


def test_a_busy_port_is_replaced_by_a_free_one(viewer):
    second = Viewer(viewer.server.get_port(), "a mug")
    assert second.server.get_port() != viewer.server.get_port()
    second.server.stop()


def test_the_status_follows_the_run(viewer):
    viewer.on_step(report(step=1))
    assert "step 2 of 2" in viewer.status.content


def test_a_dead_viewer_does_not_stop_the_run(viewer, monkeypatch):
    def broken(report):
        raise OSError("connection lost")

    monkeypatch.setattr(viewer, "show", broken)
    viewer.on_step(report(step=1))
    assert not viewer.alive
    viewer.on_step(report(step=1))


def test_a_viewer_that_cannot_start_is_one_clear_error(monkeypatch):
    def broken(**kwargs):
        raise OSError("no free port")

    monkeypatch.setattr("gscfd.viewer.viser.ViserServer", broken)
    with pytest.raises(UserError, match="viewer: cannot start .no free port.; choose another --viewer-port"):
        start_viewer(Config(prompt="a mug"))
