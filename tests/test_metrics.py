import math

import pytest
import torch

from gscfd import evaluate
from gscfd.errors import UserError
from gscfd.metrics import Scorer, diversity, r_precision, scaled_gradient_variance
from gscfd.toybox.data import make_group
from gscfd.toybox.models import CLIP_SIZE


def test_r_precision_counts_the_views_that_find_their_caption():
    similarity = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6], [0.5, 0.1]])
    assert r_precision(similarity, 0) == 0.75 and r_precision(similarity, 1) == 0.25


def test_diversity_is_zero_for_equal_objects_and_one_for_unrelated_ones():
    side = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert diversity(side.expand(3, 6, 5)) == pytest.approx(0, abs=1e-6)
    apart = torch.eye(8).reshape(4, 2, 8)
    assert diversity(apart) == pytest.approx(1)
    # Sides are compared with the same side only, and pairs count once.
    mixed = torch.stack([apart[0], apart[0], apart[1]])
    assert diversity(mixed) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at least 2"):
        diversity(apart[:1])


@pytest.mark.parametrize("noise, expected", [(0.0, 0.0), (1.0, 0.5**0.5), (1e6, 1.0)])
def test_the_gradient_variance_is_the_share_that_does_not_repeat(noise, expected):
    """Gradients 1 + noise n: sqrt(noise^2 / (1 + noise^2)), but for what ten steps do not average out."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(20_000))
    optimizer = torch.optim.Adam([parameter], lr=1e-3, betas=(0.9, 0.99))
    assert math.isnan(scaled_gradient_variance(optimizer))
    for _ in range(100):
        parameter.grad = 1 + noise * torch.randn(20_000, generator=generator)
        optimizer.step()
    seen = expected * (1 - 0.1 / 1.9) ** 0.5
    assert scaled_gradient_variance(optimizer) == pytest.approx(seen, abs=0.01)


@pytest.fixture(scope="module")
def scorer():
    from gscfd.evaluate import SCORER

    return Scorer(SCORER)


def test_the_scorer_finds_the_captions_of_unseen_objects_and_not_shuffled_ones(scorer):
    groups = [make_group(seed, views=4, size=CLIP_SIZE, grouped=True) for seed in range(40)]
    captions = [group.captions[0] for group in groups]
    hits = [
        r_precision(scorer.similarity(group.images, captions), captions.index(caption))
        for group, caption in zip(groups, captions, strict=True)
    ]
    assert sum(hits) / len(hits) > 0.8
    shuffled = [r_precision(scorer.similarity(g.images, captions), (i + 7) % 40) for i, g in enumerate(groups)]
    assert sum(shuffled) / len(shuffled) < 0.1


def test_an_unfinished_run_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("prompt: a mug\n")
    with pytest.raises(UserError, match=r"no splat.ply"):
        evaluate.read_run(tmp_path)


def test_the_table_has_a_row_for_each_run_and_the_mean():
    scores = [
        evaluate.Score(run=f"r{i}", prompt="a mug", guidance="cfd", r_precision=p, similarity=0.5, gaussians=10)
        for i, p in enumerate((1.0, 0.5))
    ]
    lines = evaluate.table(scores).splitlines()
    assert len(lines) == 5 and "75.0%" in lines[-1]


def test_one_prompt_alone_has_no_r_precision():
    score = evaluate.Score(run="r", prompt="a mug", guidance="cfd", r_precision=None, similarity=0.5, gaussians=10)
    assert evaluate.table([score]).count("n/a") == 2
