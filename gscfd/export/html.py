"""A single .html file that shows the splat in a browser, offline."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.special import expit

from gscfd.cameras import orbit
from gscfd.export.transform import smallest_three
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians
from gscfd.harmonics import SH_C0
from gscfd.pictures import as_bytes, linear

LEVELS = 65535
OPACITIES = 16383
AZIMUTH, ELEVATION, FOV = 30.0, 15.0, 40.0
"""Where the page starts, in degrees; START in page.html."""
HALF_WIDTH = 1.05
"""Half the width of what the page shows, in world units at the origin."""
POSTER = 256
"""Pixels of the picture shown while the page loads."""


def write_html(gaussians: Gaussians, path: str | Path, background: Sequence[float], title: str = "") -> None:
    """Writes page.html with 32 bytes per Gaussian in base64; color does not depend on the view.

    Each Gaussian is sixteen 16-bit numbers: the mean as three float32, low half first; opacity in 14 bits below the
    index of the quaternion's largest component; log scale; the other components of the quaternion (wxyz), over
    sqrt(1/2); ln(1 + color). Scales and colors are scaled to their own range, opacity to [0, 1], components to
    [-1, 1]: a stray far away, huge or bright costs the others nothing that can be seen. background: RGB in [0, 1].
    title: of the browser's tab; "": the file's name.
    """
    values = {name: value.cpu().double().numpy() for name, value in gaussians.tensors().items()}
    data: dict[str, object] = {"count": len(gaussians)}
    blocks = {"scale": values["scales"], "color": np.log1p((SH_C0 * values["sh0"][:, 0] + 0.5).clip(0))}
    for name, block in blocks.items():
        low, high = float(block.min()), float(block.max())
        data[name] = [low, high - low]
        blocks[name] = (block - low) / (high - low or 1)
    largest, others = smallest_three(values["quats"])
    numbers = np.empty((len(gaussians), 16), "<u2")
    numbers[:, :6] = values["means"].astype("<f4").view("<u2")
    numbers[:, 6] = (largest << 14) + np.round(OPACITIES * expit(values["opacities"])).astype(int)
    numbers[:, 7:] = np.round(LEVELS * np.column_stack([blocks["scale"], (others + 1) / 2, blocks["color"]]))
    data["values"] = base64.b64encode(numbers.tobytes()).decode()
    shade = ",".join(str(round(255 * c)) for c in background)
    picture = "data:image/webp;base64," + base64.b64encode(poster(gaussians, background)).decode()
    page = (resources.files("gscfd.export") / "page.html").read_text(encoding="utf-8")
    page = page.replace("{splat}", json.dumps(data)).replace("{poster}", picture)
    page = page.replace("{background}", f"rgb({shade})").replace("{ink}", ink(background))
    with atomic_write(path) as file:
        file.write(page.replace("{title}", html.escape(title or Path(path).stem)).encode())


def poster(gaussians: Gaussians, background: Sequence[float]) -> bytes:
    """Returns a .webp picture, POSTER pixels square, of what the page shows first."""
    distance = HALF_WIDTH / math.tan(math.radians(FOV) / 2)
    azimuth, elevation, away, fov = torch.tensor([AZIMUTH, ELEVATION, distance, FOV])[:, None]
    image = gaussians.render(orbit(azimuth, elevation, away, fov, POSTER, POSTER)).over(
        torch.tensor(background, device=gaussians.device)
    )
    file = io.BytesIO()
    Image.fromarray(as_bytes(image)[0]).save(file, format="WEBP", quality=70, method=6)
    return file.getvalue()


def ink(background: Sequence[float]) -> str:
    """Returns black or white, whichever has the greater contrast to the sRGB background by WCAG 2: 4.5 or more."""
    luminance = np.dot((0.2126, 0.7152, 0.0722), linear(np.asarray(background, np.float64)))
    return "#000" if luminance > 0.179 else "#fff"
