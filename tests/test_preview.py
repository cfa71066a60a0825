"""A teacher's own samples: samplers against teachers whose answers are known, and the command on every kind."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import imageio.v3 as iio
import pytest
import tiny_teachers as tiny
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tiny import PixelTeacher, TinyTeacher
from torch import Tensor

from gscfd import image, preview
from gscfd.cameras import turntable
from gscfd.distil import sampling
from gscfd.distil.sampling import ddim
from gscfd.teachers.schedules import Diffusion, Flow, Schedule
from gscfd.types import Cameras


def make(folder: Path, *arguments: str | int | Path, prompt: str = "a yellow duck") -> int:
    options = ["--prompt", prompt, "--steps", "2", "--device", "cpu"]
    return preview.main([*options, "--out", str(folder / "x.png"), *map(str, arguments)])


class Blob(PixelTeacher):
    """Data drawn from N(0, spread^2): the best answer is known, and the flow takes the noise x to spread * x."""

    spread = 0.4
    image_size, latent_shape = 8, (4, 8, 8)

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.timesteps = schedule, schedule.timesteps

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return self.schedule.alpha_sigma(t)

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return sigma * x_t / ((alpha * self.spread) ** 2 + sigma**2)


CAMERAS = turntable(2, size=8)
BETAS = torch.linspace(0.0001, 0.02, 1000)
CASES = {
    "diffusion": (sampling.trailing_times, Blob(Diffusion((1 - BETAS).cumprod(0), "epsilon"))),
    "flow": (sampling.shifted_times, Blob(Flow(1000))),
}


def start() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CASES)
def test_samples_follow_the_flow_to_the_data(name: str) -> None:
    times, teacher = CASES[name]
    x = start()
    pictures = [ddim(teacher, x, times(steps, 1000), CAMERAS) for steps in (1, 20, 200)]
    errors = [(picture / x - teacher.spread).abs().max().item() for picture in pictures]
    assert errors[2] < 0.01
    assert errors[0] > 0.3 and errors[0] > errors[1] > errors[2], "the control: one step gives the mean of the data"


def diffusers_sample(name: str, steps: int) -> Tensor:
    """By diffusers' own scheduler."""
    times, teacher = CASES[name]
    if name == "diffusion":
        scheduler = DDIMScheduler(trained_betas=BETAS.tolist(), clip_sample=False, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == times(steps, 1000)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[t / 1000 for t in times(steps, 1000)])
    x = start()
    for t, now in zip(times(steps, 1000), scheduler.timesteps, strict=True):
        eps = teacher.predict_eps(x, t, CAMERAS)
        alpha, _ = teacher.alpha_sigma(t)
        x = scheduler.step(eps if name == "diffusion" else (eps - x) / alpha, now, x).prev_sample
    return x


@pytest.mark.parametrize("name", CASES)
def test_samples_are_those_of_diffusers(name: str) -> None:
    """At step counts that divide the 1000 times: at others, diffusers' DDIM steps miss their next time by rounding."""
    times, teacher = CASES[name]
    for steps in (8, 50):
        expected = diffusers_sample(name, steps)
        assert (ddim(teacher, start(), times(steps, 1000), CAMERAS) - expected).abs().max() < 1e-5
        assert (ddim(teacher, start(), times(steps + 1, 1000), CAMERAS) - expected).abs().max() > 1e-4, "the control"


def test_a_teacher_of_one_picture_gives_that_picture() -> None:
    teacher = TinyTeacher()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    picture = ddim(teacher, x, sampling.trailing_times(20, teacher.timesteps), CAMERAS)
    assert torch.allclose(picture, teacher.target.expand(2, -1, -1, -1), atol=1e-4)


def test_the_toybox_draws_four_views_and_the_seed_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path) == 0
    first = (tmp_path / "x.png").read_bytes()
    assert iio.imread(first).shape == (64, 256, 3) and "4 views by toybox/multiview" in capsys.readouterr().out
    assert make(tmp_path, "--overwrite") == 0 and (tmp_path / "x.png").read_bytes() == first
    assert make(tmp_path, "--overwrite", "--seed", 1) == 0 and (tmp_path / "x.png").read_bytes() != first
    assert make(tmp_path, "--overwrite", "--stage", "refine") == 0
    assert iio.imread(tmp_path / "x.png").shape == (128, 512, 3)


KINDS = [tiny.mvdream, tiny.stable_diffusion, tiny.sdxl, tiny.sd3, tiny.flux, tiny.deepfloyd]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_teacher_is_sampled(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    folder, mine = tmp_path / "teacher", tmp_path / "mine.yaml"
    folder.mkdir()
    # One letter is one token here: only a short negative prompt fits the 77 of DeepFloyd IF.
    mine.write_text("base: mvdream-sd21\nrefine:\n  negative_prompt: ugly\n")
    stage = "coarse" if kind is tiny.mvdream else "refine"
    assert make(tmp_path, "--preset", mine, "--stage", stage, "--teacher", kind(folder), prompt="a corgi") == 0
    sheet = iio.imread(tmp_path / "x.png")
    assert sheet.shape[1] == 4 * sheet.shape[0] and sheet.std() > 1


def test_without_a_place_the_picture_stands_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert preview.main(["--prompt", "a red mug", "--steps", "1", "--device", "cpu"]) == 0
    assert (tmp_path / "outputs" / "a-red-mug-0-coarse.png").is_file()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--out", "/nowhere/x.png"], "out: expected a file in an existing folder"),
        (["--out", "x.jpg"], "out: expected the name of a .png"),
        (["--steps", "0"], "steps: expected 1 to 1000"),
        (["--teacher", "/nowhere"], "teacher: expected a folder"),
        (["--preset", "papr"], "preset: expected"),
        (["--prompt", "a zebra"], "prompt: the toybox teachers do not know 'zebra'"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
    assert not (tmp_path / "x.png").exists()


def test_too_large_a_teacher_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("gscfd.teachers.load.load_teacher", full)
    assert make(tmp_path) == 1 and "--device cpu" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_picture_is_not_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.png").write_bytes(b"mine")
    assert make(tmp_path) == 2 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "x.png").read_bytes() == b"mine"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pictures_that_are_not_finite_are_an_error_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    """Clipping would make them black, or white."""
    folder = tiny.stable_diffusion(tmp_path / "sd")
    for part in ("vae", "unet"):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        whole = load_file(path)
        key = "decoder.conv_out.bias" if part == "vae" else "conv_out.bias"
        save_file({**whole, key: torch.full_like(whole[key], value)}, path)
        arguments = ["--prompt", "a mug", "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "y.png")]
        assert make(tmp_path, "--preset", "sd21", "--stage", "refine", "--teacher", folder) == 2
        assert image.main([*arguments, "--teacher", str(folder), "--method", "ddim"]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 2 and all("of finite numbers, got" in error for error in errors)
        save_file(whole, path)
    assert not list(tmp_path.glob("*.png"))
    assert make(tmp_path, "--preset", "sd21", "--stage", "refine", "--teacher", folder) == 0, "control"


def test_a_schedule_that_ends_in_zero_snr_is_sampled(tmp_path: Path) -> None:
    shown = {}
    for zero in (False, True):
        folder = tiny.stable_diffusion(tmp_path / f"sd{zero}", prediction="v_prediction")
        config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        DDIMScheduler(**config, prediction_type="v_prediction", rescale_betas_zero_snr=zero).save_pretrained(
            folder / "scheduler"
        )
        assert make(tmp_path, "--preset", "sd21", "--stage", "refine", "--teacher", folder, "--overwrite") == 0
        shown[zero] = iio.imread(tmp_path / "x.png").astype(float)
    assert shown[True].std() > 5 and abs(shown[True].std() / shown[False].std() - 1) < 0.3
    DDIMScheduler(**config, prediction_type="epsilon", rescale_betas_zero_snr=True).save_pretrained(
        folder / "scheduler"
    )
    assert make(tmp_path, "--preset", "sd21", "--stage", "refine", "--teacher", folder, "--overwrite") == 2
