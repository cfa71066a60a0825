"""The examples and notebooks: short, on the public interface, and they run."""

import ast
import base64
import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from gscfd.gaussians import ball

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
PUBLIC = ("gscfd", "gscfd.cameras", "gscfd.config", "gscfd.export", "gscfd.teachers")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
Run = Callable[..., Path]
"""Runs an example by its name, with arguments; returns the folder it wrote to."""
FEW = ["--steps", "2"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an example as its command does, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> Path:
        example = next(path for path in EXAMPLES if path.stem == name)
        monkeypatch.setattr(sys, "argv", [str(example), *arguments])
        runpy.run_path(str(example), run_name="__main__")
        return tmp_path

    return run


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        width, height = image.size
        return width, height


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_imports_public_names_alone(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom | ast.Import)]
    modules = {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    ours = {name for name in modules if name.split(".")[0] == "gscfd"}
    assert ours and {name for name in ours if not name.startswith("gscfd.export.")} <= set(PUBLIC)


def test_every_example_has_a_test() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES} <= tested


def test_make_a_splat(run: Run) -> None:
    folder = run("make_a_splat", *FEW) / "outputs" / "duck"
    assert (folder / "splat.ply").stat().st_size > 0
    assert size_of(folder / "views.png") == (1024, 256)


def test_watch_steps(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("watch_steps", *FEW, "--every", "1") / "outputs" / "steps"
    pictures = ["coarse-0000.png", "coarse-0001.png", "polish-0000.png"]
    assert sorted(path.name for path in folder.iterdir()) == pictures
    assert "polish 0/1:" in capsys.readouterr().out


def test_consistent_noise(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("consistent_noise", "--angles", "0", "10", "--latent", "16", "--size", "64")
    lines = capsys.readouterr().out.splitlines()
    near, far = (float(line.split("correlation ")[1].split(",")[0]) for line in lines)
    assert near == 1 and 0.2 < far < 1
    assert all(abs(float(line.split()[-1])) < 0.1 for line in lines), "another seed is independent"


def test_export_everything(run: Run) -> None:
    folder = run("export_everything", *FEW) / "outputs" / "exports"
    kinds = {path.name.removeprefix("splat.") for path in folder.iterdir()}
    assert kinds == {"ply", "compressed.ply", "splat", "spz", "sog", "glb", "html"}


def test_export_everything_takes_a_splat(run: Run) -> None:
    ball(50, radius=0.5, opacity=0.5, generator=torch.Generator().manual_seed(0)).save_ply("given.ply")
    run("export_everything", "--ply", "given.ply", "--out", "exports")
    assert Path("exports/splat.ply").read_bytes() == Path("given.ply").read_bytes()


def test_compare_seeds(run: Run) -> None:
    assert size_of(run("compare_seeds", *FEW, "--seeds", "0", "1") / "outputs" / "seeds.png") == (512, 512)


# The notebooks.


def source(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_imports_public_names_alone(path: Path) -> None:
    assert path.stat().st_size < 200_000 and "iframe" not in path.read_text()
    imports = [node for node in ast.walk(ast.parse(source(path))) if isinstance(node, ast.ImportFrom)]
    ours = {node.module for node in imports if (node.module or "").split(".")[0] == "gscfd"}
    assert ours and ours <= set(PUBLIC)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_and_shows_pictures(path: Path, tmp_path: Path) -> None:
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason="needs pip install 'gscfd[test]'")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1000, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert pictures and all(len(Image.open(io.BytesIO(png)).getcolors(1 << 20) or []) > 50 for png in pictures)
    if path.stem == "first_splat":
        assert any("iframe" in output.get("data", {}).get("text/html", "") for output in outputs)
        assert (tmp_path / "duck.ply").exists() and (tmp_path / "duck.html").exists()


def test_a_notebook_that_fails_is_noticed(tmp_path: Path) -> None:
    """The control."""
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason="needs pip install 'gscfd[test]'")
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError):
        NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
