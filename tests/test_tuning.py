"""Compiled networks, and an encoder that keeps nothing for the way back: the same answers."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_teachers as tiny
import torch
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.distil import preflight
from gscfd.errors import UserError
from gscfd.runs import options as runs_options
from gscfd.runs.cost import Cost, cost_of
from gscfd.teachers.base import Prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import load_teacher
from gscfd.teachers.tuning import checkpoint_encoder, compile_networks


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stable Diffusion, and a multi-view teacher of two levels, which is compiled in seconds."""
    few: dict[str, Any] = {"block_out_channels": [8, 8], "attention_head_dim": [1, 1], "layers_per_block": 1}
    few |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}
    few |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
    few |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
    return {
        "multiview": tiny.stable_diffusion(tmp_path_factory.mktemp("multiview"), **few),
        "sd": tiny.stable_diffusion(tmp_path_factory.mktemp("sd")),
    }


def teacher_of(folder: Path) -> GuidedTeacher:
    teacher = load_teacher(str(folder), device="cpu")
    teacher.set_prompt(Prompt(text="a mug", cfg=5.0))
    return teacher


def answers(teacher: GuidedTeacher, t: int = 400, views: int = 2) -> dict[str, Tensor]:
    """What a step asks of the networks: latents, the way back to the pixels, and the noise."""
    generator = torch.Generator().manual_seed(t)
    images = torch.rand(views, 3, 20, 20, generator=generator, requires_grad=True)
    z = teacher.encode(images)
    (gradient,) = torch.autograd.grad(z.square().sum(), images)
    eps = teacher.predict_eps(torch.randn(z.shape, generator=generator), t, turntable(views, size=16))
    return {"z": z.detach(), "gradient": gradient, "eps": eps}


def test_compiled_networks_answer_the_same_and_are_compiled_once_for_all_times(folders: dict[str, Path]) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    teacher = teacher_of(folders["multiview"])
    plain = [answers(teacher, t) for t in (400, 30)]
    torch._dynamo.reset()
    compile_networks(teacher, backend=backend)
    first = answers(teacher, 400)
    count = len(graphs)
    assert count >= 2, "the encoder and the denoiser"
    second = answers(teacher, 30)
    assert len(graphs) == count
    for found, right in zip((first, second), plain, strict=True):
        for name in right:
            assert torch.allclose(found[name], right[name], atol=1e-5, rtol=1e-4), name
    teacher.predict_eps(torch.randn(3, *teacher.latent_shape), 400, turntable(3, size=16))
    assert len(graphs) > count, "the control: another batch is compiled anew"


def test_an_encoder_that_keeps_nothing_gives_the_same_gradient(folders: dict[str, Path]) -> None:
    teacher = teacher_of(folders["sd"])
    plain = answers(teacher)
    checkpoint_encoder(teacher)
    checkpointed = answers(teacher)
    assert all(torch.allclose(checkpointed[name], plain[name], atol=1e-5, rtol=1e-4) for name in plain)


def test_an_encoder_that_keeps_nothing_holds_one_view_and_computes_more(folders: dict[str, Path]) -> None:
    def cost(views: int, checkpointing: bool) -> Cost:
        teacher = load_teacher(str(folders["sd"]), device="meta")
        if checkpointing:
            checkpoint_encoder(teacher)
        images = torch.empty(views, 3, 16, 16, device="meta", requires_grad=True)
        return cost_of(lambda: teacher.encode(images).sum().backward())

    one, four, checkpointed = cost(1, False), cost(4, False), cost(4, True)
    assert checkpointed.peak < 1.5 * one.peak < 0.5 * four.peak
    assert 1.2 * four.flops < checkpointed.flops < 1.6 * four.flops


def test_a_teacher_of_pixels_has_no_encoder(tmp_path: Path) -> None:
    teacher = load_teacher(str(tiny.deepfloyd(tmp_path)), device="cpu")
    checkpoint_encoder(teacher)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(teacher.encode(images), images * 2 - 1)


def test_compiling_is_refused_without_cuda_or_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    config = runs_options.parse(["--prompt", "a mug", "--compile"])
    with pytest.raises(UserError, match="compile: expected a CUDA device"):
        preflight.check_compile(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = replace(config, device="cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="triton"):
        preflight.check_compile(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    preflight.check_compile(config)
