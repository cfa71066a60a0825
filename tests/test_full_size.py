"""The published sizes are right, and what is timed on a GPU works on a CPU with tiny networks."""

import sys
from pathlib import Path

import torch
from present import as_a
from torch import nn

from gscfd.distil.lora import unet_of
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.spaces import Latents

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from full_size import (
    MVDREAM,
    SD21,
    SDXL,
    Case,
    TimeRow,
    build_teacher,
    cost_row,
    cost_table,
    measure_all,
    preset_table,
    shrunk,
    time_table,
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


def test_steps_are_timed_in_the_loop_that_runs_take() -> None:
    cases = [Case(shrunk(MVDREAM), "mvdream-sd21", "coarse", 2), Case(shrunk(SD21), "mvdream-sd21", "refine", 2)]
    cases.append(Case(shrunk(SDXL), "sdxl", "refine", 1))
    tuned: list[GuidedTeacher] = []
    rows = measure_all(cases, device=torch.device("cpu"), dtype=torch.float32, steps=2, tune=tuned.append, most=50)
    assert [row.case for row in rows] == cases and len(tuned) == 3
    head, _, *lines = time_table(rows).splitlines()
    for row, line in zip(rows, lines, strict=True):
        assert row.pixels == 16 and row.memory is None
        assert set(row.parts) == set(PARTS) and min(row.parts.values()) >= 0
        assert row.ratio("teacher") > row.ratio(*TEACHER_PARTS) > 1, "a step is more than its networks"
        assert line.startswith(f"| {row.case.size.name} | {row.case.views} | 16 |")
        assert line.count("|") == head.count("|")


def test_the_presets_that_were_timed_are_added_up() -> None:
    coarse, refine = Case(MVDREAM, "mvdream-sd21", "coarse", 4), Case(SD21, "mvdream-sd21", "refine", 1)
    rows = [TimeRow(coarse, 256, {}, 60.0, None), TimeRow(refine, 512, {}, 30.0, None)]
    fast, preset, paper = preset_table({"plain": rows, "none": []}).splitlines()[2:]
    assert paper == "| `paper` | 20.0 | - |" and fast == "| `fast` | - | - |" and "- | -" in preset


def test_more_views_cost_more() -> None:
    one, two = (cost_row(Case(shrunk(SD21), "mvdream-sd21", "refine", views)) for views in (1, 2))
    assert two.denoise.flops == 2 * one.denoise.flops and two.encode.traffic > 1.5 * one.encode.traffic
    assert two.weights == one.weights
    assert two.seconds("A100 80 GB") > one.seconds("A100 80 GB") > one.seconds("H200")
    assert len(cost_table([one, two]).splitlines()) == 4 + 3, "no preset has these steps"
