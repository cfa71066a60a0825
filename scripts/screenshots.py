"""Take the pictures of the viewer and the studio in docs/images from a folder of finished runs.

    python scripts/screenshots.py RUNS

A copy of the runs fills the studio. Two short runs are begun for the pictures, and dropped after them: one in the
studio, one with the viewer. Takes about as long as one run. Needs Chromium (or its path in CHROMIUM) and playwright:
pip install playwright.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from playwright.sync_api import sync_playwright

from gscfd.cli import exit_code
from gscfd.errors import UserError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from chromium import CHROMIUM, FLAGS  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Picture = Literal["viewer", "studio", "studio-phone"]
SIZES: dict[Picture, tuple[int, int]] = {"viewer": (1440, 820), "studio": (1440, 900), "studio-phone": (390, 844)}
PATIENCE = 1800.0
"""Seconds that anything on a page may take."""
VIEWER_SHARE, STUDIO_SHARE = 0.25, 0.35
"""Progress of the coarse stage at which the picture is taken."""


@dataclass
class Arguments:
    runs: Annotated[Path, tyro.conf.Positional]
    """Folder of finished runs, for the gallery of the studio."""
    pictures: tuple[Picture, ...] = ("studio-phone", "studio", "viewer")
    """Pictures to take."""
    watched: str = "a yellow duck"
    """Prompt of the run in the viewer."""
    made: str = "a yellow lamp"
    """Prompt of the run in progress in the studio."""
    queued: str = "a purple teapot"
    """Prompt of the run that waits in the studio."""
    chosen: str = "a-yellow-duck-0"
    """Run shown on the phone, by folder; the first one if there is none of this name."""
    share: float | None = None
    """Progress of the coarse stage, from 0 to 1, at which the pictures of runs are taken. The default depends on the
    picture."""
    out: Path = ROOT / "docs" / "images"
    """Folder of the pictures."""


@contextmanager
def serving(*command: str) -> Iterator[str]:
    """Runs `python -m gscfd COMMAND` and gives the address that it prints. Its runs end with it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gscfd", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if found := re.search(r"(?:viewer|studio): (http://\S+)", line):
                yield found[1]
                return
        raise UserError(f"gscfd {command[0]}: expected the address of a page, got {said.strip()[-500:]!r}")
    finally:
        process.terminate()
        process.communicate()


def opened(browser: Browser, address: str, picture: Picture) -> Page:
    width, height = SIZES[picture]
    phone = picture == "studio-phone"
    page = browser.new_page(
        viewport={"width": width, "height": height}, reduced_motion="reduce", is_mobile=phone, has_touch=phone
    )
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    return page


def wait(page: Page, what: str, true: Callable[[], bool]) -> None:
    """Waits with the browser at work. Raises UserError if it never comes true."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise UserError(f"page: expected {what} within {PATIENCE:.0f} s")
        page.wait_for_timeout(2000)  # a picture of the page costs a browser without a GPU seconds


def wait_for_share(page: Page, share: float) -> None:
    def reached() -> bool:
        found = re.search(r"coarse: step (\d+) of (\d+)", page.inner_text("body"))
        return found is not None and int(found[1]) >= share * int(found[2])

    wait(page, f"{share:.0%} of the coarse stage", reached)


def scene_is_drawn(page: Page) -> bool:
    """Whether the middle of the largest canvas is not white."""
    boxes = [box for canvas in page.locator("canvas").all() if (box := canvas.bounding_box()) is not None]
    box = max(boxes, key=lambda box: box["width"] * box["height"], default=None)
    if box is None:
        return False
    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    x, y = int(box["x"] + box["width"] / 2), int(box["y"] + box["height"] / 2)
    return bool(pixels[y - 8 : y + 8, x - 8 : x + 8].mean() < 240)


def take(page: Page, picture: Picture, out: Path) -> None:
    """Writes the picture once the scene is drawn. The pointer leaves the panels, for a hint would cover them, and
    viser's notice of a browser without a GPU is closed."""
    wait(page, "a splat in the scene", lambda: scene_is_drawn(page))
    if picture != "studio-phone":
        page.mouse.move(SIZES[picture][0] / 2, 20)
    page.evaluate("document.querySelectorAll('.mantine-CloseButton-root').forEach((button) => button.click())")
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(2000)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.save(out / f"{picture}.webp", quality=90, method=6)
    print(f"{out / picture}.webp  {shot.width} x {shot.height}", flush=True)
    page.close()


def take_phone(browser: Browser, address: str, chosen: str, out: Path) -> None:
    page = opened(browser, address, "studio-phone")
    page.get_by_text(re.compile("^Runs")).first.click(force=True)  # opens the row
    page.locator(".gs-card").first.wait_for()
    card = page.locator(f'.gs-card[data-value="{chosen}"]')
    if card.count():
        card.dispatch_event("click")
        page.locator(f'.gs-card[data-value="{chosen}"][aria-pressed="true"]').wait_for()
    wait_for_cards(page)
    page.evaluate(
        "() => { const card = document.querySelector('.gs-card[aria-pressed=true]');"
        " card.parentElement.scrollLeft = card.offsetLeft - card.parentElement.offsetLeft - 8 }"
    )
    take(page, "studio-phone", out)


def wait_for_cards(page: Page) -> None:
    """Waits until every finished run has its picture."""
    unseen = """() => [...document.querySelectorAll(".gs-card")]
        .filter((card) => card.textContent.includes("finished") && !card.querySelector("img")).length"""
    wait(page, "pictures of the runs", lambda: page.evaluate(unseen) == 0)


def take_studio(browser: Browser, address: str, arguments: Arguments, share: float) -> None:
    page = opened(browser, address, "studio")
    for prompt in (arguments.made, arguments.queued):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_role("button", name="Make", exact=True).dispatch_event("click")
        page.get_by_text("Put in the queue:").wait_for()
        page.locator(".gs-card").get_by_text(prompt, exact=True).first.wait_for()
    page.locator(".gs-card").get_by_text(arguments.made, exact=True).first.dispatch_event("click")
    wait_for_cards(page)
    wait_for_share(page, share)
    take(page, "studio", arguments.out)


def take_viewer(browser: Browser, address: str, out: Path, share: float) -> None:
    page = opened(browser, address, "viewer")
    wait_for_share(page, share)
    page.get_by_label("What it makes of them").click()
    seen = "() => [...document.images].filter((image) => image.naturalWidth > 64 && image.offsetParent).length"
    wait(page, "the teacher's images", lambda: page.evaluate(seen) >= 3)
    take(page, "viewer", out)


def screenshots(arguments: Arguments) -> None:
    """Raises UserError if there is no browser or no run."""
    if CHROMIUM is None:
        raise UserError("chromium: expected it on the PATH or its path in CHROMIUM, got neither; install it")
    runs = sorted(path.parent for path in arguments.runs.glob("*/splat.ply"))
    if not runs:
        raise UserError(f"runs: expected a folder of finished runs, got {arguments.runs}, which holds none")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        if set(arguments.pictures) & {"studio", "studio-phone"}:
            copies = Path(folder) / "outputs"
            for run in runs:
                shutil.copytree(run, copies / run.name, ignore=shutil.ignore_patterns("checkpoints"))
            with serving("studio", str(copies)) as address:
                if "studio-phone" in arguments.pictures:
                    take_phone(browser, address, arguments.chosen, arguments.out)
                if "studio" in arguments.pictures:
                    take_studio(browser, address, arguments, arguments.share or STUDIO_SHARE)
        if "viewer" in arguments.pictures:
            watched = str(Path(folder) / "watched")
            with serving("train", arguments.watched, "--out", watched, "--viewer") as address:
                take_viewer(browser, address, arguments.out, arguments.share or VIEWER_SHARE)
        browser.close()


def main() -> int:
    return exit_code(lambda: screenshots(tyro.cli(Arguments, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
