"""The published sizes are right, and what is timed on a GPU works on a CPU with tiny networks."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import full_size
from full_size import (
    MVDREAM,
    SD21,
    SDXL,
    Case,
    build_teacher,
    cost_row,
    cost_table,
    measure,
    preset_minutes,
    time_table,
)

from gscfd.stage import TEACHER_PARTS

TINY_VAE = {
    **full_size.VAE,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def tiny(size):
    """The same kind of network with a few channels."""
    levels = len(size.unet["block_out_channels"])
    few = {"block_out_channels": (8,) * levels, "attention_head_dim": [1] * levels, "cross_attention_dim": 16}
    few |= {"sample_size": 8, "norm_num_groups": 4, "layers_per_block": 1}
    if size.told_size:
        few |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16 + 6 * 8}
        few |= {"transformer_layers_per_block": 1}
    return replace(size, unet={**size.unet, **few}, vae=TINY_VAE)


def parameters(network):
    return sum(value.numel() for value in network.parameters())


def test_the_networks_have_the_published_numbers_of_parameters():
    counts = {SD21: 865_910_724, MVDREAM: 867_572_164, SDXL: 2_567_463_684}
    for size, count in counts.items():
        teacher = build_teacher(size, device="meta", dtype=torch.bfloat16)
        assert parameters(teacher.denoiser.unet) == count, size.name
        assert parameters(teacher.space.vae) == 83_653_863
    assert [build_teacher(s, device="meta", dtype=torch.float32).image_size for s in (SD21, MVDREAM)] == [512, 256]


@pytest.mark.parametrize("size, stage", [(MVDREAM, "coarse"), (SD21, "refine"), (SDXL, "refine")])
def test_steps_are_timed_in_the_loop_that_runs_take(size, stage):
    case = Case(tiny(size), "sdxl" if size is SDXL else "mvdream-sd21", stage, 2)
    cpu = torch.device("cpu")
    teacher = build_teacher(case.size, device=cpu, dtype=torch.float32)
    row = measure(case, teacher, device=cpu, steps=2, init={"count": 50}, **{stage: {"densify": {"max_count": 50}}})
    assert row.pixels == 16 and row.memory is None
    assert set(row.parts) == set(full_size.PARTS) and min(row.parts.values()) >= 0
    assert row.ratio("teacher") > row.ratio(*TEACHER_PARTS) > 1, "a step is more than its networks"
    head, _, line = time_table([row]).splitlines()
    assert line.startswith(f"| {size.name} | 2 | 16 |") and line.count("|") == head.count("|")


def test_more_views_cost_more_and_the_presets_add_up():
    one, two = (cost_row(Case(tiny(SD21), "mvdream-sd21", "refine", views)) for views in (1, 2))
    assert two.denoise.flops == 2 * one.denoise.flops and two.encode.traffic > 1.5 * one.encode.traffic
    assert two.weights == one.weights
    assert two.seconds("A100 80 GB") > one.seconds("A100 80 GB") > one.seconds("H200")
    assert len(cost_table([one, two]).splitlines()) == 4 + 3, "no preset has these steps"
    coarse, refine = Case(MVDREAM, "mvdream-sd21", "coarse", 4), Case(SD21, "mvdream-sd21", "refine", 1)
    minutes = preset_minutes("paper", {coarse: 0.06, refine: 0.03})
    assert minutes == pytest.approx((10_000 * 0.06 + 20_000 * 0.03) / 60)
    assert preset_minutes("fast", {coarse: 0.06, refine: 0.03}) is None, "it has two views"
