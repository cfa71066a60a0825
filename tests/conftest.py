"""Shared test configuration."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "requires_cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
