"""Training of the toybox teachers: rendered groups, the linear space, the pool, states, and what a teacher measures."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors import SafetensorError
from viewing import until

from gscfd.cameras import turntable
from gscfd.errors import UserError
from gscfd.lab import teachers as measure
from gscfd.lab.ideal import border_color, posterior_mean
from gscfd.lab.options import MeasureOptions
from gscfd.teachers.base import Prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import load_teacher
from gscfd.teachers.texts import read_tokenizer
from gscfd.toybox.data import render_object
from gscfd.toybox.objects import sample_object
from gscfd.toybox.training import groups as shards
from gscfd.toybox.training import space, teacher
from gscfd.toybox.training.groups import (
    Groups,
    composite,
    make_files,
    make_shard,
    read_shard,
    render_layers,
    shard_files,
    write_shard,
)
from gscfd.toybox.training.pool import CAPTIONS, Pool

SEED = 800_000_000


@pytest.fixture(scope="module")
def groups() -> Groups:
    return make_shard(SEED, size=64, grouped=True, count=3)


@pytest.fixture(scope="module")
def images(groups: Groups) -> torch.Tensor:
    torch.manual_seed(0)
    return space.crops(groups.layers.flatten(0, 1), 12, 64)


@pytest.fixture(scope="module")
def vae(images: torch.Tensor) -> AutoencoderTiny:
    torch.manual_seed(0)
    network = space.build_space().requires_grad_(False)
    space.set_encoder(network, images)
    return network


@pytest.fixture
def settings(groups: Groups, vae: AutoencoderTiny, tmp_path: Path) -> teacher.Settings:
    for name in ("data", "out"):
        (tmp_path / name).mkdir()
    write_shard(groups, tmp_path / "data" / f"{SEED}.safetensors")
    vae.save_pretrained(tmp_path / "space")
    return teacher.Settings(
        out=tmp_path / "out",
        space=tmp_path / "space",
        data=tmp_path / "data",
        channels=(16, 32, 32),
        batch=1,
        capacity=4,
        device="cpu",
    )


def prepared(settings: teacher.Settings) -> teacher.Training:
    training = teacher.prepare(settings)
    teacher.read_new(training.pool, settings.data, set())
    return training


def steps(training: teacher.Training, count: int) -> None:
    for _ in range(count):
        torch.manual_seed(training.steps)
        training.schedule()
        training.step()
        training.steps += 1


# Groups


def test_a_shard_survives_its_file(groups: Groups, tmp_path: Path) -> None:
    write_shard(groups, tmp_path / "5.safetensors")
    back = read_shard(tmp_path / "5.safetensors")
    assert torch.equal(back.layers, groups.layers) and torch.equal(back.cameras, groups.cameras)
    assert back.captions == groups.captions and back.view_words == groups.view_words
    assert [path.name for path in tmp_path.iterdir()] == ["5.safetensors"]


def test_files_come_in_the_order_of_their_seeds(groups: Groups, tmp_path: Path) -> None:
    for seed in (1000, 500, 20):
        write_shard(groups, tmp_path / f"{seed}.safetensors")
    assert [file.stem for file in shard_files(tmp_path)] == ["20", "500", "1000"]


def test_a_damaged_shard_is_named(groups: Groups, tmp_path: Path) -> None:
    file = tmp_path / "0.safetensors"
    write_shard(groups, file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="0.safetensors.*delete it"):
        read_shard(file)


def test_equal_seeds_make_equal_groups(groups: Groups) -> None:
    again = make_shard(SEED + 1, size=64, grouped=True, count=1)
    assert torch.equal(again.layers[0], groups.layers[1]) and again.captions[0] == groups.captions[1]


def test_layers_over_a_background_are_the_render() -> None:
    thing, cameras, background = sample_object(3), turntable(2, size=48), torch.tensor([0.2, 0.5, 0.9])
    shown = composite(render_layers(thing, cameras), background)
    assert (shown - render_object(thing, cameras, background)).abs().max() < 1.01 / 255


# Space


def test_the_encoder_projects_patches(vae: AutoencoderTiny, images: torch.Tensor) -> None:
    mean, directions, deviations = space.principal_patches(images)
    patches = F.pixel_unshuffle(images, 4).permute(0, 2, 3, 1).double() - mean
    gains = deviations.rsqrt()
    expected = patches @ directions.T * gains
    got = vae.encode(images).latents.permute(0, 2, 3, 1).double()
    ratio = (got * expected).sum() / expected.square().sum()
    assert (got - ratio * expected).abs().max() < 1e-4
    assert vae.config["scaling_factor"] * got.square().mean().sqrt() == pytest.approx(space.LATENT_RMS, rel=1e-3)


def test_the_encoder_is_affine(vae: AutoencoderTiny) -> None:
    one, other = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    between = vae.encode(0.3 * one + 0.7 * other).latents
    assert torch.allclose(between, 0.3 * vae.encode(one).latents + 0.7 * vae.encode(other).latents, atol=1e-5)


def test_the_decoder_learns(vae: AutoencoderTiny, images: torch.Tensor, groups: Groups, tmp_path: Path) -> None:
    before = space.reconstruction_loss(vae, images).item()
    settings = space.Settings(out=tmp_path / "space", data=(), minutes=0.03, batch=4)
    network = AutoencoderTiny.from_config(vae.config)
    network.load_state_dict(vae.state_dict())
    space.train_decoder(network, [groups.layers.flatten(0, 1)], images, settings)
    assert space.reconstruction_loss(network, images).item() < before
    assert torch.equal(network.encoder.layers[2].weight, vae.encoder.layers[2].weight)
    back = AutoencoderTiny.from_pretrained(tmp_path / "space")
    assert torch.equal(back.decoder.layers[0].weight, network.decoder.layers[0].weight)


# Pool


def pool_of(groups: Groups, capacity: int, words: bool = False) -> Pool:
    tokenizer = read_tokenizer(teacher.SHIPPED / "tokenizer")
    return Pool(capacity, groups, tokenizer, words=words, device=torch.device("cpu"))


def test_the_pool_replaces_its_oldest_groups(groups: Groups) -> None:
    pool = pool_of(groups, 4)
    pool.add(groups)
    assert pool.filled == 3
    pool.add(groups)
    assert pool.filled == 4
    assert torch.equal(pool.layers[0], groups.layers[1]) and torch.equal(pool.layers[3], groups.layers[0])


def test_a_file_of_more_groups_than_the_pool_holds_leaves_its_last_ones(groups: Groups) -> None:
    pool = pool_of(groups, 2)
    pool.add(groups)
    assert pool.filled == 2 and pool.added == 2
    for place, group in enumerate((1, 2)):
        assert torch.equal(pool.layers[place], groups.layers[group])
        assert torch.equal(pool.cameras[place], groups.cameras[group])


@pytest.mark.parametrize("words", [False, True])
def test_a_draw_tells_its_own_captions(groups: Groups, words: bool) -> None:
    torch.manual_seed(0)
    one = groups[:1]
    pool = pool_of(one, 1, words)
    pool.add(one)
    allowed = [
        {"", *one.captions[0], *(f"{caption}, {view}" for caption in one.captions[0] if words)}
        for view in one.view_words[0]
    ]
    for _ in range(20):
        batch = pool.draw(3)
        texts = pool.tokenizer.batch_decode(batch.tokens, skip_special_tokens=True)
        for place, text in enumerate(texts):
            ids = pool.tokenized(sorted(allowed[place % 4]))
            assert (ids == batch.tokens[place]).all(1).any(), text
        if not words:
            assert all(len({*texts[i : i + 4]}) == 1 for i in (0, 4, 8)), "the views of a group share their caption"
    assert batch.images.shape == (12, 3, 64, 64) and torch.equal(batch.cameras[:4], one.cameras[0])


def test_most_captions_are_specific_and_some_are_empty(groups: Groups) -> None:
    torch.manual_seed(0)
    pool = pool_of(groups, 3)
    tokens = torch.arange(2 * CAPTIONS).to(torch.int16)[None, None, :, None].expand(20_000, 1, -1, 24)
    chosen = pool.choose(tokens)[:, 0]
    empty = (chosen == pool.empty).all(1)
    assert empty.float().mean().item() == pytest.approx(0.1, abs=0.01)
    first = chosen[~empty][:, 0] % CAPTIONS == 0
    assert first.float().mean().item() == pytest.approx(0.75 + 0.25 / CAPTIONS, abs=0.01)


# Training


def saved(settings: teacher.Settings, count: int = 1) -> teacher.Training:
    """A training of this many steps, whose state was saved after each."""
    training = prepared(settings)
    for _ in range(count):
        steps(training, 1)
        teacher.save_state(training, settings.out)
    return training


def test_times_follow_their_table() -> None:
    table = teacher.time_table(((0.0, 0.0), (0.25, 500.0), (1.0, 1000.0))).float()
    assert (table < 500).float().mean().item() == pytest.approx(0.25, abs=0.001)
    assert (table < 750).float().mean().item() == pytest.approx(0.625, abs=0.001)
    assert table.min() == 0 and table.max() == 999


def test_training_goes_on_where_it_was(settings: teacher.Settings) -> None:
    whole = prepared(settings)
    steps(whole, 3)
    halves = prepared(settings)
    steps(halves, 2)
    teacher.save_state(halves, settings.out)
    resumed = prepared(replace(settings, seed=1))
    assert teacher.restore(resumed, settings.out)
    steps(resumed, 1)
    for one, other in ((whole.unet, resumed.unet), (whole.average, resumed.average)):
        for expected, got in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(expected, got)


def test_a_restored_optimizer_heeds_the_schedule(settings: teacher.Settings) -> None:
    training = saved(settings)
    teacher.restore(training, settings.out)
    training.seconds = 60 * settings.minutes
    before = [parameter.clone() for parameter in training.trained]
    steps(training, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, training.trained, strict=True)), "the learning rate is 0"


def test_a_damaged_state_gives_way_to_the_one_before(
    settings: teacher.Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(settings, 2)
    file = settings.out / "state.pt"
    file.write_bytes(file.read_bytes()[:5000])
    fresh = prepared(settings)
    assert teacher.restore(fresh, settings.out) and fresh.steps == 1
    assert "state.pt: expected a whole state" in capsys.readouterr().err


def test_broken_weights_replace_no_state(settings: teacher.Settings, capsys: pytest.CaptureFixture[str]) -> None:
    training = saved(settings)
    training.trained[0].data.fill_(math.nan)
    steps(training, 1)
    teacher.save_state(training, settings.out)
    assert "expected finite weights at step 2" in capsys.readouterr().err
    assert teacher.restore(training, settings.out) and training.steps == 1
    assert all(weight.isfinite().all() for weight in (*training.trained, *training.kept))


def test_damaged_states_alone_are_refused_and_kept(
    settings: teacher.Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(settings, 2)
    for name in ("state.pt", "state.before.pt"):
        (settings.out / name).write_bytes(b"half")
    with pytest.raises(UserError, match=r"damaged files \(state.pt, state.before.pt\)"):
        teacher.restore(prepared(settings), settings.out)
    assert sorted(path.name for path in settings.out.iterdir()) == ["state.before.pt", "state.pt"]
    for path in settings.out.iterdir():
        path.unlink()
    assert not teacher.restore(prepared(settings), settings.out), "the control: without a state, training begins"


def test_another_space_is_refused(settings: teacher.Settings, tmp_path: Path) -> None:
    saved(settings)
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=(0, 0, 0),
        latent_channels=4,
    ).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="space: expected that of the state"):
        teacher.restore(prepared(replace(settings, space=tmp_path / "other")), settings.out)


def test_another_recipe_is_refused(settings: teacher.Settings) -> None:
    saved(settings)
    with pytest.raises(UserError, match="out: expected a state of the recipe"):
        teacher.restore(prepared(replace(settings, channels=(32, 32, 32))), settings.out)


def test_a_full_disk_keeps_the_last_state(
    settings: teacher.Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = saved(settings)

    def full(state: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    training.steps = 7
    teacher.save_state(training, settings.out)
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in settings.out.iterdir()] == ["state.pt"]
    assert teacher.restore(training, settings.out) and training.steps == 1


def timed(settings: teacher.Settings, monkeypatch: pytest.MonkeyPatch, reading: float, step: float) -> teacher.Training:
    """Trains with a clock that only reading and steps move, each by so many seconds."""
    now = [0.0]
    training = prepared(settings)

    def read(*arguments: object) -> None:
        now[0] += reading if training.steps == 0 else 0.0

    def take() -> None:
        now[0] += step
        training.losses.add(torch.ones(1), torch.zeros(1, dtype=torch.int64))

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(teacher, "read_new", read)
    monkeypatch.setattr(training, "step", take)
    teacher.train(training, settings)
    return training


def test_the_minutes_hold_for_slow_steps_and_with_the_reading_of_the_data(
    settings: teacher.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = timed(replace(settings, minutes=1.0), monkeypatch, reading=0.0, step=7.0)
    assert training.steps == 9, "63 s: the first step that ends after the minute is the last"
    training = timed(replace(settings, minutes=1.0, out=settings.data), monkeypatch, reading=30.0, step=7.0)
    assert training.steps == 5


def test_time_spent_on_lost_steps_is_spent(settings: teacher.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(settings, minutes=4.0, save_minutes=100.0)
    training, now, count = prepared(settings), [0.0], [0]
    steps(training, 1)
    teacher.save_state(training, settings.out)

    def take() -> None:
        now[0] += 1.0
        count[0] += 1
        bad = training.steps >= 60  # a look before that is good, so that these are no restarts in a row
        training.losses.add(torch.full((1,), math.nan if bad else 1.0), torch.zeros(1, dtype=torch.int64))

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(training, "step", take)
    teacher.train(training, settings)
    assert count[0] == 240, "it ends, although the loss is lost again and again"


def test_a_damaged_file_does_not_end_a_training(
    groups: Groups, settings: teacher.Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    training, known = prepared(settings), set(shard_files(settings.data))
    (settings.data / "900000000.safetensors").write_bytes(b"half")
    large = Groups(groups.layers.repeat(1, 1, 1, 2, 2), groups.cameras, groups.captions, groups.view_words)
    write_shard(large, settings.data / "900000500.safetensors")
    write_shard(groups, settings.data / "900001000.safetensors")
    teacher.read_new(training.pool, settings.data, known)
    assert training.pool.added == 6, "the sound one is read"
    said = capsys.readouterr().err
    assert "900000000.safetensors: expected rendered groups" in said and "expected groups of [4, 4, 64, 64]" in said


def test_data_of_another_size_are_refused(settings: teacher.Settings) -> None:
    with pytest.raises(UserError, match="data: expected views of 128 pixels for a singleview teacher, got 64"):
        teacher.prepare(replace(settings, kind="singleview"))


def test_rendering_stops_at_the_first_error(groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    class Pool:
        def __init__(self, *arguments: object, **options: object):
            pass

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def submit(self, work: object, file: Path, *arguments: object) -> Future[Path]:
            asked.append(file)
            future = Future[Path]()
            if len(asked) == 2:
                future.set_exception(UserError("out: no room"))
            else:
                future.set_result(file)
            return future

    monkeypatch.setattr(shards, "ProcessPoolExecutor", Pool)
    with pytest.raises(UserError, match="no room"):
        list(make_files(tmp_path, 0, 10**9, size=16, grouped=True, workers=2))
    assert len(asked) < 20, "of two million"
    asked.clear()
    asked += [tmp_path] * 2
    made = list(make_files(tmp_path, 1000, 1200, size=16, grouped=True, workers=1))
    assert [file.stem for file in made] == ["1000", "1500", "2000"], "the control: all files, in their order"


def test_a_full_disk_is_named_and_leaves_nothing_behind(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(UserError, match="out: expected a folder with room .*No space left"):
        write_shard(groups, tmp_path / "0.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        (shards, ["--out", "x", "--workers", "0"], "workers: expected at least 1, got 0"),
        (shards, ["--out", "x", "--count", "0"], "count: expected at least 1, got 0"),
        (teacher, ["--out", "x", "--space", "s", "--data", "d", "--batch", "0"], "batch: expected at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_named(
    module: Any, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(UserError, match=said):
        module.main()
    assert not list(tmp_path.iterdir())


RENDER = """
import sys
import time
from pathlib import Path
from gscfd.toybox.training.groups import make_files

if __name__ == "__main__":
    for file in make_files(Path(sys.argv[1]), 0, 10**9, size=16, grouped=True, workers=1):
        pass
"""


def test_workers_end_with_the_process_that_asked_them(tmp_path: Path) -> None:
    script = tmp_path / "render.py"
    script.write_text(RENDER)
    parent = subprocess.Popen([sys.executable, script, tmp_path / "data"])

    def children() -> list[str]:
        return subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True).stdout.split()

    def working() -> list[int]:
        return [int(pid) for pid in started if Path(f"/proc/{pid}").exists()]

    try:
        until(lambda: any((tmp_path / "data").glob("*")), seconds=120)
        started = children()
        assert len(working()) == 2, "the worker, and Python's tracker of resources"
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not working(), seconds=30)


def test_no_data_is_named(settings: teacher.Settings, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="data: expected rendered groups"):
        teacher.prepare(replace(settings, data=tmp_path / "none"))


def test_the_exported_teacher_loads_and_denoises(settings: teacher.Settings) -> None:
    training = prepared(settings)
    steps(training, 1)
    teacher.export(training, settings.out / "teacher")
    loaded = load_teacher(str(settings.out / "teacher"), device="cpu")
    assert loaded.multiview and loaded.image_size == 64 and loaded.latent_shape == (16, 16, 16)
    loaded.set_prompt(Prompt(text="a red teapot", cfg=2.0))
    cameras = turntable(4, size=64)
    images = torch.rand(4, 3, 64, 64, requires_grad=True)
    z = loaded.encode(images)
    z.square().sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()
    assert loaded.decode(z.detach()).shape == (4, 3, 64, 64)
    assert loaded.predict_eps(z.detach(), 500, cameras).isfinite().all()


def test_the_single_view_teacher_trains_on_independent_views(settings: teacher.Settings) -> None:
    file = next(settings.data.iterdir())
    write_shard(make_shard(SEED, size=128, grouped=False, count=1), file)
    training = prepared(replace(settings, kind="singleview"))
    steps(training, 1)
    assert len(training.draw_times(5)) == 20
    assert training.unet.class_embedding is None


# Measuring


def test_the_posterior_mean_of_two() -> None:
    known = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1, 1).expand(2, 3, 1, 1, 1)
    x = torch.tensor([0.3, 0.1, -0.2]).reshape(3, 1, 1, 1)
    alpha, sigma = 0.6, 0.8
    alone = posterior_mean(x, known, alpha, sigma, joint=False)
    assert torch.allclose(alone, torch.tanh(alpha * x / sigma**2))
    joint = posterior_mean(x, known, alpha, sigma, joint=True)
    assert torch.allclose(joint, torch.tanh(alpha * x.sum() / sigma**2).expand(3, 1, 1, 1))


class Ideal:
    """A teacher that knows the few objects there are."""

    def __init__(self, inner: GuidedTeacher, known: torch.Tensor):
        self.inner, self.known = inner, known

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def predict_eps(self, x: torch.Tensor, t: int, cameras: object, cfg: float | None = None) -> torch.Tensor:
        alpha, sigma = self.inner.alpha_sigma(t)
        z = posterior_mean(x, self.known, alpha, sigma, joint=True)
        return (x - alpha * z) / sigma


def test_an_ideal_teacher_has_no_excess(settings: teacher.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    training = prepared(settings)
    teacher.export(training, settings.out / "teacher")
    loaded = load_teacher(str(settings.out / "teacher"), device="cpu")
    seen: list[torch.Tensor] = []

    def encoded(teacher: GuidedTeacher, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return teacher.encode(images)

    monkeypatch.setattr(measure, "encoded", encoded)
    generator = torch.Generator().manual_seed(0)
    measured = measure.measure_denoising(loaded, "a red teapot", 3, 2, generator)
    assert all(inside > 0 for inside, _ in measured.values())
    ideal = Ideal(loaded, torch.stack([loaded.encode(images) for images in seen]))
    exact = measure.measure_denoising(
        cast(GuidedTeacher, ideal), "a red teapot", 3, 2, torch.Generator().manual_seed(0)
    )
    assert all(max(errors) < 1e-6 for errors in exact.values())


def test_a_true_object_is_nearest_to_itself() -> None:
    things, cameras = measure.objects_of("a blue mug", 3, 64), turntable(4, size=64)
    assert all("a blue mug" in thing.captions for thing in things)
    shown = render_object(things[1], cameras, torch.tensor([0.3, 0.4, 0.5]))
    assert torch.allclose(border_color(shown), torch.tensor([0.3, 0.4, 0.5]), atol=1e-6)
    assert measure.nearest_db(shown, things, cameras) > 80
    assert measure.nearest_db(shown, things[:1], cameras) < 40


def test_a_caption_that_too_few_objects_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TRIES", 1)
    monkeypatch.setattr(measure, "TRIES_PER_OBJECT", 0)
    with pytest.raises(UserError, match="'a blue mug', which . of 3 have"):
        measure.objects_of("a blue mug", 3, 64)


def test_scenes_of_two_objects_alone_are_sampled(settings: teacher.Settings) -> None:
    training = prepared(settings)
    teacher.export(training, settings.out / "teacher")
    loaded = load_teacher(str(settings.out / "teacher"), device="cpu")
    two = MeasureOptions(teacher="", groups=1, steps=2, nearest=4)
    rows, distance, views = measure.measure_samples(loaded, ["a yellow duck on a brown table"], two)
    assert distance is None and rows[0].nearest_db is None and views.shape == (4, 3, 64, 64)
    _, distance, _ = measure.measure_samples(loaded, ["a blue mug"], two)
    assert distance is not None and distance > 0, "the control"


@pytest.mark.parametrize(
    "change",
    [
        {"objects": 0},
        {"groups": 0},
        {"captions": ()},
        {"captions": ("a yellow duck on a brown table",)},
        {"captions": ("a dragon",)},
        {"prompts": ("a blue mug", "a dragon")},
        {"out": Path("x.txt")},
        {"out": Path("nowhere/x.json")},
    ],
)
def test_measuring_checks_its_settings(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        measure.check_settings(replace(MeasureOptions(teacher="toybox/multiview"), **change))
