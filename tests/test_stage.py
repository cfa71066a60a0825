"""What the one loop keeps true of the Gaussians and of its regularisers."""

import math

import pytest
import torch
from tiny import TinyTeacher, stage_config, tiny_stage

from gscfd.config import LearningRates
from gscfd.gaussians import SH_C0, ball
from gscfd.geometry import regularisers
from gscfd.types import Render


def rgb(gaussians):
    return gaussians.sh0.detach() * SH_C0 + 0.5


def test_no_gaussian_is_brighter_than_white_or_darker_than_black(monkeypatch):
    monkeypatch.setattr(TinyTeacher, "target", torch.ones(3, 8, 8))
    config = stage_config(lr=LearningRates(sh0=1.0))
    colors = rgb(tiny_stage(config))
    assert colors.min() >= -1e-6 and colors.max() <= 1 + 1e-6
    assert colors.max() > 1 - 1e-6, "some reach the limit"
    monkeypatch.setattr("gscfd.gaussians.Gaussians.clip_colors", lambda self: None)
    assert rgb(tiny_stage(config)).max() > 1.1, "control: free colours leave the range"


def test_every_step_size_falls_to_its_share():
    seen = []
    tiny_stage(
        stage_config(steps=10, lr=LearningRates(end=0.1)),
        on_step=lambda report: seen.append(
            {name: o.param_groups[0]["lr"] for name, o in report.state.optimizers.items()}
        ),
    )
    for name, first in seen[0].items():
        assert first == getattr(LearningRates(), name)
        assert seen[-1][name] == pytest.approx(first * 0.1**0.9)


@pytest.mark.parametrize("views", [1, 3])
def test_half_opaque_pixels_cost_the_same_in_every_view(views):
    gaussians = ball(10, radius=0.6, opacity=0.3, generator=torch.Generator().manual_seed(0))
    opacity = torch.zeros(views, 4, 4, 1)
    opacity[:, 0] = 0.5
    render = Render(torch.zeros(views, 4, 4, 3), torch.ones(views, 4, 4, 1), opacity, None)
    cost = regularisers(gaussians, render, stage_config(opacity_reg=2.0, scale_reg=0.0))
    assert cost.item() == pytest.approx(2.0 * 4 * 0.25)
    sure = Render(render.rgb, render.depth, opacity.round(), None)
    assert regularisers(gaussians, sure, stage_config(opacity_reg=2.0)).item() == 0
    sizes = regularisers(gaussians, sure, stage_config(scale_reg=3.0)).item()
    assert sizes == pytest.approx(3.0 * gaussians.scales.exp().amax(-1).mean().item()) and math.isfinite(sizes)
