"""The training of all parts of the toybox teachers: resuming, damaged states, full disks, and what it exports."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gscfd.errors import UserError
from gscfd.teachers.load import load_teacher
from gscfd.toybox import train_teachers
from gscfd.toybox.training import denoiser, scorer
from gscfd.toybox.training.fit import Recipe, TrainingOptions, fit


def options(out: Path, recipe: Recipe, device: str = "cpu") -> TrainingOptions:
    """All parts with one recipe."""
    return TrainingOptions(
        out=out, device=device, vae=recipe, text=recipe, multiview=recipe, singleview=recipe, scorer=recipe
    )


def loss_of(module: nn.Linear, batch: list[Tensor], rng: np.random.Generator) -> Tensor:
    loss: Tensor = module(torch.stack(batch)).square().mean()
    return loss


def example(seed: int) -> Tensor:
    return torch.full((4,), 1.0 + seed % 7)


def trained(
    out: Path,
    *,
    steps: int = 3,
    width: int = 3,
    loss: Callable[[nn.Linear, list[Tensor], np.random.Generator], Tensor] = loss_of,
    make: Callable[[int], Tensor] = example,
) -> nn.Linear:
    torch.manual_seed(0)
    recipe = Recipe(steps=steps, batch=2)
    return fit("text", nn.Linear(4, width), make, loss, None, recipe, options(out, recipe))


def step_of(file: Path) -> int:
    step: int = torch.load(file, weights_only=True)["step"]
    return step


def test_a_training_goes_on_from_its_state(tmp_path: Path) -> None:
    trained(tmp_path, steps=3)
    seen: list[int] = []

    def counted(module: nn.Linear, batch: list[Tensor], rng: np.random.Generator) -> Tensor:
        seen.append(1)
        return loss_of(module, batch, rng)

    first = trained(tmp_path, steps=5, loss=counted)
    assert len(seen) == 2 and step_of(tmp_path / "text/state.pt") == 5
    again = trained(tmp_path, steps=5, loss=counted)
    assert len(seen) == 2 and torch.equal(first.weight, again.weight), "what is trained is loaded"


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (3, 5):
        trained(tmp_path, steps=steps)
    newest, before = (tmp_path / "text" / name for name in ("state.pt", "state.before.pt"))
    assert (step_of(newest), step_of(before)) == (5, 3)
    newest.write_bytes(newest.read_bytes()[:200])
    trained(tmp_path, steps=3)
    assert "state.pt: expected a whole state" in capsys.readouterr().err
    before.write_bytes(b"")
    with pytest.raises(UserError, match="out: expected a whole state .*state.before.pt"):
        trained(tmp_path, steps=3)


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    with pytest.raises(UserError, match="out: expected the state of this network in .*text"):
        trained(tmp_path, steps=5, width=2)


def test_a_full_disk_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, steps=3)

    def full(state: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 64 vs 0")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        network = trained(tmp_path, steps=5)
    assert "could not be saved" in capsys.readouterr().err and network.weight.isfinite().all()
    assert {path.name for path in (tmp_path / "text").iterdir()} == {"state.pt", "loss.csv"}
    assert step_of(tmp_path / "text/state.pt") == 3


def test_a_loss_that_is_not_finite_names_the_step_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"text.lr: expected finite losses, got nan at step 0"):
        trained(tmp_path, loss=lambda module, batch, rng: module.weight.sum() * math.nan)


def test_examples_are_made_outside_autocast_which_only_cuda_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, asked = [False], list[tuple[str, bool]]()

    @contextlib.contextmanager
    def autocast(kind: str, dtype: torch.dtype, enabled: bool) -> Iterator[None]:
        asked.append((kind, enabled))
        inside[0] = True
        yield
        inside[0] = False

    def make(seed: int) -> Tensor:
        assert not inside[0], "bfloat16 would round the example for good"
        return example(seed)

    def loss(module: nn.Linear, batch: list[Tensor], rng: np.random.Generator) -> Tensor:
        assert inside[0]
        return loss_of(module, batch, rng)

    monkeypatch.setattr(torch, "autocast", autocast)
    trained(tmp_path, make=make, loss=loss)
    assert asked == [("cpu", False)] * 3


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="device: expected a CUDA device, got none"):
        train_teachers.main(options(tmp_path, Recipe(steps=1, batch=1), "cuda"))


def test_all_parts_are_trained_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "sample_sheet", lambda *arguments, **more: Image.new("RGB", (1, 1)))
    shown = [scorer.scorer_example(seed) for seed in range(2)]
    monkeypatch.setattr(scorer, "scorer_example", lambda seed: shown[seed % 2])
    train_teachers.main(options(tmp_path, Recipe(steps=1, batch=1, pool=4, reuse=4.0)))
    for name, size in (("multiview", 64), ("singleview", 128)):
        teacher = load_teacher(str(tmp_path / "export" / name), device="cpu")
        assert teacher.image_size == size and teacher.multiview == (name == "multiview")
        assert teacher.encode(torch.rand(1, 3, size, size)).isfinite().all()
    assert (tmp_path / "export/scorer/model.safetensors").exists()
