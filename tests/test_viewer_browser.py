"""The viewer in Chromium, with software WebGL: what it shows, and that its controls do what they say.

Needs Chromium (or its path in CHROMIUM) and playwright: pip install playwright.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, FLAGS
from PIL import Image
from viewing import STEPS, Run, settings, until, viewing

from gscfd.cameras import turntable
from gscfd.distil.stage import StepReport
from gscfd.distil.state import StageState
from gscfd.gaussians import Gaussians, ball
from gscfd.harmonics import rgb_to_sh0
from gscfd.runs.signals import Interrupted
from gscfd.viewer.live import LiveViewer

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, or its path in CHROMIUM"),
    pytest.mark.timeout(1800),  # a minute on an idle machine
]
WIDTH, HEIGHT = 1280, 720
PATIENCE = 600.0


def red_ball() -> Gaussians:
    values = ball(800, radius=0.6, opacity=0.95, generator=torch.Generator().manual_seed(0)).tensors()
    values["sh0"] = rgb_to_sh0(torch.tensor([0.9, 0.05, 0.1])).repeat(800, 1, 1)
    return Gaussians(**values)


class Still(Run):
    """A run of a splat that stays as it is."""

    def work(self) -> None:
        self.gaussians = red_ball()
        state = StageState(self.gaussians, self.config.coarse, seed=0, keep_every=1000)
        cameras = turntable(4, size=16)[1::2]  # on both sides, out of the way
        images = self.gaussians.render(cameras).over(torch.ones(3))
        try:
            for step in range(STEPS):
                state.step = step + 1
                report = StepReport(
                    stage="coarse", step=step, steps=STEPS, t=0.5, loss=10.0 / (step + 1), regularizer=0.0,
                    count=len(self.gaussians), seconds={"render": 0.1}, gaussians=self.gaussians, cameras=cameras,
                    images=images, noise=torch.randn(2, 3, 8, 8), target=torch.rand(2, 3, 8, 8), state=state,
                )  # fmt: skip
                self.on_step(report)
        except BaseException as error:
            self.ended = error


@pytest.fixture(scope="module")
def viewer() -> Iterator[LiveViewer]:
    with viewing() as viewer:
        viewer.display.turntable.value = False  # the tests look at colors in one place
        yield viewer


@pytest.fixture(scope="module")
def run(viewer: LiveViewer) -> Still:
    viewer.controls.pause(True)
    return Still(viewer, settings())


@pytest.fixture(scope="module")
def said() -> list[tuple[str, str]]:
    return []


@pytest.fixture(scope="module")
def page(viewer: LiveViewer, run: Still, said: list[tuple[str, str]]) -> Iterator[Page]:
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", lambda message: said.append((message.type, message.text)))
        page.on("pageerror", lambda error: said.append(("error", str(error))))
        page.on("requestfailed", lambda request: said.append(("error", request.url)))
        page.on("request", lambda request: said.append(("request", request.url)))
        page.goto(viewer.address)
        yield page
        browser.close()


def pixels(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot()))).astype(float)[..., :3]


def patch(page: Page, x: int, y: int) -> np.ndarray:
    """[3] mean color of the page around a place."""
    return np.asarray(pixels(page)[y - 8 : y + 8, x - 8 : x + 8].mean((0, 1)))


def soon(page: Page, true: Callable[[], object]) -> None:
    """Wait until it is, with the browser at work."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never came"
        page.wait_for_timeout(500)


def canvas_center(page: Page) -> tuple[int, int]:
    """Of the scene, which is larger than the plots."""
    boxes = [canvas.bounding_box() for canvas in page.locator("canvas").all()]
    box = max(boxes, key=lambda box: box["width"] * box["height"])
    return round(box["x"] + box["width"] / 2), round(box["y"] + box["height"] / 2)


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def choose(page: Page, mode: str) -> None:
    page.get_by_role("combobox", name="Show", exact=True).click()
    page.get_by_role("option", name=mode, exact=True).click()


def is_red(color: np.ndarray) -> bool:
    return bool(color[0] > 150 and color[1] < 90 and color[2] < 90)


def test_the_page_shows_the_objects_colors_on_the_background(page: Page, viewer: LiveViewer) -> None:
    page.locator(".u-over").last.wait_for()
    x, y = canvas_center(page)
    soon(page, lambda: is_red(patch(page, x, y)))
    assert (patch(page, x, HEIGHT - 30) > 240).all(), "control: white below it"
    viewer.display.background.value = (0, 0, 255)
    soon(page, lambda: (abs(patch(page, x, HEIGHT - 30) - [0, 0, 255]) < 30).all())
    assert is_red(patch(page, x, y))
    viewer.display.background.value = (255, 255, 255)


def test_the_page_says_where_the_run_stands(page: Page) -> None:
    page.get_by_text(f"coarse: step 1 of {STEPS}, paused").wait_for()
    assert page.get_by_text("a mug").first.is_visible()
    assert page.locator(".u-over").count() == 2, "two plots"


def test_single_step_pause_and_resume(page: Page, viewer: LiveViewer, run: Still) -> None:
    button(page, "Single step").click()
    page.get_by_text(f"coarse: step 2 of {STEPS}, paused").wait_for()
    assert run.steps == [0, 1]
    assert button(page, "Resume").is_visible() and not button(page, "Pause").is_visible()


def test_an_edit_is_made_and_a_bad_one_answered(page: Page, run: Still) -> None:
    page.locator("textarea").first.fill("a red mug")
    button(page, "Apply from the next step on").click()
    page.get_by_text("From step 3 on: prompt a red mug").wait_for()
    assert run.teacher.prompts[-1].text == "a red mug" and run.recorded[-1].edits[-1].step == 2
    page.locator("textarea").first.fill(" ")
    button(page, "Apply from the next step on").click()
    page.get_by_text("Not changed. prompt: expected a description").wait_for()
    assert run.teacher.prompts[-1].text == "a red mug"
    page.locator("textarea").first.fill("a red mug")


def test_views_are_rendered_by_the_run_when_they_are_asked_for(page: Page) -> None:
    x, y = canvas_center(page)
    choose(page, "depth")
    soon(page, lambda: np.ptp(patch(page, x, y)) < 12 and patch(page, x, y).mean() < 250)
    choose(page, "color")
    soon(page, lambda: is_red(patch(page, x, y)))
    choose(page, "splat")
    soon(page, lambda: is_red(patch(page, x, y)))


def test_the_download_is_the_splat(page: Page, tmp_path: Path) -> None:
    with page.expect_download() as download:
        button(page, "Download .ply").click()
    assert download.value.suggested_filename == "a-mug-0.ply"
    download.value.save_as(tmp_path / "splat.ply")
    assert torch.equal(Gaussians.load_ply(tmp_path / "splat.ply").means, red_ball().means)


def test_stop_ends_the_run(page: Page, run: Still) -> None:
    button(page, "Stop and save").click()
    until(lambda: run.ended, PATIENCE)
    assert isinstance(run.ended, Interrupted) and run.saved == [1]


def test_the_end_stays_on_the_page_with_pictures_and_downloads(page: Page, viewer: LiveViewer, tmp_path: Path) -> None:
    red_ball().save_ply(tmp_path / "splat.ply")
    viewer.end(f"finished, saved in {tmp_path}", tmp_path)
    page.get_by_text(f"finished, saved in {tmp_path}").wait_for()
    assert not button(page, "Stop and save").is_visible()
    page.get_by_role("combobox", name="Format", exact=True).click()
    page.get_by_role("option", name="html", exact=True).click()
    with page.expect_download() as download:
        button(page, "Download").click()
    assert download.value.suggested_filename == "a-mug-0.html"
    assert page.title() == "a mug · gscfd"


def test_the_console_is_quiet_and_nothing_is_fetched_from_elsewhere(
    said: list[tuple[str, str]], viewer: LiveViewer
) -> None:
    errors = [text for kind, text in said if kind == "error"]
    assert not errors
    asked = [url for kind, url in said if kind == "request"]
    assert asked and all(viewer.address in url or url.startswith("data:") for url in asked)
