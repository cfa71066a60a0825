"""Reports as a self-contained page with tables, plots and pictures, and their numbers as csv and json."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gscfd.errors import UserError
from gscfd.files import write_text
from gscfd.lab.intervals import Estimate

QUALITY = 85
"""JPEG quality of the pictures in the page."""
LABEL_WIDTH = 40
"""Characters of a line of a label in a plot; on a sheet, half as many."""
TITLE_WIDTH = 62
"""Characters of a line of a plot's title."""


@dataclass(kw_only=True)
class Table:
    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]
    estimates: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """Numbers behind the cells, by column and row, for cells with intervals."""
    names: int = 1
    """How many columns, the first ones, name a row."""

    def markdown(self) -> str:
        columns, *rows = self.lines()
        lines = [columns, ["---"] * len(columns), *rows]
        return "".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |\n" for line in lines)

    def lines(self) -> list[list[str]]:
        """Returns the columns' titles and the rows, every cell on one line."""
        return [[" ".join(cell.split()) for cell in line] for line in (self.columns, *self.rows)]

    def text(self, width: int) -> str:
        """Returns the table as plain text, aligned: rows and columns exchanged if it has more columns than rows, and in
        blocks of as many columns as fit into the width, each with the first ones, which name the rows. width: in
        characters; a single column may exceed it."""
        lines, names = self.lines(), self.names
        columns = [list(column) for column in zip(*lines, strict=True)]
        if len(columns) > len(self.rows) + names:
            columns, names = lines, 1
        names = min(names, len(columns) - 1)
        wide = [max(len(cell) for cell in column) for column in columns]
        blocks, start = [], names
        while start < len(columns):
            end, used = start + 1, sum(wide[:names]) + 2 * names + wide[start]
            while end < len(columns) and used + 2 + wide[end] <= width:
                used, end = used + 2 + wide[end], end + 1
            shown = [*range(names), *range(start, end)]
            rows = zip(*([cell.ljust(wide[i]) for cell in columns[i]] for i in shown), strict=True)
            blocks.append("\n".join("  ".join(row).rstrip() for row in rows))
            start = end
        return "\n\n".join(blocks) + "\n"


@dataclass(kw_only=True)
class Sheet:
    """Pictures in rows of `columns`."""

    title: str
    frames: Sequence[np.ndarray]
    """Each [H, W, 3] uint8."""
    columns: int
    labels: Sequence[str] = ()
    """Name of every row, written to its left; none: no names."""


@dataclass(kw_only=True)
class Plot:
    """Figures with their intervals, side by side; small dots are single runs."""

    title: str
    estimates: dict[str, Estimate]


@dataclass(kw_only=True)
class Curve:
    """Named points in a plane, some of them joined by lines."""

    title: str
    x_title: str
    y_title: str
    points: dict[str, tuple[float, float]]
    lines: dict[str, list[str]]
    """Names of points in their order, by the line's title."""
    named: bool = True
    """Whether every point has its name beside it, and not the lines alone."""


@dataclass(kw_only=True)
class Report:
    title: str
    notes: list[str]
    warnings: list[str]
    """Missing parts, and how to get them."""
    tables: list[Table]
    plots: Sequence[Plot | Curve]
    sheets: list[Sheet]


def check_report(folder: Path, option: str) -> None:
    """Creates the folder of the report. Raises UserError if the folder or the page cannot be created. option: the
    option that names the folder."""
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{option}: expected {' and '.join(missing)}, not installed: pip install 'gscfd[eval]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{option}: expected a writable folder, got {folder} ({error.strerror}); choose another --{option}"
        ) from None


def figure(estimate: Estimate | None, form: str) -> str:
    """Formats a value and its interval, or the runs behind it if they are too few for one."""
    if estimate is None or math.isnan(estimate.value):
        return "n/a"
    if len(estimate.runs) > 1:
        return f"{estimate.value:{form}} ({', '.join(format(run, form) for run in estimate.runs)})"
    if math.isnan(estimate.low):
        return format(estimate.value, form)
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def draw_plot(plot: Plot) -> bytes:
    """Returns the plot as .png: a dot and a bar for each label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = [textwrap.fill(label, LABEL_WIDTH) for label in reversed(plot.estimates)]
    title = textwrap.fill(plot.title, TITLE_WIDTH)
    lines = sum(label.count("\n") + 1.6 for label in labels) + title.count("\n")
    canvas = Figure(figsize=(6, 0.8 + 0.17 * lines), layout="constrained")
    FigureCanvasAgg(canvas)
    canvas.suptitle(title, fontsize=11)
    axes = canvas.add_subplot()
    for row, found in enumerate(reversed(plot.estimates.values())):
        axes.plot([found.low, found.high], [row, row], color="tab:blue", linewidth=2)
        axes.plot(found.runs, [row] * len(found.runs), "o", color="tab:blue", markersize=3, alpha=0.6)
        axes.plot([found.value], [row], "o", color="tab:blue")
    axes.set_yticks(range(len(plot.estimates)), labels)
    axes.grid(axis="x", alpha=0.3)
    file = io.BytesIO()
    canvas.savefig(file, format="png", dpi=100)
    return file.getvalue()


def drawn(plot: Plot | Curve) -> bytes:
    return draw_plot(plot) if isinstance(plot, Plot) else draw_curve(plot)


def draw_curve(curve: Curve) -> bytes:
    """Returns the plane as .png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot(title=curve.title, xlabel=curve.x_title, ylabel=curve.y_title)
    for title, names in curve.lines.items():
        axes.plot(*zip(*(curve.points[name] for name in names), strict=True), label=title, alpha=0.6, marker=".")
    for name, place in curve.points.items() if curve.named else ():
        axes.plot(*place, "o", color="tab:blue")
        axes.annotate(name[:40], place, xytext=(5, 3), textcoords="offset points", fontsize=8)
    if curve.lines:
        axes.legend()
    axes.grid(alpha=0.3)
    file = io.BytesIO()
    canvas.savefig(file, format="png", dpi=100)
    return file.getvalue()


def padded(frames: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Returns the frames [F, H, W, 3], padded with white to complete rows."""
    blank = [np.full_like(frames[0], 255)] * (-len(frames) % columns)
    return np.stack([*frames, *blank])


def draw_sheet(sheet: Sheet) -> bytes:
    """Returns a contact sheet as .jpg."""
    frames = padded(sheet.frames, sheet.columns)
    rows = frames.reshape(-1, sheet.columns, *frames.shape[1:]).transpose(0, 2, 1, 3, 4)
    picture = rows.reshape(rows.shape[0] * rows.shape[1], -1, 3)
    if sheet.labels:
        picture = np.concatenate([label_column(sheet.labels, frames.shape[1]), picture], 1)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()


def label_column(labels: Sequence[str], height: int) -> np.ndarray:
    """Returns the names of the rows, black on white, [rows * height, width, 3] uint8. height: of a row, pixels."""
    size = max(10, height // 9)
    column = Image.new("RGB", (11 * size, height * len(labels)), "white")
    for row, label in enumerate(labels):
        text, middle = textwrap.fill(label, LABEL_WIDTH // 2), (size // 2, height * row + height // 2)
        ImageDraw.Draw(column).text(middle, text, "black", ImageFont.load_default(size), anchor="lm")
    return np.asarray(column)


def embedded(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def write_page(report: Report, path: Path) -> None:
    """Writes the page from the template report.html. It refers to no other files."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files("gscfd") / "report.html").read_text(encoding="utf-8"))
    page = template.render(
        report=report,
        plots=[(plot.title, embedded(drawn(plot), "png")) for plot in report.plots],
        sheets=[(sheet.title, embedded(draw_sheet(sheet), "jpeg")) for sheet in report.sheets],
    )
    write_text(page, path)


def write_json(report: Report, path: Path) -> None:
    """Writes everything except the pictures; non-finite numbers become null."""
    tables = [asdict(table) for table in report.tables]
    content = finite({"notes": report.notes, "warnings": report.warnings, "tables": tables})
    write_text(json.dumps(content, indent=1, ensure_ascii=False), path)


def write_report(report: Report, folder: Path) -> None:
    """Writes report.html, report.json and, with the tables alone, report.md."""
    write_page(report, folder / "report.html")
    write_json(report, folder / "report.json")
    write_text("".join(f"{t.title}\n\n{t.markdown()}\n" for t in report.tables), folder / "report.md")


def finite(value: object) -> object:
    """Returns the value with NaN and infinities replaced by None, because JSON lacks them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
