"""Teachers: predictions, guidance and joint attention, on small networks with random weights."""

import pytest
import torch
from transformers import CLIPTextModel

from gscfd.cameras import turntable
from gscfd.errors import UserError
from gscfd.prompts import view_words, with_view
from gscfd.teachers import Prompt, load_teacher
from gscfd.teachers.latent import LatentTeacher, guide
from gscfd.teachers.load import teacher_folder
from gscfd.teachers.multiview import JointViewsProcessor, join_views
from gscfd.toybox import models


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """All weights redrawn, so that no zero initialisation hides a path."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            start = 0 if parameter.ndim > 1 else parameter
            parameter.copy_(start + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="module")
def unet():
    network = randomised(models.build_unet(multiview=True))
    join_views(network, 4)
    return network


def ask(network, x, cameras):
    context = torch.randn(1, 5, models.TEXT_WIDTH, generator=torch.Generator().manual_seed(1)).expand(len(x), -1, -1)
    with torch.no_grad():
        return network(x, 500, context, class_labels=cameras).sample


def batch(count, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 16, 16, generator=generator), torch.randn(count, 16, generator=generator)


def test_views_of_a_group_see_each_other(unet):
    x, cameras = batch(4)
    changed = x.clone()
    changed[3] += 1
    assert (ask(unet, x, cameras)[0] - ask(unet, changed, cameras)[0]).abs().max() > 1e-4


def test_groups_do_not_see_each_other(unet):
    x, cameras = batch(8)
    changed = x.clone()
    changed[4:] += 1
    assert torch.allclose(ask(unet, x, cameras)[:4], ask(unet, changed, cameras)[:4], atol=1e-6)


def test_the_order_of_views_within_a_group_is_free(unet):
    x, cameras = batch(4)
    order = [2, 0, 3, 1]
    assert torch.allclose(ask(unet, x, cameras)[order], ask(unet, x[order], cameras[order]), atol=1e-5)


def test_stock_attention_keeps_views_apart():
    """The negative control of the tests above: without the processors no view sees another."""
    stock = randomised(models.build_unet(multiview=True))
    x, cameras = batch(4)
    changed = x.clone()
    changed[3] += 1
    assert torch.allclose(ask(stock, x, cameras)[0], ask(stock, changed, cameras)[0], atol=1e-6)


def test_a_broken_group_is_refused(unet):
    x, cameras = batch(3)
    with pytest.raises(ValueError, match="multiple of 4"):
        ask(unet, x, cameras)


def test_only_self_attention_is_joined(unet):
    joined = {n for n, p in unet.attn_processors.items() if isinstance(p, JointViewsProcessor)}
    assert joined and joined == {n for n in unet.attn_processors if n.endswith("attn1.processor")}


class Echo(torch.nn.Module):
    """A UNet that answers with a fixed tensor, to check what is made of it."""

    def __init__(self, answer, size=16):
        super().__init__()
        self.answer, self.dtype, self.device = answer, torch.float32, torch.device("cpu")
        self.config = {"sample_size": size, "in_channels": 4}

    def forward(self, x, t, context, class_labels=None):
        self.seen = (x, t, context, class_labels)
        return type("Output", (), {"sample": self.answer})


def teacher(answer, prediction="epsilon", multiview=True):
    tokenizer = models.build_tokenizer()
    encoder = randomised(models.build_text_encoder(tokenizer))
    assert isinstance(encoder, CLIPTextModel)
    return LatentTeacher(
        vae=models.build_vae().eval(),
        unet=Echo(answer),
        text_encoder=encoder,
        tokenizer=tokenizer,
        alphas_cumprod=models.build_scheduler().alphas_cumprod,
        prediction=prediction,
        multiview=multiview,
    )


def doubled(seed, dtype=torch.float32):
    return torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("t", [40, 400, 980])
def test_predictions_convert_to_the_same_x0(t):
    """eps and v of the same x0 and noise (Salimans & Ho 2022), in float64."""
    x0, eps = doubled(0, torch.float64), doubled(1, torch.float64)
    as_eps, as_v = teacher(None), teacher(None, "v_prediction")
    alpha, sigma = as_eps.alpha_sigma(t)
    x_t = alpha * x0 + sigma * eps
    assert torch.allclose(as_eps.to_x0(x_t, eps, t), x0, atol=1e-12)
    assert torch.allclose(as_v.to_x0(x_t, alpha * eps - sigma * x0, t), x0, atol=1e-12)
    assert not torch.allclose(as_eps.to_x0(x_t, alpha * eps - sigma * x0, t), x0, atol=1e-2)


def test_classifier_free_guidance_is_linear_in_eps():
    answer = doubled(3)
    asked = teacher(answer)
    asked.set_prompt(Prompt(text="a duck", cfg=5.0))
    negative, text = answer.chunk(2)
    eps = asked.predict_eps(doubled(4)[:4], 300, turntable(4, size=64))
    assert torch.allclose(eps, negative + 5 * (text - negative), atol=1e-4)


def test_rescaling_restores_the_spread_of_the_text_prediction():
    negative, text = doubled(3).chunk(2)
    guided = guide(negative, text, 7.0, 1.0)
    assert torch.allclose(guided.std((1, 2, 3)), text.std((1, 2, 3)), rtol=1e-5)
    assert (guide(negative, text, 7.0, 0.0).std((1, 2, 3)) > 2 * text.std((1, 2, 3))).all()


def test_both_branches_get_the_same_cameras_and_their_own_text():
    asked = teacher(doubled(3))
    asked.set_prompt(Prompt(text="a duck", negative="a mug", cfg=5.0))
    asked.predict_eps(doubled(4)[:4], 300, turntable(4, size=64))
    x, t, context, cameras = asked.unet.seen
    assert torch.equal(x[:4], x[4:]) and torch.equal(cameras[:4], cameras[4:]) and t == 300
    assert torch.equal(context[0], context[3]) and not torch.equal(context[0], context[4])


def test_a_single_view_teacher_is_told_the_view():
    asked = teacher(doubled(3), multiview=False)
    asked.set_prompt(Prompt(text="a duck", cfg=5.0))
    asked.predict_eps(doubled(4)[:4], 300, turntable(4, size=64))
    _, _, context, cameras = asked.unet.seen
    assert cameras is None
    front, side, back, side_again = context[4:]
    assert torch.equal(side, side_again) and not torch.equal(front, side) and not torch.equal(front, back)


def test_asking_without_a_prompt_is_refused():
    with pytest.raises(RuntimeError, match="set_prompt"):
        teacher(doubled(3)).predict_eps(doubled(4)[:4], 300, turntable(4, size=64))


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
def test_view_words_follow_the_camera(azimuth, elevation, words):
    assert view_words(azimuth, elevation) == f"{words} view"
    assert with_view("a mug", azimuth, elevation) == f"a mug, {words} view"


def test_every_word_of_the_toybox_is_one_token():
    tokenizer = models.build_tokenizer()
    for word in models.vocabulary():
        assert len(tokenizer(word).input_ids) == 3, word
    assert len(tokenizer("zyx").input_ids) > 3


def test_the_tokenizer_survives_saving(tmp_path):
    tokenizer = models.build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path, local_files_only=True)
    text = "a red mushroom with a white stem, front view"
    assert again(text, padding="max_length").input_ids == tokenizer(text, padding="max_length").input_ids


@pytest.mark.parametrize("name, multiview", [("toybox/multiview", True), ("toybox/singleview", False)])
def test_the_shipped_teachers_load_and_their_kind_is_read_from_the_files(name, multiview):
    loaded = load_teacher(name, views=4, device="cpu")
    assert loaded.multiview is multiview
    images = torch.rand(4, 3, loaded.image_size, loaded.image_size, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    z = loaded.encode(images)
    assert z.shape == (4, *loaded.latent_shape)
    z.sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
    assert loaded.decode(z.detach()).shape == images.shape


def test_the_shipped_vae_reconstructs_what_it_sees():
    from gscfd.toybox.data import make_group

    loaded = load_teacher("toybox/multiview", views=4, device="cpu")
    images = make_group(5, views=4, size=64, grouped=True).images
    error = (loaded.decode(loaded.encode(images).detach()) - images).square().mean()
    assert -10 * error.log10() > 28


def test_a_missing_teacher_says_what_is_missing(tmp_path):
    (tmp_path / "vae").mkdir()
    with pytest.raises(UserError, match="no unet, text_encoder, tokenizer, scheduler"):
        teacher_folder(str(tmp_path))
