"""The cost of networks, against what can be worked out by hand."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gscfd.runs.cost import cost_of, product_rate

KB = 1024


def meta(*shape: int, **options: Any) -> Tensor:
    return torch.empty(*shape, device="meta", **options)


def test_products_and_attention_are_counted() -> None:
    assert cost_of(lambda: meta(8, 16) @ meta(16, 32)).flops == 2 * 8 * 16 * 32
    query, key = meta(2, 4, 10, 16), meta(2, 4, 30, 16)
    attended = cost_of(lambda: F.scaled_dot_product_attention(query, key, key))
    assert attended.flops == 2 * (2 * 2 * 4 * 10 * 30 * 16)
    assert attended.peak == query.nbytes, "the matrix of attention is never held"


def test_only_what_is_held_at_once_counts() -> None:
    def chain(x: Tensor) -> Tensor:
        for _ in range(10):
            x = x.exp()
        return x

    assert cost_of(lambda: chain(meta(256))).peak <= 3 * KB
    trained = cost_of(lambda: chain(meta(256, requires_grad=True)).sum().backward())
    assert trained.peak >= 10 * KB, "the control: what backward needs is held"


def test_views_and_changes_in_place_are_free() -> None:
    x = meta(256)
    assert cost_of(lambda: x.view(16, 16).T.unsqueeze(0)).peak == 0
    assert cost_of(lambda: x.mul_(2)).peak == 0
    assert cost_of(lambda: x.mul(2)).peak == KB, "the control"


def test_what_operations_read_and_write_is_added_up() -> None:
    x = meta(256)
    assert cost_of(lambda: x + x).traffic == 3 * KB
    assert cost_of(lambda: x.exp().exp()).traffic == 4 * KB
    assert cost_of(lambda: x.view(16, 16).T).traffic == 0, "a view touches nothing"


def test_a_rate_is_measured() -> None:
    assert product_rate(torch.device("cpu"), torch.float32) > 1e8
