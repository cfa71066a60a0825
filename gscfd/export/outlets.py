"""What `Gaussians.save`, `.show` and notebooks use."""

from __future__ import annotations

import base64
import html
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

from gscfd.errors import UserError
from gscfd.export import FORMATS
from gscfd.export.html import write_html
from gscfd.export.options import ExportOptions
from gscfd.export.turntable import THREE_QUARTERS, turntable_frames
from gscfd.export.write import WHITE, check_settings, warn_of_size, write
from gscfd.gaussians import Gaussians
from gscfd.pictures import write_picture

PICTURE_SIZE = 320
CELL_HEIGHT = 400
"""Pixels of a page in a notebook."""


def save(gaussians: Gaussians, path: str | Path, **options: Any) -> None:
    """Writes the splat in the format that the name ends in; see `Gaussians.save`."""
    path = Path(path)
    fitting = [name for name in FORMATS if path.name.endswith(f".{name}")]
    if not fitting:
        raise UserError(f"path: expected a name that ends in .{', .'.join(FORMATS)}, got {path}")
    try:
        settings = ExportOptions(source=path, to=max(fitting, key=len), **options)
        check_settings(settings)
    except TypeError as error:
        raise UserError(f"options: {error}; see gscfd export --help") from None
    try:
        write(settings, Gaussians(**{name: value.cpu() for name, value in gaussians.tensors().items()}), path)
    except OSError as error:
        raise UserError(f"path: cannot write {path} ({error.strerror}); choose another") from None
    warn_of_size(gaussians, settings)


def picture(gaussians: Gaussians) -> str:
    """Returns a .png of the splat from three quarters, in base64."""
    frame = turntable_frames(gaussians, 1, PICTURE_SIZE, start=THREE_QUARTERS, shadow=True)[0]
    with tempfile.TemporaryDirectory() as folder:
        write_picture(frame, Path(folder) / "splat.png")
        return base64.b64encode((Path(folder) / "splat.png").read_bytes()).decode()


class Page:
    """A page in a notebook's cell."""

    def __init__(self, text: str):
        self.text = text

    def _repr_html_(self) -> str:
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(self.text)}" width="100%" height="{CELL_HEIGHT}" '
            'style="border: 0"></iframe>'
        )


def show(gaussians: Gaussians) -> Page | None:
    """Returns the splat as a page for a notebook's cell, or opens it in the browser and returns None."""
    path = Path(tempfile.mkdtemp(prefix="gscfd-")) / "splat.html"
    write_html(gaussians, path, WHITE)
    if "ipykernel" in sys.modules:
        page = Page(path.read_text(encoding="utf-8"))
        path.unlink()
        path.parent.rmdir()
        return page
    webbrowser.open(path.as_uri())
    print(path)
    return None
