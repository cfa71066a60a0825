import torch

from gscfd.pictures import random_background


def test_backgrounds_span_the_greys_with_a_slight_tint() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([random_background(generator) for _ in range(500)])
    assert draws.min() >= 0 and draws.max() <= 1
    assert draws.mean(1).min() < 0.1 and draws.mean(1).max() > 0.9
    spread = draws.amax(1) - draws.amin(1)
    assert 0.01 < spread.mean() and spread.max() <= 0.16


def test_backgrounds_follow_their_generator() -> None:
    first, second, other = (random_background(torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
