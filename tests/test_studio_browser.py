"""The studio in Chromium: a typed prompt becomes a run, and every browser sees the same.

Needs Chromium (or its path in CHROMIUM) and playwright: pip install playwright.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import torch
import viser
from chromium import CHROMIUM, FAINT, FLAGS, NAMELESS
from test_studio import saved_run, stand_in
from viewing import paint, until

from gscfd.config import ServerConfig
from gscfd.gaussians import ball
from gscfd.studio import orders
from gscfd.studio.options import StudioOptions
from gscfd.studio.page import Studio
from gscfd.viewer.display import LEAST_ASPECT, Display
from gscfd.viewer.saved import SavedViewer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, or its path in CHROMIUM"),
    pytest.mark.timeout(1800),
]
PATIENCE = 300.0


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio at work on a thread of its own, whose runs are stand-ins; "mug" and "lamp" are finished."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("mug", "lamp"):
        saved_run(folder, name)
    ended = threading.Event()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(orders, "launch", stand_in)
        studio = Studio(StudioOptions(folder=folder, port=8790))

        def work() -> None:
            while not ended.wait(0.05):
                studio.tick(time.monotonic())

        thread = threading.Thread(target=work)
        thread.start()
        yield studio
        ended.set()
        thread.join()
        studio.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def page(browser: Browser, studio: Studio, said: list[str]) -> Page:
    return opened(browser, studio, said)


def opened(browser: Browser, studio: Studio, said: list[str]) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE * 1000)
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(studio.address)
    page.locator(".gs-card").first.wait_for()
    return page


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def rewrite(page: Page, studio: Studio) -> None:
    """Has the cards written anew, as when the progress of a run changes."""
    page.evaluate("document.querySelector('.gs-cards').dataset.old = ''")
    studio.cards.content += " "
    page.locator(".gs-cards:not([data-old])").wait_for()


@pytest.mark.parametrize("keys", [True, False])
def test_the_turntable_stops_at_the_first_touch(browser: Browser, studio: Studio, keys: bool) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 500})
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(studio.address)
    page.locator(".gs-card").first.wait_for()
    studio.display.turntable.value = True
    page.get_by_label("Prompt", exact=True).press("ArrowLeft")
    page.wait_for_timeout(500)
    assert studio.display.turntable.value, "control: it turns until then"
    if keys:
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("ArrowLeft")
    else:
        page.mouse.click(640, 250)
    until(lambda: not studio.display.turntable.value, PATIENCE)
    page.close()


def stands(display: Display) -> bool:
    return not display.turntable.value


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_a_page_heeds_its_reader_after_a_restart_of_the_server(
    browser: Browser, tmp_path: Path, motion: Literal["reduce", "no-preference"]
) -> None:
    ball(9, radius=0.5, opacity=0.9, generator=torch.Generator().manual_seed(0)).save_ply(tmp_path / "a.ply")
    page = browser.new_page(reduced_motion=motion)
    page.set_default_timeout(PATIENCE * 1000)
    for begin in (True, False):
        viewer = SavedViewer([tmp_path / "a.ply"], ServerConfig(port=8796), paint)
        assert viewer.address.endswith(":8796") and viewer.display.turntable.value
        if begin:
            page.goto(viewer.address)
            page.get_by_text("Turntable", exact=True).wait_for()
        until(viewer.server.get_clients, PATIENCE)
        if motion == "no-preference":
            page.wait_for_timeout(2000)
            assert viewer.display.turntable.value, "control: nobody asked for less"
            page.mouse.click(200, 400)
        until(partial(stands, viewer.display), PATIENCE)
        viewer.server.stop()
    page.close()


def scene_of(page: Page, studio: Studio) -> tuple[viser.CameraHandle, float]:
    """The camera of the browser that came last, once it knows how wide the scene is, and the scene's aspect."""

    def aspect() -> float:
        return float(page.evaluate("(() => { const c = document.querySelector('canvas').parentElement; "
                                   "return c.clientWidth / c.clientHeight; })()"))  # fmt: skip

    page.wait_for_timeout(2000)
    clients = studio.server.get_clients()
    camera = clients[max(clients)].camera
    until(lambda: abs(camera.aspect - aspect()) < 0.01, PATIENCE)
    return camera, aspect()


def test_the_object_fits_between_the_panels_until_it_is_moved(
    browser: Browser, studio: Studio, said: list[str]
) -> None:
    page = opened(browser, studio, said)
    display = studio.display

    def away(camera: viser.CameraHandle) -> float:
        """Distance of the camera, over that in a wide window."""
        whole = np.linalg.norm(display.position - display.center)
        return float(np.linalg.norm(camera.position - display.center) / whole)

    def fits(camera: viser.CameraHandle, aspect: float) -> bool:
        return abs(away(camera) - max(1, LEAST_ASPECT / aspect)) < 0.05

    for width, height in ((1200, 900), (1200, 500)):
        page.set_viewport_size({"width": width, "height": height})
        camera, aspect = scene_of(page, studio)
        until(partial(fits, camera, aspect), PATIENCE)
        assert (aspect < 0.6) is (height == 900), "control: the one scene is narrow, the other is not"
    page.mouse.move(600, 250)
    page.mouse.wheel(0, 400)
    page.wait_for_timeout(2000)
    moved = away(camera)
    page.set_viewport_size({"width": 1200, "height": 900})
    camera, aspect = scene_of(page, studio)
    assert abs(moved - 1) > 0.05 and away(camera) == pytest.approx(moved, rel=0.01), "moved by hand, it stays"
    page.close()


@pytest.mark.parametrize(("width", "folded"), [(820, True), (1280, False)])
def test_on_a_tablet_the_runs_are_folded_and_the_scene_has_room(
    browser: Browser, studio: Studio, width: int, folded: bool
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 1180}, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(studio.address)
    scene_of(page, studio)
    assert page.locator(".gs-card").first.is_visible() is not folded
    assert page.evaluate("document.querySelector('canvas').parentElement.clientWidth") > 350
    if folded:
        page.get_by_role("button", name="Expand column").first.click()
        page.locator(".gs-card").first.wait_for()
    page.close()


def test_a_card_shows_its_run(page: Page, studio: Studio) -> None:
    page.locator('.gs-card[data-value="mug"]').click()
    page.get_by_text(f"finished, saved in {studio.folder / 'mug'}").wait_for()
    page.locator('.gs-card[data-value="mug"][aria-pressed="true"]').wait_for()
    assert page.title().endswith("gscfd studio")


def test_a_wrong_prompt_is_answered_and_a_right_one_is_made(page: Page, studio: Studio) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a yelow duck")
    press(page, "Make")
    page.get_by_text("do not know 'yelow'").wait_for()
    prompt.fill("")
    page.keyboard.type("a blu duck")
    page.keyboard.press("Enter")
    page.get_by_text("do not know 'blu' (nearest: 'blue');").wait_for()  # without the last letters: 'du', too
    prompt.fill("")
    page.keyboard.type("a bleu duck")
    page.get_by_role("button", name="Make", exact=True).dispatch_event("click")
    page.get_by_text("do not know 'bleu' (nearest: 'blue');").wait_for()
    prompt.fill("a yellow duck")
    prompt.press("Enter")
    page.get_by_text("In the queue: a-yellow-duck-0").wait_for()
    page.locator('.gs-card[data-value="a-yellow-duck-0"] .gs-now').wait_for()


def test_a_second_browser_sees_the_same(browser: Browser, page: Page, studio: Studio, said: list[str]) -> None:
    other = opened(browser, studio, said)
    other.locator('.gs-card[data-value="a-yellow-duck-0"][aria-pressed="true"]').wait_for()
    other.locator('.gs-card[data-value="lamp"]').click()
    page.locator('.gs-card[data-value="lamp"][aria-pressed="true"]').wait_for()
    other.close()


def test_a_card_that_is_written_anew_keeps_the_focus_and_the_press(page: Page, studio: Studio) -> None:
    focus = "() => document.activeElement.dataset.value"
    page.locator('.gs-card[data-value="lamp"]').dispatch_event("click")
    page.locator('.gs-card[data-value="lamp"][aria-pressed="true"]').wait_for()
    old = page.locator('.gs-card[data-value="mug"]').element_handle()
    old.focus()
    assert page.evaluate(focus) == "mug"
    rewrite(page, studio)
    assert not old.evaluate("(card) => card.isConnected"), "control: it is another card"
    assert page.evaluate(focus) == "mug"
    box = page.locator('.gs-card[data-value="mug"]').bounding_box()
    assert box is not None and studio.name != "mug"
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    rewrite(page, studio)
    page.mouse.up()
    page.locator('.gs-card[data-value="mug"][aria-pressed="true"]').wait_for()
    page.locator('.gs-card[data-value="lamp"]').dispatch_event("click")
    page.locator('.gs-card[data-value="lamp"][aria-pressed="true"]').wait_for()


def test_a_long_prompt_takes_three_lines_of_its_card(page: Page) -> None:
    lines = """count => {
        const words = document.querySelector('.gs-card[data-value="mug"] .gs-words b'), old = words.textContent;
        words.textContent = Array(count).fill('porcelain').join(' ');
        const lines = words.clientHeight / parseFloat(getComputedStyle(words).lineHeight);
        words.textContent = old;
        return Math.round(lines);
    }"""
    assert page.evaluate(lines, 200) == 3
    assert page.evaluate(lines, 1) == 1, "control"


def test_the_settings_open_by_the_keyboard(page: Page) -> None:
    seed = page.get_by_label("Seed", exact=True)
    heading = page.get_by_role("button", name="Settings", exact=True)
    assert not seed.is_visible() and heading.get_attribute("aria-expanded") == "false"
    page.locator("summary", has_text="Words that the toybox knows").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    seed.wait_for()
    until(lambda: heading.get_attribute("aria-expanded") == "true", PATIENCE)
    page.keyboard.press("Space")
    seed.wait_for(state="hidden")


@pytest.mark.parametrize("to", ["ply", "html"])
def test_the_download_is_the_chosen_run(page: Page, studio: Studio, tmp_path: Path, to: str) -> None:
    page.get_by_role("combobox", name="Format", exact=True).click()
    page.get_by_role("option", name=to, exact=True).click()
    with page.expect_download() as download:
        press(page, "Download")
    assert download.value.suggested_filename == f"lamp.{to}"
    download.value.save_as(tmp_path / "file")
    if to == "ply":
        assert (tmp_path / "file").read_bytes() == (studio.folder / "lamp" / "splat.ply").read_bytes()
    else:
        assert f"<title>{studio.prompt}</title>" in (tmp_path / "file").read_text()


def test_a_run_is_deleted_only_after_the_question(page: Page, studio: Studio) -> None:
    press(page, "Delete")
    press(page, "Keep it")
    press(page, "Delete")
    page.get_by_role("button", name="Keep it", exact=True).wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Keep it", exact=True).wait_for(state="detached")
    assert (studio.folder / "lamp" / "splat.ply").is_file()
    press(page, "Delete")
    press(page, "Delete it")
    page.get_by_text("lamp is deleted").wait_for()
    assert not (studio.folder / "lamp").exists()


def test_another_page_cannot_choose_or_connect(browser: Browser, page: Page, studio: Studio) -> None:
    other = browser.new_page()
    other.goto("data:text/html,<title>elsewhere</title>")
    ask = "url => fetch(url, {headers: {'X-Gscfd': '1'}}).then(() => 'sent', () => 'no')"
    assert other.evaluate(ask, f"{studio.address}/do/choose?mug") == "no"
    connect = (
        "(url) => new Promise((done) => { const s = new WebSocket(url, ['viser-v1']);"
        " s.onopen = () => done('open'); s.onerror = () => done('refused'); })"
    )
    address = studio.address.replace("http", "ws", 1)
    assert other.evaluate(connect, address) == "refused"
    assert page.evaluate(connect, address) == "open", "control: the page itself may"
    other.close()


def test_texts_stand_out_and_controls_have_names(page: Page) -> None:
    until(lambda: not page.evaluate(NAMELESS), PATIENCE)
    assert not page.evaluate(FAINT)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<button id=x style=color:#999>?</button>')")
    assert page.evaluate(FAINT) == ["?"], "control"
    page.evaluate("document.getElementById('x').textContent = ''")
    assert len(page.evaluate(NAMELESS)) == 1, "control"
    page.evaluate("document.getElementById('x').remove()")


def test_the_console_is_quiet(page: Page, said: list[str]) -> None:
    assert not said
