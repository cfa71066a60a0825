"""gscfd: text to 3D Gaussian splats by Consistent Flow Distillation."""

from __future__ import annotations

import os
import sys

# `python -m gscfd.train` looks for modules in the working folder first, where a file such as random.py would take the
# place of Python's own. gscfd needs nothing from there, unless it is itself found there.
if sys.argv[:1] == ["-m"] and sys.path[:1] == [os.getcwd()] != [os.path.dirname(os.path.dirname(__file__))]:
    del sys.path[0]

from typing import TYPE_CHECKING, Any  # noqa: E402

from gscfd import outlets  # noqa: E402
from gscfd.version import __version__ as __version__  # noqa: E402

if TYPE_CHECKING:
    from gscfd.config import Config
    from gscfd.distil.pipeline import generate
    from gscfd.gaussians import Gaussians, load
    from gscfd.noise.field import NoiseField
    from gscfd.noise.kinds import surface
    from gscfd.types import Cameras, Render

# torch's OpenMP threads (GNU libgomp) wait for each other in a busy loop of 300 000 rounds, longer than a time slice.
# With 1000 rounds, a run on two cores takes 10 % longer if both are idle, and half as long if another program occupies
# one. torch reads the variable when it is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["Cameras", "Config", "Gaussians", "NoiseField", "Render", "generate", "load", "surface"]

_HOMES = {
    "Cameras": "gscfd.types",
    "Render": "gscfd.types",
    "Config": "gscfd.config",
    "Gaussians": "gscfd.gaussians",
    "NoiseField": "gscfd.noise",
    "surface": "gscfd.noise",
    "generate": "gscfd.distil.pipeline",
    "load": "gscfd.gaussians",
}
for _name in ("save", "picture", "show"):
    outlets.register(_name, "gscfd.export.outlets")


def __getattr__(name: str) -> Any:
    """Imports public names on first use, which keeps `import gscfd` fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gscfd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
