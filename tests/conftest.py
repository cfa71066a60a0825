"""Shared test configuration."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def toybox_unless_named() -> Iterator[None]:
    """Teachers in this machine's cache change no test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("gscfd.teachers.kinds.is_here", lambda name: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def small_turntables() -> Iterator[None]:
    """Runs in this process end in small pictures; test_end_to_end looks at those of users."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("gscfd.runs.folder.TURN_SIZE", 64)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "requires_cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
