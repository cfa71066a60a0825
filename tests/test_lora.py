"""The LoRA of --guidance vsd, on tiny networks of every kind and on the shipped teachers."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tiny_teachers as tiny
import torch
from torch import Tensor

from gscfd import image, train
from gscfd.cameras import turntable
from gscfd.config import StageConfig, VsdConfig
from gscfd.distil import loading, lora
from gscfd.distil.guidance import vsd
from gscfd.distil.lora import Lora
from gscfd.distil.state import StageState
from gscfd.errors import UserError
from gscfd.runs import options as runs_options
from gscfd.runs import plan
from gscfd.teachers.base import Prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import load_teacher
from gscfd.teachers.schedules import Diffusion, Flow
from gscfd.teachers.tuning import compile_networks
from gscfd.types import Cameras

KINDS = {"sd": tiny.stable_diffusion, "mvdream": tiny.mvdream, "sdxl": tiny.sdxl, "deepfloyd": tiny.deepfloyd}
TRANSFORMERS = {"sd3": tiny.sd3, "flux": tiny.flux}
MUG = Prompt(text="a mug", negative="blue", cfg=5.0)
RUN = ["--preset", "toybox", "--prompt", "a mug", "--guidance", "vsd", "--no-viewer", "--init.count", "100"]
RUN += ["--coarse.steps", "4", "--refine.steps", "2", "--refine.views", "1", "--checkpoint.every", "2"]
RUN += ["--polish.steps", "0"]
RUN += ["--coarse.vsd.lr", "0.01", "--refine.vsd.lr", "0.01", "--dtype", "float32"]
REFINED_ALONE = [*RUN, "--coarse.steps", "0", "--refine.t-schedule", "uniform"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in (KINDS | TRANSFORMERS).items()}


@pytest.fixture(scope="module")
def shipped() -> dict[str, GuidedTeacher]:
    return {name: load_teacher(name, device="cpu") for name in ("toybox/multiview", "toybox/singleview")}


@pytest.fixture
def teacher(
    request: pytest.FixtureRequest, folders: dict[str, Path], shipped: dict[str, GuidedTeacher]
) -> GuidedTeacher:
    name = request.param
    found = shipped[name] if name in shipped else load_teacher(str(folders[name]), device="cpu")
    found.set_prompt(MUG)
    return found


every_unet = pytest.mark.parametrize("teacher", [*KINDS, "toybox/multiview", "toybox/singleview"], indirect=True)
blind = pytest.mark.parametrize("teacher", ["sd", "sdxl", "deepfloyd", "toybox/singleview"], indirect=True)


def views_of(teacher: GuidedTeacher, seed: int = 0, count: int = 2) -> tuple[Tensor, Tensor, Cameras]:
    """What a step has: latents of some views, noise, and their cameras."""
    generator = torch.Generator().manual_seed(seed)
    z, noise = (torch.randn(count, *teacher.latent_shape, generator=generator) for _ in range(2))
    return z, noise, turntable(count, size=teacher.image_size)


def trained(teacher: GuidedTeacher, steps: int = 3, **config: Any) -> Lora:
    learner = Lora(teacher, VsdConfig(**{"lr": 0.01, **config}), seed=1)
    z, _, cameras = views_of(teacher)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        learner.learn(z, cameras, generator)
    return learner


@every_unet
def test_a_lora_begins_as_the_teacher_without_guidance_and_vsd_as_what_guidance_adds(teacher: GuidedTeacher) -> None:
    z, noise, cameras = views_of(teacher)
    untrained = Lora(teacher, VsdConfig(), seed=1)
    alone = teacher.predict_eps(noise, 500, cameras, cfg=1)
    assert torch.equal(untrained.predict_eps(noise, 500, cameras), alone)
    assert not torch.equal(trained(teacher).predict_eps(noise, 500, cameras), alone)
    alpha, sigma = teacher.alpha_sigma(500)
    x_t = alpha * z + sigma * noise
    added = teacher.predict_eps(x_t, 500, cameras) - teacher.predict_eps(x_t, 500, cameras, cfg=1)
    assert torch.equal(vsd(teacher, z, noise, 500, cameras, learner=untrained), sigma / alpha * added)


def test_a_lora_learns_a_render_and_one_that_does_not_step_does_not(shipped: dict[str, GuidedTeacher]) -> None:
    teacher = shipped["toybox/multiview"]
    teacher.set_prompt(MUG)
    z, noise, cameras = views_of(teacher)
    first, last, still = (
        sum(learner.loss(z, noise, t, cameras).item() for t in (100, 400, 700))
        for learner in (trained(teacher, 0), trained(teacher, 20), trained(teacher, 20, lr=1e-12))
    )
    assert last < 0.95 * first and still > 0.999 * first


@every_unet
def test_training_leaves_the_teacher_bit_for_bit_as_it_was(teacher: GuidedTeacher) -> None:
    unet, (_, x, cameras) = lora.unet_of(teacher, "teacher").unet, views_of(teacher)
    before, answer = {k: v.clone() for k, v in unet.state_dict().items()}, teacher.predict_eps(x, 300, cameras)
    learner = trained(teacher)
    after = unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(teacher.predict_eps(x, 300, cameras), answer)
    assert not any(value.requires_grad or value.grad is not None for value in unet.parameters())
    assert learner.params and not any(value is own for value in learner.params.values() for own in unet.parameters())


@every_unet
def test_a_lora_takes_no_second_copy_of_the_teachers_weights(teacher: GuidedTeacher) -> None:
    own = {id(value) for value in lora.unet_of(teacher, "teacher").unet.parameters()}
    network = trained(teacher, 0).denoiser.unet
    assert own < {id(value) for value in network.parameters()}


@blind
def test_a_lora_learns_the_camera_that_its_teacher_does_not_read(
    teacher: GuidedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, x, front = views_of(teacher, count=1)
    other = turntable(3, size=teacher.image_size)[1:2]
    monkeypatch.setattr(teacher, "wording", replace(teacher.wording, view_words=False))
    teacher.set_prompt(MUG)
    untrained, learner = trained(teacher, 0), trained(teacher)
    assert torch.equal(untrained.predict_eps(x, 500, front), untrained.predict_eps(x, 500, other))
    assert not torch.equal(learner.predict_eps(x, 500, front), learner.predict_eps(x, 500, other))


@pytest.mark.parametrize("teacher", ["sd"], indirect=True)
def test_the_seed_makes_the_lora_and_the_global_generator_stays(teacher: GuidedTeacher) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, again, other = (Lora(teacher, VsdConfig(), seed=seed).tensors() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("teacher", ["sd"], indirect=True)
def test_the_text_of_the_lora_follows_the_prompt(teacher: GuidedTeacher) -> None:
    _, x, cameras = views_of(teacher)
    learner = trained(teacher, 0)
    before = learner.predict_eps(x, 500, cameras)
    teacher.set_prompt(replace(MUG, text="a red car"))
    assert not torch.equal(learner.predict_eps(x, 500, cameras), before)


@pytest.mark.parametrize("kind", ["sd", "mvdream"])
def test_under_a_teacher_in_half_precision_a_lora_is_trained_in_float32(kind: str, folders: dict[str, Path]) -> None:
    teacher = load_teacher(str(folders[kind]), device="cpu", dtype=torch.bfloat16)
    teacher.set_prompt(MUG)
    _, x, cameras = views_of(teacher)
    untrained, learner = trained(teacher, 0), trained(teacher)
    assert {value.dtype for value in learner.params.values()} == {torch.float32}
    assert torch.equal(untrained.predict_eps(x, 500, cameras), teacher.predict_eps(x, 500, cameras, cfg=1))
    moved = learner.predict_eps(x, 500, cameras)
    assert moved.dtype == torch.float32 and not torch.equal(moved, untrained.predict_eps(x, 500, cameras))


def test_the_lora_of_a_compiled_teacher_is_trained_as_it_is(folders: dict[str, Path]) -> None:
    teacher = load_teacher(str(folders["mvdream"]), device="cpu")
    teacher.set_prompt(MUG)
    _, x, cameras = views_of(teacher)
    expected = trained(teacher).predict_eps(x, 500, cameras)

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> NoReturn:
        raise AssertionError("the LoRA asked the compiled network")

    compile_networks(teacher, backend=backend)
    assert torch.equal(trained(teacher).predict_eps(x, 500, cameras), expected)


@pytest.mark.parametrize("schedule", ["epsilon", "v_prediction", "flow"])
def test_the_target_of_training_stands_for_the_noise_that_was_added(schedule: str) -> None:
    made = Flow(1000) if schedule == "flow" else Diffusion(torch.linspace(0.999, 0.01, 1000), schedule)
    z, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (50, 500, 950):
        alpha, sigma = made.alpha_sigma(t)
        assert torch.allclose(made.to_eps(alpha * z + sigma * noise, made.target(z, noise, t), t), noise, atol=1e-10)
        assert not torch.allclose(made.to_eps(alpha * z + sigma * noise, made.target(z, -noise, t), t), noise, atol=0.1)


# -------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(autouse=True)
def loaded(shipped: dict[str, GuidedTeacher], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **placed: Any) -> GuidedTeacher:
        return shipped[name] if name in shipped else load_teacher(name, **placed)

    monkeypatch.setattr(loading, "load_teacher", load)
    monkeypatch.setattr("gscfd.teachers.load.load_teacher", load)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("runs") / "mug"
    assert train.main([*RUN, "--out", str(out)]) == 0
    return (out / "splat.ply").read_bytes()


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A run that was stopped after this many steps."""
    steps = []

    def advance(self: StageState, original: Callable[[StageState], None] = StageState.advance) -> None:
        steps.append(0)
        if len(steps) == request.param:
            signal.raise_signal(signal.SIGINT)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(StageState, "advance", advance)
        assert train.main([*RUN, "--out", str(tmp_path / "mug")]) == 130
    return tmp_path / "mug"


@pytest.mark.parametrize("stopped", [1, 2, 5], indirect=True)
def test_a_stopped_run_of_vsd_resumes_to_the_same_file(stopped: Path, finished: bytes) -> None:
    assert list((stopped / "checkpoints").glob("*.safetensors"))
    assert train.main(["--resume", str(stopped)]) == 0
    assert (stopped / "splat.ply").read_bytes() == finished


@pytest.mark.parametrize("stopped", [2], indirect=True)
@pytest.mark.parametrize("lost", ["values", "moments"])
def test_a_run_that_loses_its_lora_or_its_moments_ends_in_another_file(
    stopped: Path, finished: bytes, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""

    def load(
        self: Lora, tensors: dict[str, Tensor], original: Callable[[Lora, dict[str, Tensor]], None] = Lora.load
    ) -> None:
        first = self.tensors()
        values = {name: value for name, value in tensors.items() if name.endswith("/value")}
        original(self, values if lost == "moments" else tensors | first)

    monkeypatch.setattr(Lora, "load", load)
    assert train.main(["--resume", str(stopped)]) == 0
    assert (stopped / "splat.ply").read_bytes() != finished


def test_a_lora_that_is_not_finite_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def learn(
        self: Lora,
        *arguments: Any,
        original: Callable[..., None] = Lora.learn,
        poison: list[bool] = [True],  # noqa: B006
    ) -> None:
        original(self, *arguments)
        if poison and poison.pop():
            next(iter(self.params.values())).data.fill_(torch.nan)

    monkeypatch.setattr(Lora, "learn", learn)
    assert train.main([*RUN, "--out", str(tmp_path / "mug")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "mug" / "stats.jsonl").read_text().splitlines()]
    assert [row["trouble"] for row in rows if "trouble" in row] == ["lora is not finite at step 0"]


@pytest.mark.parametrize("kind, extra", [("sd3", []), ("flux", []), ("flux", ["--dry-run"])])
def test_a_transformer_is_refused_before_anything_is_made(
    kind: str, extra: list[str], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*REFINED_ALONE, "--refine.teacher", str(folders[kind]), "--out", str(tmp_path / "x"), *extra]
    assert train.main(options) == 2 and not (tmp_path / "x").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "refine.teacher: expected a teacher with a UNet" in error


def test_other_methods_take_a_transformer(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The control of the test above."""
    options = [*REFINED_ALONE, "--refine.teacher", str(folders["flux"]), "--guidance", "sds", "--dry-run"]
    assert train.main(options) == 0


def test_a_picture_of_a_transformer_is_refused(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompt", "a mug", "--teacher", str(folders["sd3"]), "--out", str(tmp_path / "x.png")]
    assert image.main([*options, "--method", "vsd"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "teacher: expected a teacher with a UNet" in error
    with pytest.raises(UserError, match="UNet"):
        lora.unet_of(load_teacher(str(folders["flux"]), device="cpu"), "teacher")


def test_the_plan_counts_the_lora(folders: dict[str, Path]) -> None:
    settings = runs_options.parse(["--preset", "sd21"]).stage("refine")
    assert isinstance(settings, StageConfig)
    _, teacher = found = plan.meta_teacher(str(folders["sd"]), torch.float32)
    plain = plan.teacher_plan(found, settings, "a mug", "vsd")
    cost, count = plan.learner_costs(Lora(teacher, settings.vsd, seed=0), teacher, settings)
    # One question of the four that Perp-Neg asks, the same again, and its way back, without the frozen weights' part.
    assert 2.3 < 4 * cost.flops / plain.denoise.flops < 3.3
    assert plain.learn.flops == plain.trained == 0 and cost.peak > 0
    real = load_teacher(str(folders["sd"]), device="cpu")
    assert count == sum(value.nbytes for value in Lora(real, settings.vsd, seed=0).params.values())
