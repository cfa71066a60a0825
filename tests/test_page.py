"""Pages with a splat in Chromium: the html export, in a window, on a phone and in a frame; and the page of docs/web.md.

Needs Chromium (or its path in CHROMIUM) and playwright: pip install playwright. The page of docs/web.md needs what it
installs by npm, in a folder named by NODE_MODULES.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, FLAGS
from PIL import Image
from torch import Tensor

from gscfd.cameras import orbit
from gscfd.export.html import AZIMUTH, ELEVATION, FOV, HALF_WIDTH, POSTER, ink, write_html
from gscfd.export.write import WHITE, download
from gscfd.gaussians import Gaussians, ball
from gscfd.harmonics import rgb_to_sh0

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[1]
NODE_MODULES = os.environ.get("NODE_MODULES")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, or its path in CHROMIUM"),
    pytest.mark.timeout(900),
]
Open = Callable[..., "Page"]
"""Opens a file in a window of a given size."""


def colored() -> Gaussians:
    """A ball, red in front, green on its left, blue on top, and dark elsewhere: nothing symmetric about it."""
    values = ball(900, radius=0.7, opacity=0.9, generator=torch.Generator().manual_seed(0)).tensors()
    x, y, z = values["means"].T
    color = torch.stack([x.clamp_min(0), y.clamp_min(0), z.clamp_min(0)], -1) / 0.7 * 0.9 + 0.05
    values["sh0"] = rgb_to_sh0(color)[:, None]
    return Gaussians(**values)


def rendered(azimuth: float, elevation: float, distance: float, size: int) -> Tensor:
    """[size, size, 3] the colored ball over white, by gscfd."""
    turned, raised, away, fov = torch.tensor([azimuth, elevation, distance, FOV])[:, None]
    return colored().render(orbit(turned, raised, away, fov, size, size)).over(torch.ones(3))[0]


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10((a - b).square().mean().item())


def decoded(png: bytes) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255.0).float()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(browser: Browser, said: list[str]) -> Iterator[Open]:
    contexts = []

    def opened(address: str, width: int, height: int, **options: Any) -> Page:
        window = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=window, bypass_csp=True, **options))  # wait_for_function evaluates
        page = contexts[-1].new_page()
        page.set_default_timeout(300_000)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "a ball.html"
    write_html(colored(), path, WHITE)
    return path


def test_the_poster_is_what_the_page_shows_first(exported: Path) -> None:
    found = re.search(r'<img alt="" src="data:image/webp;base64,([^"]+)"', exported.read_text())
    assert found is not None
    poster = decoded(base64.b64decode(found[1]))
    start = rendered(AZIMUTH, ELEVATION, HALF_WIDTH / math.tan(math.radians(FOV) / 2), POSTER)
    assert len(found[1]) < 12_000 and psnr(poster, start) > 30
    assert psnr(poster.flip(1), start) < 20, "control: mirrored"
    script = exported.read_text()
    assert f"azimuth: {AZIMUTH:g} * Math.PI" in script and f"elevation: {ELEVATION:g} * Math.PI" in script
    assert f"distance: {HALF_WIDTH} / Math.tan(FOV / 2)" in script and f"FOV = {FOV:g} * Math.PI" in script


def test_without_webgl_the_poster_stays_and_the_page_says_so(exported: Path, opened: Open, tmp_path: Path) -> None:
    copy = tmp_path / "copy.html"
    copy.write_text(exported.read_text().replace('canvas.getContext("webgl2"', 'canvas.getContext("none"'))
    page = opened(copy.as_uri(), 600, 400)
    assert page.locator("img").is_visible() and "no WebGL2" in page.locator("p").inner_text()
    page = opened(exported.as_uri(), 600, 400)
    page.wait_for_function("!document.querySelector('img')")


@pytest.mark.parametrize(("width", "height", "phone"), [(1280, 800, False), (390, 844, True), (500, 500, False)])
def test_hints_and_buttons_do_not_cover_the_object(
    width: int, height: int, phone: bool, exported: Path, opened: Open, said: list[str]
) -> None:
    page = opened(exported.as_uri(), width, height, has_touch=phone, is_mobile=phone, reduced_motion="reduce")
    page.wait_for_function("!document.querySelector('img')")
    canvas, footer = (page.locator(name).bounding_box() for name in ("canvas", "footer"))
    assert canvas is not None and footer is not None
    assert canvas["y"] + canvas["height"] <= footer["y"] + 0.5 and footer["y"] + footer["height"] <= height + 0.5
    assert canvas["height"] > 0.8 * height and footer["x"] + footer["width"] <= width
    hint = page.locator("p").inner_text()
    assert ("pinch" in hint) == phone and ("wheel" in hint) != phone
    assert said == []


def state(page: Page) -> dict[str, float]:
    found: dict[str, float] = page.evaluate("camera")
    return found


def test_a_finger_turns_two_zoom_and_the_button_starts_again(exported: Path, opened: Open) -> None:
    page = opened(exported.as_uri(), 390, 844, has_touch=True, is_mobile=True, reduced_motion="reduce")
    page.wait_for_function("!document.querySelector('img')")
    first = state(page)
    touch = page.context.new_cdp_session(page)

    def finger(kind: str, *points: tuple[int, int]) -> None:
        places = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    finger("touchStart", (100, 300))
    finger("touchMove", (160, 330))
    finger("touchEnd")
    turned = state(page)
    assert turned["azimuth"] < first["azimuth"] and turned["elevation"] > first["elevation"]
    finger("touchStart", (150, 300), (250, 300))
    finger("touchMove", (100, 300), (300, 300))
    finger("touchEnd")
    assert state(page)["distance"] < turned["distance"]
    page.get_by_role("button", name="Start again").tap()
    assert state(page) == first


def test_in_a_frame_the_page_around_it_scrolls_until_the_splat_is_clicked(
    exported: Path, opened: Open, tmp_path: Path
) -> None:
    around = tmp_path / "around.html"
    around.write_text(f'<iframe src="{exported.as_uri()}" width="300" height="300"></iframe><p style="height: 3000px">')
    page = opened(around.as_uri(), 400, 400, reduced_motion="reduce")
    frame = page.frames[1]
    frame.wait_for_function("!document.querySelector('img')")
    assert frame.evaluate("getComputedStyle(document.querySelector('canvas')).touchAction") == "pan-y"
    assert not frame.locator("footer").is_visible(), "a low frame has no hints"
    page.mouse.move(150, 150)
    page.mouse.wheel(0, 100)
    page.wait_for_function("scrollY > 0")
    distance = frame.evaluate("camera.distance")
    page.evaluate("scrollTo(0, 0)")
    page.mouse.click(150, 150)
    page.mouse.wheel(0, 100)
    frame.wait_for_function(f"camera.distance > {distance}")
    assert page.evaluate("scrollY") == 0


@pytest.mark.parametrize("shade", np.linspace(0, 1, 21))
def test_the_ink_is_readable_on_every_background(shade: float) -> None:
    linear = shade / 12.92 if shade <= 0.04045 else ((shade + 0.055) / 1.055) ** 2.4
    light = {"#000": 0.0, "#fff": 1.0}[ink((shade,) * 3)]
    low, high = sorted((light, linear))
    assert (high + 0.05) / (low + 0.05) >= 4.5


# The page of the documentation.


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the folder."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *words: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(NODE_MODULES is None, reason="needs what docs/web.md installs by npm, in NODE_MODULES")
def test_the_page_of_the_documentation_shows_the_splat_with_three_and_spark(
    tmp_path: Path, served: str, opened: Open, said: list[str]
) -> None:
    text = next(b for b in re.findall(r"```html\n(.*?)```", (ROOT / "docs/web.md").read_text(), re.S) if "spark" in b)
    (tmp_path / "index.html").write_text(text)
    (tmp_path / "splat.spz").write_bytes(download(colored(), "spz", "splat")[1])
    (tmp_path / "node_modules").symlink_to(Path(str(NODE_MODULES)).resolve())
    place = re.search(r"position\.set\(([\d.]+), ([\d.]+), ([\d.]+)\)", text)
    assert place is not None
    right, up, front = map(float, place.groups())
    distance = math.hypot(right, up, front)
    azimuth, elevation = math.degrees(math.atan2(right, front)), math.degrees(math.asin(up / distance))
    expected = rendered(azimuth, elevation, distance, 256)
    page = opened(f"{served}/index.html", 256, 256)
    shown = torch.ones(256, 256, 3)
    for _ in range(60):
        shown = decoded(page.screenshot())
        if shown.min() < 0.5:
            break
        page.wait_for_timeout(1000)
    print(f"Spark: {psnr(shown, expected):.1f} dB")
    assert psnr(shown, expected) > 25
    assert psnr(shown.flip(1), expected) < 18 and psnr(shown.flip(0), expected) < 18, "controls: other axes"
    assert [line for line in said if "favicon" not in line and "404" not in line] == []
