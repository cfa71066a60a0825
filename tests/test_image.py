"""The command for two dimensions, on the shipped teachers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from gscfd import image
from gscfd.cameras import turntable
from gscfd.config import Config
from gscfd.distil.sampling import clean_flow, for_sampling
from gscfd.teachers.base import Prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import load_teacher
from gscfd.toybox.models import build_scheduler

Make = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def teachers() -> dict[str, GuidedTeacher]:
    return {name: load_teacher(name, device="cpu") for name in ("toybox/multiview", "toybox/singleview")}


@pytest.fixture
def make(teachers: dict[str, GuidedTeacher], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """Runs the command for a mug; returns its exit code and picture."""

    def load(name: str, *, device: str, dtype: torch.dtype) -> GuidedTeacher:
        kept = dtype == torch.float32 and name in teachers
        return teachers[name] if kept else load_teacher(name, device=device, dtype=dtype)

    monkeypatch.setattr("gscfd.teachers.load.load_teacher", load)

    def run(name: str, *arguments: str) -> tuple[int, np.ndarray | None]:
        out = tmp_path / f"{name}.png"
        code = image.main(["--prompt", "a mug", "--steps", "2", "--out", str(out), *arguments])
        return code, iio.imread(out).astype(int) if out.exists() else None

    return run


def test_every_method_makes_its_own_picture_but_fsd_which_is_ddim(make: Make) -> None:
    pictures = {}
    for method in ("cfd", "fsd", "sds", "vsd", "ddim", "edm"):
        code, pictures[method] = make(method, "--method", method, "--dtype", "float32")
        assert code == 0 and pictures[method].shape == (64, 256, 3), "four views side by side"
    assert np.abs(pictures["fsd"] - pictures["ddim"]).max() <= 1
    for method in ("sds", "vsd", "edm"):
        assert np.abs(pictures[method] - pictures["ddim"]).max() > 10


def test_the_seed_decides_the_picture(make: Make) -> None:
    first, again, other = (make(str(i), "--seed", str(seed))[1] for i, seed in enumerate((1, 1, 2)))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_fresh_noise_is_asked_for_by_gamma_and_churn(make: Make) -> None:
    assert not np.array_equal(make("a", "--gamma", "0.3")[1], make("b", "--gamma", "0")[1])
    assert not np.array_equal(make("c", "--method", "edm", "--churn", "1")[1], make("d", "--method", "edm")[1])


def test_the_lora_of_vsd_makes_a_difference(make: Make) -> None:
    steps = ["--method", "vsd", "--steps", "3"]
    slow, fast = make("a", *steps)[1], make("b", *steps, "--vsd.lr", "0.01")[1]
    assert not np.array_equal(slow, fast)
    assert np.array_equal(make("c", *steps)[1], slow)


def test_a_multi_view_teacher_draws_four_sides(make: Make) -> None:
    code, picture = make("mug", "--teacher", "toybox/multiview", "--steps", "1")
    assert code == 0 and picture.shape == (64, 256, 3)


def test_unset_guidance_is_the_teachers_own(make: Make, teachers: dict[str, GuidedTeacher]) -> None:
    own = str(teachers["toybox/multiview"].sampling_cfg)
    assert np.array_equal(make("a")[1], make("b", "--cfg", own)[1])
    assert not np.array_equal(make("a")[1], make("c", "--cfg", "4")[1]), "control"


def test_samples_never_have_more_guidance_than_the_stage(teachers: dict[str, GuidedTeacher]) -> None:
    teacher, stage = teachers["toybox/multiview"], Config().stage("coarse")
    assert for_sampling(replace(stage, cfg=50.0), teacher).cfg == teacher.sampling_cfg < 50
    assert for_sampling(replace(stage, cfg=1.0), teacher).cfg == 1


def test_a_networks_clean_flow_is_diffusers_ddim_in_float32(teachers: dict[str, GuidedTeacher]) -> None:
    teacher, cameras = teachers["toybox/singleview"], turntable(1, size=128)
    teacher.set_prompt(Prompt(text="a mug", cfg=4.0))
    scheduler = DDIMScheduler.from_config(
        {**build_scheduler().config, "prediction_type": "epsilon", "set_alpha_to_one": True}
    )
    scheduler.set_timesteps(5)
    times, shape = scheduler.timesteps.tolist(), (1, *teacher.latent_shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = teacher.alpha_sigma(times[0])[1] * noise

    def fresh(step: int) -> Tensor:
        return torch.randn_like(noise)

    for t in times:
        x = scheduler.step(teacher.predict_eps(x, t, cameras), t, x).prev_sample
    assert (clean_flow(teacher, noise, fresh, times, cameras, gamma=0.0) - x).abs().max() <= 1e-4
    other = clean_flow(teacher, noise.flip(-1), fresh, times, cameras, gamma=0.0)
    assert (other - x).abs().max() > 0.1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--prompt", " "], ["prompt", "a yellow duck"]),
        (["--prompt", "a zebra"], ["prompt", "'zebra'"]),
        (["--negative-prompt", "blury"], ["negative-prompt", "'blury'"]),
        (["--out", "picture.jpg"], ["out", ".png", "picture.jpg"]),
        (["--out", "/nowhere/picture.png"], ["out", "/nowhere"]),
        (["--steps", "0"], ["steps", "at least 1"]),
        (["--steps", "2000"], ["steps", "at most 960"]),
        (["--gamma", "0.1", "--method", "ddim"], ["gamma", "--method cfd", "--method ddim"]),
        (["--churn", "1"], ["churn", "--method edm", "--method cfd"]),
        (["--gamma", "1"], ["gamma", "[0, 1)"]),
        (["--vsd.rank", "8"], ["vsd", "--method vsd", "--method cfd"]),
        (["--teacher", "/nowhere"], ["teacher", "/nowhere"]),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(
    arguments: list[str], words: list[str], make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    code, picture = make("bad", *arguments)
    error = capsys.readouterr().err
    assert code == 2 and picture is None
    assert error.count("\n") == 1 and all(word in error for word in words), error


def test_a_picture_is_kept_unless_asked(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    first = make("mug", "--steps", "1")[1]
    code, kept = make("mug", "--steps", "1", "--seed", "5")
    assert code == 2 and "--overwrite" in capsys.readouterr().err and np.array_equal(kept, first)
    code, replaced = make("mug", "--steps", "1", "--seed", "5", "--overwrite")
    assert code == 0 and not np.array_equal(replaced, first)


@pytest.mark.parametrize(
    "option, value, known",
    [
        ("--method", "dpm", ["cfd", "fsd", "sds", "vsd", "ddim", "edm"]),
        ("--dtype", "int8", ["auto", "float32", "bfloat16", "float16"]),
    ],
)
def test_an_unknown_choice_lists_the_known_ones(
    option: str, value: str, known: list[str], make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        make("mug", option, value)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert all(name in error for name in known)


def test_the_precision_is_float32_on_a_cpu_without_bfloat16_unless_asked(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    unset, full, half = make("a")[1], make("b", "--dtype", "float32")[1], make("c", "--dtype", "bfloat16")[1]
    assert np.array_equal(unset, full)
    assert not np.array_equal(half, full) and np.abs(half - full).mean() < 8
