"""Shared test configuration."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def toybox_unless_named() -> Iterator[None]:
    """Teachers in this machine's cache change no test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("gscfd.teachers.load.is_here", lambda name: False)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "requires_cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
