"""A single .html file that shows the splat in a browser, offline."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from scipy.special import expit

from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians
from gscfd.harmonics import SH_C0

LEVELS = 65535


def write_html(gaussians: Gaussians, path: str | Path, background: Sequence[float]) -> None:
    """Writes page.html with 32 bytes per Gaussian in base64; color does not depend on the view.

    Each Gaussian is sixteen 16-bit numbers: mean, opacity, log scale, padding, quaternion (wxyz), color, padding.
    Means, scales and colors are scaled to their own range, opacity to [0, 1], quaternions to [-1, 1]. background: RGB
    in [0, 1].
    """
    values = {name: value.cpu().double().numpy() for name, value in gaussians.tensors().items()}
    unit = values["quats"] / np.linalg.norm(values["quats"], axis=1, keepdims=True)
    data: dict[str, object] = {"count": len(gaussians)}
    columns = []
    for name, block in (
        ("mean", values["means"]),
        ("scale", values["scales"]),
        ("color", (SH_C0 * values["sh0"][:, 0] + 0.5).clip(0)),
    ):
        low, high = float(block.min()), float(block.max())
        data[name] = [low, high - low]
        columns.append((block - low) / (high - low or 1))
    mean, scale, color = columns
    blank = np.zeros((len(gaussians), 1))
    numbers = [mean, expit(values["opacities"])[:, None], scale, blank, (unit + 1) / 2, color, blank]
    packed = np.round(LEVELS * np.column_stack(numbers)).astype("<u2")
    data["values"] = base64.b64encode(packed.tobytes()).decode()
    shade = ",".join(str(round(255 * c)) for c in background)
    page = (resources.files("gscfd.export") / "page.html").read_text()
    page = page.replace("{splat}", json.dumps(data)).replace("{background}", f"rgb({shade})")
    with atomic_write(path) as file:
        file.write(page.replace("{title}", html.escape(Path(path).stem)).encode())
