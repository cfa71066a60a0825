"""The page of a report: its plots are whole, and it can be read on a phone."""

import io
from pathlib import Path

import numpy as np
import pytest
from chromium import CHROMIUM, FLAGS
from PIL import Image

from gscfd.lab.intervals import Estimate
from gscfd.lab.report import Curve, Plot, Report, Sheet, Table, draw_curve, draw_plot, write_page

LONG = "CFD Tab. 8: gradient variance in the paper's form, positions"


def pixels(picture: bytes) -> np.ndarray:
    """[H, W] in [0, 255]."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("L"))


@pytest.mark.parametrize("title", [LONG, f"{LONG}; and all that is said after it, for as long as it takes to say it"])
@pytest.mark.parametrize("label", ["cfd", "cfd, negative prompt, and other settings that make a long label"])
def test_a_plot_holds_the_whole_of_its_title(title: str, label: str) -> None:
    estimates = {f"{label} {i}": Estimate(i, i - 1, i + 1, 9) for i in range(3)}
    with_title, without = (pixels(draw_plot(Plot(title=text, estimates=estimates))) for text in (title, ""))
    edges = with_title[:, 0], with_title[:, -1], with_title[0], with_title[-1]
    assert all((edge == 255).all() for edge in edges)
    assert (with_title < 128).sum() > (without < 128).sum() + 10 * len(title), "control: the title is drawn"


def test_lines_of_many_points_are_not_covered_by_names() -> None:
    names = [f"paper, gate, {i}" for i in range(60)]
    points = {name: (float(i), float(i)) for i, name in enumerate(names)}
    curves = [
        Curve(title="", x_title="", y_title="", points=points, lines={"paper": names}, named=named)
        for named in (False, True)
    ]
    bare, named = ((pixels(draw_curve(curve)) < 60).sum() for curve in curves)
    assert named > 2 * bare


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_on_a_phone_tables_keep_their_lines_and_names_and_the_page_stands_still(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    cell = "22.95 [22.64, 23.24]"
    table = Table(title="t", note="", columns=["", *"abcdefgh"], rows=[["cfd, noisy variable", *[cell] * 8]] * 3)
    sheet = Sheet(title="s", frames=[np.zeros((64, 64, 3), np.uint8)] * 24, columns=12, labels=["cfd", "sds"])
    plot = Plot(title="p", estimates={"cfd": Estimate(1, 0, 2, 9)})
    report = Report(title="r", notes=[], warnings=[], tables=[table], plots=[plot], sheets=[sheet])
    write_page(report, tmp_path / "report.html")
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(f"file://{tmp_path}/report.html")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.querySelector('tr:last-child').offsetHeight") < 3 * 13 * 1.45 + 8
        page.evaluate("document.querySelector('table').parentElement.scrollLeft = 300")
        assert 0 <= page.evaluate("document.querySelector('td').getBoundingClientRect().left") < 30
        assert page.evaluate("document.querySelectorAll('td')[1].getBoundingClientRect().left") < 0, "control"
        assert page.evaluate("document.querySelector('img.sheet').width") >= 900
        assert page.evaluate("document.querySelector('img').alt") == "p"
        browser.close()
