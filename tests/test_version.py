"""One version: in gscfd/version.py, in the package, in installed metadata and in the changelog."""

import re
from importlib import metadata
from pathlib import Path

import pytest

import gscfd
from gscfd.version import __version__

ROOT = Path(__file__).parents[1]


def test_the_version_is_three_numbers() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_package_has_the_version() -> None:
    assert gscfd.__version__ == __version__


def test_installed_metadata_has_the_version() -> None:
    try:
        installed = metadata.version("gscfd")
    except metadata.PackageNotFoundError:
        pytest.skip("gscfd is not installed")
    assert installed == __version__, "install again: pip install -e ."


def test_the_newest_dated_section_of_the_changelog_has_the_version() -> None:
    dated = re.search(r"^## (\d+\.\d+\.\d+) - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert dated is not None, "CHANGELOG.md: expected a heading such as '## 0.2.0 - 2026-11-28'"
    assert dated[1] == __version__


def test_type_checkers_find_the_annotations() -> None:
    # An editable install gives the package two folders, in no order: its own and the one that holds `configs/`.
    assert any((Path(folder) / "py.typed").is_file() for folder in gscfd.__path__)
