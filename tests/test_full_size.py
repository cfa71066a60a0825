"""The published sizes are right, and what is timed on a GPU works on a CPU with tiny networks."""

import sys
from pathlib import Path

import pytest
import torch
from present import as_a
from torch import nn

from gscfd.config import StageName
from gscfd.distil.lora import unet_of
from gscfd.teachers.spaces import Latents

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from full_size import (
    MVDREAM,
    SD21,
    SDXL,
    Case,
    Size,
    build_teacher,
    cost_row,
    cost_table,
    measure,
    preset_minutes,
    shrunk,
)

from gscfd.distil.stage import PARTS, TEACHER_PARTS


def parameters(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def test_the_networks_have_the_published_numbers_of_parameters() -> None:
    counts = {SD21: 865_910_724, MVDREAM: 867_572_164, SDXL: 2_567_463_684}
    for size, count in counts.items():
        teacher = build_teacher(size, device="meta", dtype=torch.bfloat16)
        assert parameters(unet_of(teacher, "teacher").unet) == count, size.name
        assert parameters(as_a(Latents, teacher.space).vae) == 83_653_863
    assert [build_teacher(s, device="meta", dtype=torch.float32).image_size for s in (SD21, MVDREAM)] == [512, 256]


@pytest.mark.parametrize(
    ("size", "preset", "stage", "views"),
    [(MVDREAM, "mvdream-sd21", "coarse", 2), (SD21, "mvdream-sd21", "refine", 2), (SDXL, "sdxl", "refine", 1)],
)
def test_steps_are_timed_in_the_loop_that_runs_take(size: Size, preset: str, stage: StageName, views: int) -> None:
    case, device = Case(shrunk(size), preset, stage, views), torch.device("cpu")
    teacher = build_teacher(case.size, device=device, dtype=torch.float32)
    row = measure(case, teacher, device=device, steps=2, init={"count": 50})
    assert row.case == case and row.memory is None and teacher.image_size == 16
    assert set(row.parts) == set(PARTS) and min(row.parts.values()) >= 0
    assert row.ratio("teacher") > row.ratio(*TEACHER_PARTS) > 1, "a step is more than its networks"


def test_the_stages_of_a_preset_are_added_up() -> None:
    coarse, refine = Case(MVDREAM, "mvdream-sd21", "coarse", 4), Case(SD21, "mvdream-sd21", "refine", 1)
    assert preset_minutes("paper", {coarse: 0.06, refine: 0.03}) == pytest.approx(20.0)
    assert preset_minutes("fast", {coarse: 0.06, refine: 0.03}) is None, "its views were not timed"
    assert preset_minutes("paper", {coarse: 0.06}) is None


def test_more_views_cost_more() -> None:
    one, two = (cost_row(Case(shrunk(SD21), "mvdream-sd21", "refine", views)) for views in (1, 2))
    assert two.denoise.flops == 2 * one.denoise.flops and two.encode.traffic > 1.5 * one.encode.traffic
    assert two.weights == one.weights
    assert two.seconds("A100 80 GB") > one.seconds("A100 80 GB") > one.seconds("H200")
    assert len(cost_table([one, two]).splitlines()) == 4 + 3, "no preset has these steps"
