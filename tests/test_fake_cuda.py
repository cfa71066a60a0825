"""Steps of all stages, and of the training of a teacher, on fake CUDA tensors: no tensor is on the wrong device or of
another type, and nothing waits for a number in the polish and in the training, which a CUDA graph captures.

torch's fake tensors have a device, a shape and a type, and no memory: a sum of tensors on two devices fails without a
GPU. What has no fake form is replaced: the rasterizer, the backward passes, events, and the watchdog's numbers.

A build of torch for the CPU can neither copy such tensors nor record their gradients. The environment that
scripts/gpu/prepare.py makes can: `build/gpu/venv/bin/python -m pytest tests/test_fake_cuda.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import CLIPTextModel

from gscfd import deferred
from gscfd.config import StageConfig, StageName, load_preset, merged
from gscfd.distil import polish
from gscfd.distil import stage as stages
from gscfd.distil import state as states
from gscfd.distil.densify import NoDensifier
from gscfd.distil.methods import method
from gscfd.distil.stage import StepReport, run_stage
from gscfd.gaussians import Gaussians
from gscfd.prompts import ViewMix, perp_neg_mix, view_words
from gscfd.teachers.base import stage_prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.ldm import SCHEDULER
from gscfd.teachers.load import read_vae
from gscfd.teachers.schedules import diffusion
from gscfd.teachers.texts import read_text_model, read_tokenizer
from gscfd.toybox.training import teacher as training
from gscfd.toybox.training.groups import make_shard
from gscfd.toybox.training.pool import Pool
from gscfd.types import Cameras, Render

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import full_size as sizes

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="needs a CUDA build of torch, but no GPU")

CUDA = torch.device("cuda")
STAGES: list[tuple[str, StageName, sizes.Size]] = [
    *((name, "coarse", sizes.MVDREAM) for name in ("mvdream-sd21", "fast", "paper", "mvdream-only", "sdxl")),
    *((name, "refine", sizes.SD21) for name in ("mvdream-sd21", "fast", "paper", "sd21")),
    ("sdxl", "refine", sizes.SDXL),
]


class Event:
    """An event of a device that is not there."""

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 1.0


def still(network: torch.nn.Module, *where: object) -> torch.nn.Module:
    return network.eval().requires_grad_(False)


def mixes(self: GuidedTeacher, cameras: Cameras) -> list[ViewMix]:
    """Those of one direction: that of a fake camera is not known."""
    if not self.wording.view_words:
        return [ViewMix((("", 1.0),))] * len(cameras)
    if self.prompt is not None and self.prompt.perp_neg:
        return [perp_neg_mix(37.0, 12.0)] * len(cameras)
    return [ViewMix(((view_words(37.0, 12.0), 1.0),))] * len(cameras)


def fake_grad(output: Tensor, inputs: Tensor | Sequence[Tensor], *rest: object) -> tuple[Tensor, ...]:
    inputs = [inputs] if isinstance(inputs, Tensor) else inputs
    return tuple(torch.zeros_like(value) for value in inputs)


def same(a: Tensor, b: Tensor) -> None:
    assert (a.device, a.dtype, a.shape) == (b.device, b.dtype, b.shape)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = diffusion(SCHEDULER)
    monkeypatch.setattr(sizes, "diffusion", lambda settings: schedule)
    for name in ("placed", "placed_vae"):
        monkeypatch.setattr(sizes, name, still)
    for module in (deferred, states):
        monkeypatch.setattr(module, "event", Event)
    monkeypatch.setattr(stages, "find_trouble", lambda *a, **k: None)
    monkeypatch.setattr(states, "make_densifier", lambda *a: NoDensifier())
    monkeypatch.setattr(GuidedTeacher, "view_mixes", mixes)
    monkeypatch.setattr(torch.autograd, "grad", fake_grad)


def fake_teacher(size: sizes.Size) -> GuidedTeacher:
    torch.set_default_dtype(torch.bfloat16)
    try:
        return sizes.build_teacher(sizes.shrunk(size), device=CUDA, dtype=torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)


def fake_splat() -> Gaussians:
    shapes = ((100, 3), (100, 4), (100, 3), (100,), (100, 1, 3), (100, 0, 3))
    return Gaussians(*(torch.zeros(shape, device=CUDA) for shape in shapes))


def rasterize(gaussians: Gaussians, cameras: Cameras, **options: Any) -> Render:
    assert cameras.viewmats.device.type == gaussians.device.type == "cuda"
    x = torch.ones(len(cameras), cameras.height, cameras.width, 4, device=gaussians.device)
    x = x * torch.stack([value.sum() for value in gaussians.params.values()]).sum()
    return Render(x[..., :3], x[..., 3:], x[..., :1].sigmoid(), None, x[..., 3:])


def run_steps(
    name: str, stage: StageName, size: sizes.Size, monkeypatch: pytest.MonkeyPatch, noise_on: torch.device = CUDA
) -> list[StepReport]:
    """Two steps of a stage on fake tensors."""
    config = merged(load_preset(name), {"prompt": "a corgi", stage: {"steps": 2, "normal_prob": 0.0}})
    settings = config.stage(stage)
    assert isinstance(settings, StageConfig)
    reports = list[StepReport]()
    with FakeTensorMode(allow_non_fake_inputs=True):
        teacher = fake_teacher(size)
        teacher.set_prompt(stage_prompt(config.prompt, settings))
        gaussians = fake_splat()

        def backward(tensors: list[Tensor], gradients: list[Tensor]) -> None:
            for tensor, gradient in zip(tensors, gradients, strict=True):
                same(tensor, gradient)
            for value in gaussians.params.values():
                value.grad = torch.zeros_like(value)

        def noise(cameras: Cameras, render: Render, step: int) -> Tensor:
            assert {t.device.type for t in (cameras.viewmats, render.depth, render.opacity)} == {"cuda"}
            return torch.empty(len(cameras), *teacher.latent_shape, device=noise_on)

        monkeypatch.setattr(torch.autograd, "backward", backward)
        run_stage(
            gaussians,
            settings,
            name=stage,
            teacher=teacher,
            rasterize=rasterize,
            noise=noise,
            method=method(config.guidance, settings, teacher.timesteps, None),
            seed=0,
            watchdog=config.watchdog,
            keep_every=1,
            on_step=reports.append,
        )
    return reports


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("name", "stage", "size"), STAGES, ids=[f"{name} {stage}" for name, stage, _ in STAGES])
def test_a_stage_keeps_to_its_device(
    name: str, stage: StageName, size: sizes.Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = run_steps(name, stage, size, monkeypatch)
    assert len(reports) == 2
    for report in reports:
        places = {value.device.type for value in (report.images, report.noise, report.target)}
        assert places == {"cuda"} and report.gaussians.device.type == "cuda"


@pytest.mark.usefixtures("fake")
def test_noise_on_another_device_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="device"):
        run_steps("mvdream-sd21", "refine", sizes.SD21, monkeypatch, noise_on=torch.device("cpu"))


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("size", [sizes.MVDREAM, sizes.SD21])
def test_the_polish_keeps_to_its_device(size: sizes.Size, monkeypatch: pytest.MonkeyPatch) -> None:
    config = merged(load_preset("toybox"), {"prompt": "a corgi", "polish": {"steps": 2, "fits": 2}})
    reports = list[StepReport]()
    monkeypatch.setattr(polish, "find_trouble", lambda *a, **k: None)
    monkeypatch.setattr(polish.Album, "draw", lambda album, generator: album.pages[-1])
    with FakeTensorMode(allow_non_fake_inputs=True):
        teacher, gaussians = fake_teacher(size), fake_splat()
        teacher.set_prompt(stage_prompt(config.prompt, config.polish))

        def backward(loss: Tensor) -> None:
            assert loss.device.type == "cuda"
            for value in gaussians.params.values():
                value.grad = torch.zeros_like(value)

        def noise(cameras: Cameras, render: Render, step: int) -> Tensor:
            return torch.empty(len(cameras), *teacher.latent_shape, device=CUDA)

        monkeypatch.setattr(Tensor, "backward", backward)
        polish.run_polish(
            gaussians,
            config.polish,
            name="polish",
            teacher=teacher,
            rasterize=rasterize,
            noise=noise,
            time=lambda share: 0.3,
            seed=0,
            watchdog=config.watchdog,
            keep_every=1,
            on_step=reports.append,
        )
    for report in reports:
        assert {value.device.type for value in (report.images, report.noise, report.target)} == {"cuda"}
    assert len(reports) == 2


def moved(network: torch.nn.Module) -> None:
    """Gives the network fake values on CUDA."""
    for part in network.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fresh = torch.empty(weight.shape, dtype=weight.dtype, device=CUDA)
                part._parameters[name] = torch.nn.Parameter(fresh)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)


@pytest.mark.parametrize("kind", ["multiview", "singleview"])
def test_a_training_asks_the_host_for_nothing(
    kind: Literal["multiview", "singleview"], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = training.Settings(
        out=tmp_path, space=training.SHIPPED / "vae", data=tmp_path, kind=kind, batch=2, device="cuda", capacity=4
    )
    vae = read_vae(settings.space).float()
    text = read_text_model(CLIPTextModel, settings.words / "text_encoder").float()
    unet, tokenizer = training.build_unet(settings, vae), read_tokenizer(settings.words / "tokenizer")
    groups = make_shard(0, size=training.SIZES[kind], grouped=kind == "multiview", count=1)
    times = training.time_table(training.TIMES[kind])
    monkeypatch.setattr(training, "time_table", lambda shares: times)
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **k: None)  # reads its step size once, when it is made
    for network in (unet, text, vae):
        monkeypatch.setattr(type(network), "to", lambda network, *a, **k: network)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in (unet, text, vae):
            moved(network)
        pool = Pool(4, groups, tokenizer, words=kind == "singleview", device=CUDA)
        made = training.Training(settings, unet, text, vae, pool)
        made.schedule()
        loss = made.denoising_loss()
        assert loss.device.type == "cuda" and loss.dtype == torch.float32
        with pytest.raises(DataDependentOutputException):
            loss.item()  # the control: this would wait
