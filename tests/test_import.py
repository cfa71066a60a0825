"""Imports: `import gscfd` is quick, and before torch it says how torch's threads wait; the viewer and the check of
options do without the libraries of networks."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
import gscfd
print("torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("set_before", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_do_not_spin_for_long_unless_the_user_says_so(
    set_before: dict[str, str], expected: str
) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | set_before, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", expected]


LIBRARIES = ("diffusers", "transformers", "peft")
"""They take seconds to load."""


def loaded_by(line: str) -> list[str]:
    program = f"import sys\n{line}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [name for name in LIBRARIES if name in done.stdout.split()]


@pytest.mark.parametrize(
    "line",
    [
        "from gscfd.runs.options import parse; parse(['--prompt', 'a duck', '--device', 'cpu'])",
        "import gscfd.distil.preflight as p, gscfd.config as c; p.preflight(c.Config(prompt='a duck', device='cpu'))",
        "import gscfd.studio.page",
        "import gscfd.viewer.saved, gscfd.viewer.live, gscfd.distil.noises",
        "import gscfd.export.write, gscfd.export.turntable",
        "import gscfd.sweeps.plan, gscfd.sweeps.make, gscfd.sweeps.table",
    ],
)
def test_what_runs_no_network_loads_no_library_of_networks(line: str) -> None:
    assert loaded_by(line) == []


def test_a_teacher_needs_the_libraries_of_networks() -> None:
    """The control."""
    assert loaded_by("import gscfd.teachers.load") == [*LIBRARIES]
