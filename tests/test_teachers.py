"""Teachers: predictions, guidance and joint attention, on small networks with random weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from present import present
from tiny_teachers import randomized
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.config import Config, merged
from gscfd.errors import UserError
from gscfd.prompts import TOYBOX_MULTIVIEW, TOYBOX_SINGLEVIEW, perp_neg_mix, view_words, with_suffix, with_view
from gscfd.teachers.base import Prompt, stage_prompt
from gscfd.teachers.denoisers import Denoiser, MultiviewDenoiser
from gscfd.teachers.find import find_teacher
from gscfd.teachers.guided import GuidedTeacher, guide, rescale
from gscfd.teachers.load import load_teacher
from gscfd.teachers.multiview import JointViewsProcessor, join_views
from gscfd.teachers.schedules import Diffusion, Flow, Schedule, diffusion, flow
from gscfd.teachers.spaces import Latents
from gscfd.teachers.texts import TextFeatures, encode_clip
from gscfd.toybox import models
from gscfd.toybox.words import vocabulary
from gscfd.types import Cameras


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    network = randomized(models.build_unet(multiview=True))
    join_views(network, 4)
    return network


def ask(network: UNet2DConditionModel, x: Tensor, cameras: Tensor | None) -> Tensor:
    context = torch.randn(1, 5, models.TEXT_WIDTH, generator=torch.Generator().manual_seed(1)).expand(len(x), -1, -1)
    with torch.no_grad():
        answer: Tensor = network(x, 500, context, class_labels=cameras).sample
        return answer


def batch(count: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 16, 16, generator=generator), torch.randn(count, 16, generator=generator)


def test_views_of_a_group_see_each_other(unet: UNet2DConditionModel) -> None:
    x, cameras = batch(4)
    changed = x.clone()
    changed[3] += 1
    assert (ask(unet, x, cameras)[0] - ask(unet, changed, cameras)[0]).abs().max() > 1e-4


def test_groups_do_not_see_each_other(unet: UNet2DConditionModel) -> None:
    x, cameras = batch(8)
    changed = x.clone()
    changed[4:] += 1
    assert torch.allclose(ask(unet, x, cameras)[:4], ask(unet, changed, cameras)[:4], atol=1e-6)


def test_the_order_of_views_within_a_group_is_free(unet: UNet2DConditionModel) -> None:
    x, cameras = batch(4)
    order = [2, 0, 3, 1]
    assert torch.allclose(ask(unet, x, cameras)[order], ask(unet, x[order], cameras[order]), atol=1e-5)


def test_stock_attention_keeps_views_apart() -> None:
    """The negative control of the tests above: without the processors no view sees another."""
    stock = randomized(models.build_unet(multiview=True))
    x, cameras = batch(4)
    changed = x.clone()
    changed[3] += 1
    assert torch.allclose(ask(stock, x, cameras)[0], ask(stock, changed, cameras)[0], atol=1e-6)


def test_a_broken_group_is_refused(unet: UNet2DConditionModel) -> None:
    x, cameras = batch(3)
    with pytest.raises(ValueError, match="multiple of 4"):
        ask(unet, x, cameras)


def test_only_self_attention_is_joined(unet: UNet2DConditionModel) -> None:
    joined = {n for n, p in unet.attn_processors.items() if isinstance(p, JointViewsProcessor)}
    assert joined and joined == {n for n in unet.attn_processors if n.endswith("attn1.processor")}


class Echo:
    """A denoiser that answers with a fixed tensor, to check what is made of it."""

    text_width, pooled_width = models.TEXT_WIDTH, 0

    def __init__(self, answer: Tensor) -> None:
        self.answer = answer

    def __call__(self, x: Tensor, t: int, text: TextFeatures, cameras: Cameras) -> Tensor:
        self.seen = (x, t, text.tokens, cameras)
        return self.answer


class EchoUNet:
    """A UNet that answers with zeros and remembers what it was asked."""

    def __init__(self) -> None:
        self.config, self.dtype = {"cross_attention_dim": models.TEXT_WIDTH}, torch.float32
        self.attn_processors: dict[str, object] = {}

    def set_attn_processor(self, processors: object) -> None:
        pass

    def __call__(self, x: Tensor, t: Tensor, context: Tensor, class_labels: Tensor | None) -> Any:
        self.seen = (x, t, context, class_labels)
        return type("Output", (), {"sample": torch.zeros_like(x)})


ENCODER = randomized(models.build_text_encoder(models.build_tokenizer()))
ALPHAS = models.build_scheduler().alphas_cumprod


def teacher(denoiser: Denoiser, multiview: bool = True) -> GuidedTeacher:
    return GuidedTeacher(
        space=Latents(models.build_vae(), 16),
        denoiser=denoiser,
        schedule=Diffusion(ALPHAS, "epsilon"),
        encode_texts=partial(
            encode_clip, lambda: (models.build_tokenizer(), ENCODER), device="cpu", dtype=torch.float32
        ),
        wording=TOYBOX_MULTIVIEW if multiview else TOYBOX_SINGLEVIEW,
        multiview=multiview,
    )


def normal(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("t", [40, 400, 980])
def test_every_prediction_converts_to_the_same_noise(t: int) -> None:
    """eps, v (Salimans & Ho 2022) and flow (Esser et al. 2024) of the same x0 and noise, in float64."""
    x0, eps = normal(8, 0, torch.float64), normal(8, 1, torch.float64)

    def found(schedule: Schedule, output: Callable[[float, float], Tensor]) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        return schedule.to_eps(alpha * x0 + sigma * eps, output(alpha, sigma), t)

    outputs: dict[str, tuple[Schedule, Callable[[float, float], Tensor]]] = {
        "epsilon": (Diffusion(ALPHAS, "epsilon"), lambda alpha, sigma: eps),
        "v": (Diffusion(ALPHAS, "v_prediction"), lambda alpha, sigma: alpha * eps - sigma * x0),
        "flow": (Flow(1000), lambda alpha, sigma: eps - x0),
    }
    for name, (schedule, output) in outputs.items():
        assert (found(schedule, output) - eps).abs().max() < 1e-12, name
        for other, (_, wrong) in outputs.items():
            assert other == name or (found(schedule, wrong) - eps).abs().max() > 1e-2, (name, other)


def test_diffusion_keeps_variance_and_flow_is_a_straight_line() -> None:
    for t in (0, 404, 999):
        alpha, sigma = Diffusion(ALPHAS, "epsilon").alpha_sigma(t)
        assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-12)
        assert sum(Flow(1000).alpha_sigma(t)) == pytest.approx(1, abs=1e-12)
    ratios = [sigma / alpha for alpha, sigma in map(Diffusion(ALPHAS, "epsilon").alpha_sigma, (980, 692, 404, 212))]
    assert ratios == pytest.approx([13.04, 3.23, 1.18, 0.60], abs=0.01)


def test_a_flow_scheduler_is_never_read_as_a_diffusion() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    assert flow(config).timesteps == 1000
    with pytest.raises(UserError, match="expected a diffusion"):
        diffusion(config)
    with pytest.raises(UserError, match="expected a FlowMatch"):
        flow({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"})


def test_classifier_free_guidance_is_linear_in_eps() -> None:
    answer = normal(8, 3)
    asked = teacher(Echo(answer))
    asked.set_prompt(Prompt(text="a duck", cfg=5.0))
    negative, text = answer.chunk(2)
    eps = asked.predict_eps(normal(4, 4), 300, turntable(4, size=64))
    assert torch.allclose(eps, negative + 5 * (text - negative), atol=1e-4)


def test_the_guidance_of_a_call_takes_the_place_of_the_prompts() -> None:
    answer, x_t, cameras = normal(8, 3), normal(4, 4), turntable(4, size=64)
    asked = teacher(Echo(answer))
    asked.set_prompt(Prompt(text="a duck", cfg=5.0, cfg_rescale=0.5))
    same = asked.predict_eps(x_t, 300, cameras, 5.0)
    assert torch.equal(same, asked.predict_eps(x_t, 300, cameras))
    assert not torch.allclose(same, asked.predict_eps(x_t, 300, cameras, 2.0), atol=0.1)


@pytest.mark.parametrize("cfg, text", [(0.0, ""), (1.0, "a duck")])
def test_without_guidance_one_text_is_asked_alone(cfg: float, text: str) -> None:
    echo = Echo(normal(4, 3))
    asked = teacher(echo)
    asked.set_prompt(Prompt(text="a duck", negative="a mug", cfg=5.0, cfg_rescale=0.5))
    assert torch.equal(asked.predict_eps(normal(4, 4), 300, turntable(4, size=64), cfg), echo.answer)
    tokens = echo.seen[2]
    assert len(tokens) == 4 and all(torch.equal(view, asked.known[text].tokens) for view in tokens)


def test_a_prompt_with_a_scale_of_one_asks_for_the_text_alone() -> None:
    cameras, x_t = turntable(4, size=64), normal(4, 4)
    echo = Echo(normal(4, 3))
    asked = teacher(echo)
    asked.set_prompt(Prompt(text="a duck", cfg=1.0, cfg_rescale=0.5))
    assert torch.equal(asked.predict_eps(x_t, 300, cameras), echo.answer)
    assert len(echo.seen[2]) == 4
    echo.answer = normal(8, 3)
    asked.predict_eps(x_t, 300, cameras, 2.0)
    assert len(echo.seen[2]) == 8, "the control: guidance asks for two texts"


def test_rescaling_restores_the_spread_of_the_text_prediction() -> None:
    text, guided = normal(4, 3), 3 * normal(4, 4)
    assert torch.allclose(rescale(guided, text, 1.0, joint=False).std((1, 2, 3)), text.std((1, 2, 3)), rtol=1e-5)
    assert torch.equal(rescale(guided, text, 0.0, joint=False), guided)


def test_the_views_of_a_group_are_rescaled_by_one_factor() -> None:
    """MVDream's code: a view that guidance made stronger than the others stays so."""
    text, guided = normal(4, 3), normal(4, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None, None]
    joint = rescale(guided, text, 1.0, joint=True)
    factors = (joint / guided).flatten(1)
    assert torch.allclose(factors, factors[0, 0].expand_as(factors), rtol=1e-5)
    assert joint.std().item() == pytest.approx(text.std().item(), rel=1e-5)
    alone = rescale(guided, text, 1.0, joint=False)
    assert not torch.allclose(alone, joint, rtol=0.1), "the control: every view by its own"
    assert torch.equal(rescale(guided[:1], text[:1], 0.5, joint=True), rescale(guided[:1], text[:1], 0.5, joint=False))


def test_a_rescaled_prediction_has_the_spread_of_the_text_prediction_in_x0() -> None:
    answer, x_t, t = normal(8, 3), normal(4, 4), 300
    asked = teacher(Echo(answer))
    asked.set_prompt(Prompt(text="a duck", cfg=7.0, cfg_rescale=1.0))
    alpha, sigma = asked.alpha_sigma(t)
    x0 = (x_t - sigma * asked.predict_eps(x_t, t, turntable(4, size=64))) / alpha
    text = (x_t - sigma * answer[4:]) / alpha
    assert x0.std().item() == pytest.approx(text.std().item(), rel=1e-4), "of the whole group"


def test_a_rescaled_prediction_without_noise_is_finite() -> None:
    asked = teacher(Echo(normal(8, 3)))
    asked.set_prompt(Prompt(text="a duck", cfg=7.0, cfg_rescale=0.5))
    asked.schedule = Flow(1000)
    assert asked.predict_eps(normal(4, 4), 0, turntable(4, size=64)).isfinite().all()


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


def test_perp_neg_by_hand() -> None:
    """From (1, 1): the text points along x by 2; the other view (1, 3) has 3 at right angles to it, of which half is
    subtracted: 10 (2, -1.5). What is parallel to the text changes nothing."""
    start = vector(1.0, 1.0)
    weights = torch.tensor([[-0.5]], dtype=torch.float64)
    found = guide(start, start + vector(2.0, 0.0), 10.0, [start + vector(1.0, 3.0)], weights)
    assert torch.allclose(found, start + vector(20.0, -15.0), atol=1e-12)
    parallel = guide(start, start + vector(2.0, 0.0), 10.0, [start + vector(7.0, 0.0)], weights)
    assert torch.allclose(parallel, start + vector(20.0, 0.0), atol=1e-12)
    assert guide(start, start, 10.0, [start + vector(1.0, 3.0)], weights).isfinite().all()


@pytest.mark.parametrize(
    "azimuth, positive, negatives",
    [
        (0, {"front": 1, "side": 0}, {"front": -0.00012264, "side": -1.574}),
        (-45, {"front": 0.5, "side": 0.5}, {"front": -0.68920313, "side": -0.68920313}),
        (90, {"side": 1, "back": 0}, {"side": -0.00053066, "front": -1.57353066}),
        (135, {"side": 0.5, "back": 0.5}, {"side": -0.17280078, "front": -1.74580078}),
        (180, {"side": 0, "back": 1}, {"side": -0.394, "front": -1.967}),
    ],
)
def test_perp_neg_weights_by_hand(
    azimuth: int, positive: dict[str, int] | dict[str, float], negatives: dict[str, float]
) -> None:
    mix = perp_neg_mix(azimuth, 10.0)
    assert {words.removesuffix(" view"): share for words, share in mix.positive} == pytest.approx(positive)
    assert {words.removesuffix(" view"): w for words, w in mix.negatives} == pytest.approx(negatives, abs=1e-8)


def test_perp_neg_pushes_nothing_from_overhead() -> None:
    mix = perp_neg_mix(20.0, 61.0)
    assert mix.positive == (("overhead view", 1.0),) and {w for _, w in mix.negatives} == {0.0}


def test_perp_neg_asks_once_with_every_branch() -> None:
    """Four branches of two views, in one call: negative, the mix, and the two views pushed away from."""
    denoiser = Echo(normal(8, 3))
    asked = teacher(denoiser, multiview=False)
    asked.set_prompt(Prompt(text="a duck", negative="a mug", cfg=5.0, perp_neg=True))
    eps = asked.predict_eps(normal(2, 4), 300, turntable(2, size=64))
    features = {words: asked.known[f"a duck, {words} view"].tokens for words in ("front", "side", "back")}
    _, _, context, _ = denoiser.seen
    back = [asked.known["a mug"].tokens, features["back"], features["side"], features["front"]]
    assert all(torch.allclose(row, wanted, atol=1e-5) for row, wanted in zip(context[1::2], back, strict=True))
    negative, text, side, front = (part[1:] for part in denoiser.answer.chunk(4))
    wanted = guide(negative, text, 5.0, [side, front], torch.tensor([[-0.394], [-1.967]]))
    assert torch.allclose(eps[1:], wanted, atol=1e-3)
    assert not torch.allclose(eps[1:], negative + 5 * (text - negative), atol=1e-1)


def test_both_branches_get_the_same_cameras_and_their_own_text() -> None:
    unet = EchoUNet()
    asked = teacher(MultiviewDenoiser(unet))
    asked.set_prompt(Prompt(text="a duck", negative="a mug", cfg=5.0))
    asked.predict_eps(normal(4, 4), 300, turntable(4, size=64))
    x, t, context, labels = unet.seen
    cameras = present(labels)
    assert torch.equal(x[:4], x[4:]) and torch.equal(cameras[:4], cameras[4:]) and t.tolist() == [300] * 8
    assert torch.equal(context[0], context[3]) and not torch.equal(context[0], context[4])


def test_a_single_view_teacher_is_told_the_view() -> None:
    denoiser = Echo(normal(8, 3))
    asked = teacher(denoiser, multiview=False)
    asked.set_prompt(Prompt(text="a duck", cfg=5.0))
    asked.predict_eps(normal(4, 4), 300, turntable(4, size=64))
    front, side, back, side_again = denoiser.seen[2][4:]
    assert torch.equal(side, side_again) and not torch.equal(front, side) and not torch.equal(front, back)


def test_texts_are_encoded_once() -> None:
    asked = teacher(Echo(normal(8, 3)), multiview=False)
    calls: list[list[str]] = []
    encode = asked.encode_texts

    def noted(texts: list[str]) -> list[TextFeatures]:
        calls.append(texts)
        return encode(texts)

    asked.encode_texts = noted
    for text in ("a duck", "a duck", "a mug"):
        asked.set_prompt(Prompt(text=text, cfg=5.0))
    assert [len(texts) for texts in calls] == [5, 4]


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="expected at most 24 tokens, got 32; shorten"):
        teacher(Echo(torch.zeros(()))).set_prompt(Prompt(text="duck " * 30, cfg=5.0))


def test_a_text_encoder_of_another_width_is_refused() -> None:
    denoiser = Echo(torch.zeros(()))
    denoiser.text_width = 768
    with pytest.raises(UserError, match="expected 768 numbers per token"):
        teacher(denoiser).set_prompt(Prompt(text="a duck", cfg=5.0))


def test_asking_without_a_prompt_is_refused() -> None:
    with pytest.raises(RuntimeError, match="set_prompt"):
        teacher(Echo(torch.zeros(()))).predict_eps(normal(4, 4), 300, turntable(4, size=64))


@pytest.mark.parametrize(
    "azimuth, elevation, words",
    [
        (0, 0, "front"),
        (-29, 0, "front"),
        (31, 0, "side"),
        (-149, 0, "side"),
        (151, 0, "back"),
        (180, 0, "back"),
        (0, 61, "overhead"),
        (359, 0, "front"),
    ],
)
def test_view_words_follow_the_camera(azimuth: int, elevation: int, words: str) -> None:
    assert view_words(azimuth, elevation) == f"{words} view"
    assert with_view("a mug", azimuth, elevation) == f"a mug, {words} view"


def test_every_word_of_the_toybox_is_one_token() -> None:
    tokenizer = models.build_tokenizer()
    for word in vocabulary():
        assert len(tokenizer(word).input_ids) == 3, word
    assert len(tokenizer("zyx").input_ids) > 3


def test_the_tokenizer_survives_saving(tmp_path: Path) -> None:
    tokenizer = models.build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path, local_files_only=True)
    text = "a red mushroom with a white stem, front view"
    assert again(text, padding="max_length").input_ids == tokenizer(text, padding="max_length").input_ids


@pytest.mark.parametrize("name, multiview", [("toybox/multiview", True), ("toybox/singleview", False)])
def test_the_shipped_teachers_load_and_their_kind_is_read_from_the_files(name: str, multiview: bool) -> None:
    loaded = load_teacher(name, device="cpu")
    assert loaded.multiview is multiview
    images = torch.rand(4, 3, loaded.image_size, loaded.image_size, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    z = loaded.encode(images)
    assert z.shape == (4, *loaded.latent_shape)
    z.sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
    assert loaded.decode(z.detach()).shape == images.shape


def test_the_shipped_vae_reconstructs_what_it_sees() -> None:
    from gscfd.toybox.data import make_group

    loaded = load_teacher("toybox/multiview", device="cpu")
    images = make_group(5, views=4, size=64, grouped=True).images
    error = (loaded.decode(loaded.encode(images).detach()) - images).square().mean()
    assert -10 * error.log10() > 28


def test_a_toybox_teacher_that_is_not_shipped_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match="expected toybox/multiview or toybox/singleview, got 'toybox/other'"):
        find_teacher("toybox/other")


def test_a_negative_prompt_may_describe_the_splat_as_it_is() -> None:
    stage = merged(Config(), {"coarse": {"negative_prompt": "{prompt}, blurry"}}).stage("coarse")
    assert stage_prompt("a duck", stage).negative == "a duck, blurry"
    assert stage_prompt("a duck", Config().stage("coarse")).negative is None, "control"


def test_the_suffix_is_added_once() -> None:
    assert with_suffix("a mug", ", 3d asset") == with_suffix("a mug, 3d asset", ", 3d asset") == "a mug, 3d asset"
