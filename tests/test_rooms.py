"""The rooms of the package: no import points upwards, sideways or in a circle, and no help text waits for torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "diffusers", "transformers", "peft", "scipy", "gsplat", "viser", "ray"}
DOORS = (
    "train",
    "view",
    "image",
    "preview",
    "show_noise",
    "convert",
    "sweep",
    "evaluate",
    "bench",
    "doctor",
    "export",
    "studio",
)


def floors() -> dict[str, int]:
    """Rooms, by their module names without the package, and their floors from 0, the lowest."""
    block = re.search(r"```rooms\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert block is not None, "CONTRIBUTING.md has no block of rooms"
    lines = [re.split(r"  +", line, maxsplit=1)[1].split() for line in reversed(block[1].splitlines())]
    return {room: floor for floor, rooms in enumerate(lines) for room in rooms}


def modules(root: Path) -> dict[str, Path]:
    """Every module of root/gscfd by its name without the package; "__init__" is the package's own."""
    found = {}
    for path in (root / "gscfd").rglob("*.py"):
        parts = list(path.relative_to(root / "gscfd").with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)
        found[name] = path
    return found


def room_of(module: str, rooms: dict[str, int]) -> str | None:
    """The longest room that the module is in."""
    inside = [room for room in rooms if module == room or module.startswith(f"{room}.")]
    return max(inside, key=len, default=None)


def imports(path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and module of every import from the package, lazy ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "gscfd":
            base = (node.module or "").removeprefix("gscfd").removeprefix(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".removeprefix(".")
                yield node.lineno, name if name in known else base or "__init__"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "gscfd":
                    yield node.lineno, alias.name.removeprefix("gscfd").removeprefix(".") or "__init__"


def offences(root: Path, rooms: dict[str, int]) -> list[str]:
    """What breaks the rule, one line each."""
    known, found = modules(root), []
    for module, path in sorted(known.items()):
        room = room_of(module, rooms)
        if room is None:
            found.append(f"{module} is in no room")
            continue
        for line, target in imports(path, set(known)):
            other = room_of(target, rooms)
            if other is None or (other != room and rooms[other] >= rooms[room]):
                found.append(f"{path.relative_to(root)}:{line} imports {target}, which is not below {room}")
    return found


def test_every_import_points_downwards() -> None:
    assert not offences(ROOT, floors()), "\n".join(offences(ROOT, floors()))


def test_every_room_of_the_list_is_there() -> None:
    known = modules(ROOT)
    assert not [room for room in floors() if not any(room_of(module, {room: 0}) for module in known)]


@pytest.mark.parametrize(
    "line",
    ["from gscfd.runs.folder import RunFolder", "import gscfd.runs", "def f():\n    from gscfd import runs"],
)
def test_an_import_upwards_is_named(tmp_path: Path, line: str) -> None:
    """The control: planted in a copy of two rooms, it is found, and the way down is not."""
    for name, text in (
        ("distil/stage.py", line),
        ("runs/folder.py", "from gscfd.distil import stage"),
        ("runs/__init__.py", ""),
    ):
        path = tmp_path / "gscfd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = offences(tmp_path, {"runs": 1, "distil": 0})
    assert len(found) == 1 and "distil/stage.py:" in found[0] and "not below distil" in found[0]


@pytest.mark.parametrize("door", DOORS)
def test_help_imports_nothing_heavy(door: str) -> None:
    program = f"""
import runpy, sys
sys.argv = ["gscfd.{door}", "--help"]
try:
    runpy.run_module("gscfd.{door}", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert stop.code == 0, stop.code
print("heavy:", *sorted(set(sys.modules) & {HEAVY!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:", done.stdout.splitlines()[-1]


def test_the_list_of_words_imports_nothing_heavy() -> None:
    program = f"""
import sys
from gscfd.train import main
assert main(["--list-words"]) == 0
print("heavy:", *sorted(set(sys.modules) & {HEAVY!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "duck" in done.stdout and done.stdout.splitlines()[-1] == "heavy:", done.stdout.splitlines()[-1]
