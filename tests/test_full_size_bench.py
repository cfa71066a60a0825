"""The bench of the presets at full size, with tiny sizes: it makes its page, goes on where it stopped, and refuses bad
input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from gscfd import bench
from gscfd.config import load_preset, presets
from gscfd.distil.pipeline import distil as distil_of
from gscfd.distil.stage import StepReport
from gscfd.gaussians import Gaussians
from gscfd.lab import full_size
from gscfd.lab.degraded import degraded
from gscfd.lab.full_size import MODELS
from gscfd.lab.textured import TEXTURED, VARIANTS, textured_asset
from gscfd.lab.trials import compared, images_of, seen
from gscfd.runs.folder import peak_memory

TINY = """
base: toybox
init: {count: 60}
checkpoint: {every: 1}
coarse: {steps: 4, densify: {start: 1.0, stop: 1.0}}
polish: {steps: 1, fits: 1}
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A preset of five steps and small views; returns the arguments of the command."""
    for name, pixels in (("SIZE", 32), ("TRACED", 16), ("SHOWN", 16)):
        monkeypatch.setattr(full_size, name, pixels)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return ["full-size", "--presets", str(tmp_path / "tiny.yaml"), "--assets", "cage", "--spacing", "0.15"]


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Ctrl-C in the given step; returns the steps that are taken."""
    taken: list[int] = []

    def distil(config: Any, teachers: Any, on_step: Callable[[StepReport], None], *rest: Any, **more: Any) -> Gaussians:
        def counted(report: StepReport) -> None:
            on_step(report)
            taken.append(report.step)
            if len(taken) == after:
                raise KeyboardInterrupt

        return distil_of(config, teachers, counted, *rest, **more)

    monkeypatch.setattr(full_size, "distil", distil)
    return taken


def splats(out: Path) -> list[bytes]:
    return [path.read_bytes() for path in (out / "runs").glob("*.ply")]


def test_a_stopped_run_goes_on_and_gives_the_same_splat_and_page(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_size, "SAVE_SECONDS", 0.0)
    whole = stopping(monkeypatch, 99)
    assert bench.main([*small, "--out", str(tmp_path / "whole")]) == 0
    assert whole == [0, 1, 2, 3, 0]
    cut = stopping(monkeypatch, 2)
    assert bench.main([*small, "--out", str(tmp_path / "cut")]) == 130 and cut == [0, 1]
    rest = stopping(monkeypatch, 99)
    assert bench.main([*small, "--out", str(tmp_path / "cut")]) == 0 and rest == [2, 3, 0]
    assert splats(tmp_path / "cut") == splats(tmp_path / "whole") != []
    again = stopping(monkeypatch, 99)
    assert bench.main([*small, "--out", str(tmp_path / "cut")]) == 0 and again == []
    assert bench.main([*small, "--seed", "1", "--out", str(tmp_path / "cut")]) == 0 and again != [], "control"
    content = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert [table["title"] for table in content["tables"]] == ["Runs", "Seconds of each part"]
    row = dict(zip(content["tables"][0]["columns"], content["tables"][0]["rows"][0], strict=True))
    assert row["asset"] == "cage" and row["steps"] == "5" and float(row["PSNR, dB ↑"]) > 0
    assert "https:" not in (tmp_path / "whole" / "report.html").read_text()
    for out in ("whole", "cut"):
        made = [json.loads(path.read_text()) for path in (tmp_path / out / "runs").glob("*.json")]
        assert {one["result"]["calls"] for one in made} == {4 + 2}, "the polish asks twice"


def test_a_run_of_another_start_does_not_go_on_from_a_stopped_one(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_size, "SAVE_SECONDS", 0.0)
    stopping(monkeypatch, 2)
    assert bench.main([*small, "--out", str(tmp_path)]) == 130
    taken = stopping(monkeypatch, 99)
    assert bench.main([*small, "--out", str(tmp_path), "--degrade"]) == 0 and taken == [0, 1, 2, 3, 0]


def test_runs_of_other_options_stand_beside_each_other(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[list[str]] = [[], ["--degrade"], ["--seed", "1"]]
    for given in others:
        assert bench.main([*small, "--out", str(tmp_path), *given]) == 0
    again = stopping(monkeypatch, 99)
    for given in others:
        assert bench.main([*small, "--out", str(tmp_path), *given]) == 0
    assert again == [] and len(set(splats(tmp_path))) == 3


def test_splats_of_one_name_in_two_folders_are_two_assets(small: list[str], tmp_path: Path) -> None:
    files = [tmp_path / folder / "splat.ply" for folder in ("one", "two")]
    for file, name in zip(files, ("cage", "gate"), strict=True):
        file.parent.mkdir()
        textured_asset(name, spacing=0.15).gaussians.save_ply(file)
    assert bench.main([*small, "--out", str(tmp_path / "out"), "--assets", *map(str, files)]) == 0
    table = json.loads((tmp_path / "out" / "report.json").read_text())["tables"][0]
    assert [row[1] for row in table["rows"]] == list(map(str, files)) and len(splats(tmp_path / "out")) == 2
    assert bench.main([*small, "--out", str(tmp_path / "out"), "--assets", str(files[0])]) == 0
    table = json.loads((tmp_path / "out" / "report.json").read_text())["tables"][0]
    assert [row[1] for row in table["rows"]] == ["splat.ply"], "control: one alone is told by its name"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be reset here")
def test_the_memory_of_a_run_is_not_that_of_an_earlier_one(small: list[str], tmp_path: Path) -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak cannot be reset here")
    taken = bytearray(b"1") * 2**29
    del taken
    before = peak_memory(torch.device("cpu"))
    assert bench.main([*small, "--out", str(tmp_path / "out")]) == 0
    (made,) = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").glob("*.json")]
    assert made["result"]["memory"] * 1e9 < before - 2**28


def autoencoder(folder: Path, *, channels: int = 16, levels: int = 3) -> Path:
    """A random one with patches of 2^(levels - 1) pixels."""
    AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
    ).save_pretrained(folder)
    return folder


def test_the_teacher_sees_latents_of_a_given_vae(small: list[str], tmp_path: Path) -> None:
    folder = autoencoder(tmp_path / "vae")
    for given in ([], ["--vae", str(folder)]):
        assert bench.main([*small, "--out", str(tmp_path / "out"), *given]) == 0
    first, second = splats(tmp_path / "out")
    assert first != second, "the fixed encoder is the control"
    assert str(folder) in (tmp_path / "out" / "report.json").read_text()


@pytest.mark.parametrize("changes", [{"channels": 4}, {"levels": 4}])
def test_a_vae_of_another_size_is_refused(
    changes: dict[str, int],
    small: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = autoencoder(tmp_path / "vae", **changes)
    assert bench.main([*small, "--out", str(tmp_path / "out"), "--vae", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "vae: expected 16 channels and patches of 4 pixels" in error and error.count("\n") == 1


def test_timing_gives_hours_for_every_stage(small: list[str], tmp_path: Path) -> None:
    assert bench.main([*small, "--out", str(tmp_path / "out"), "--timing"]) == 0
    (table,) = json.loads((tmp_path / "out" / "report.json").read_text())["tables"]
    assert [row[1] for row in table["rows"]] == ["coarse", "polish"] and not splats(tmp_path / "out")


def test_every_preset_has_its_models() -> None:
    for name in presets():
        for stage in load_preset(name).stages().values():
            model = MODELS[stage.teacher]
            assert model.size % model.cells == 0


@pytest.mark.parametrize("name", sorted(TEXTURED))
def test_an_asset_fills_the_ball_and_has_detail_that_degrading_takes(name: str) -> None:
    asset = textured_asset(name, spacing=0.05)
    reach = (asset.gaussians.means.norm(dim=1) + asset.gaussians.scales.exp().amax(1)).max()
    assert 0.8 < reach < 1.1
    images = images_of(seen(asset.gaussians, size=48))
    assert images.flatten(2).std(2).mean() > 0.05
    worse = degraded(asset.gaussians)
    assert len(worse) == round(len(asset.gaussians) / 4)
    found = compared(worse, [asset], size=48)
    assert found["psnr"] < 25
    assert compared(asset.gaussians, [asset], size=48)["psnr"] > 60, "control"
    assert torch.equal(worse.means, degraded(asset.gaussians).means)


@pytest.mark.parametrize("name", sorted(TEXTURED))
def test_variants_differ_in_detail_only(name: str) -> None:
    first, *others = (textured_asset(name, spacing=0.04, variant=k) for k in range(VARIANTS))
    images = images_of(seen(first.gaussians, size=64))
    coarse = torch.nn.functional.avg_pool2d(images, 16)
    for other in others:
        assert torch.equal(other.gaussians.means, first.gaussians.means)
        views = images_of(seen(other.gaussians, size=64))
        fine, mean = (views - images).abs().mean(), (torch.nn.functional.avg_pool2d(views, 16) - coarse).abs().mean()
        assert fine > 0.003 and mean < 0.6 * fine


def test_a_teacher_that_knows_variants_is_measured_against_the_nearest(small: list[str], tmp_path: Path) -> None:
    assert bench.main([*small, "--out", str(tmp_path / "out"), "--known", "2"]) == 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    variants = [textured_asset("cage", spacing=0.15, variant=k) for k in range(2)]
    (splat,) = (tmp_path / "out" / "runs").glob("*.ply")
    made = Gaussians.load_ply(splat)
    nearest = max(compared(made, [one], size=32)["psnr"] for one in variants)
    row = dict(zip(content["tables"][0]["columns"], content["tables"][0]["rows"][0], strict=True))
    assert float(row["PSNR, dB ↑"]) == pytest.approx(nearest, abs=0.01)


@pytest.mark.parametrize(
    "wrong, words",
    [
        (["--known", "5"], "known: expected 1 to 4"),
        (["--known", "2", "--assets", "a yellow duck"], "known: expected 1 to 1"),
        (["--presets", "gone"], "preset: expected"),
        (["--assets", "a yellow submarine"], "assets: expected the caption"),
        (["--assets"], "assets: expected at least one"),
        (["--assets", "gone.glb"], "init: expected a mesh"),
        (["--spacing", "0"], "spacing: expected a positive"),
        (["--seed", "-1"], "seed: expected a value"),
        (["--vae", "gone"], "vae: expected a folder of a VAE"),
    ],
)
def test_bad_input_is_one_line(
    wrong: list[str], words: str, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([*small, "--out", str(tmp_path / "out"), *wrong]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_teacher_without_a_model_is_named(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY.replace("steps: 4,", "steps: 4, teacher: some/one,"))
    assert bench.main([*small, "--out", str(tmp_path / "out")]) == 2
    assert "teachers among" in capsys.readouterr().err
