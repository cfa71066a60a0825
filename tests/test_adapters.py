"""MV-Adapter: against a short reference written from the paper and the layout of its files, and what is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_teachers as tiny
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from present import as_a
from safetensors.torch import load_file, save_file
from torch import Tensor

from gscfd.cameras import mv_adapter_labels, orbit, turntable
from gscfd.errors import UserError
from gscfd.teachers.base import Prompt
from gscfd.teachers.denoisers import AdaptedDenoiser
from gscfd.teachers.find import halves
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.kinds import is_here
from gscfd.teachers.load import load_teacher
from gscfd.teachers.schedules import Diffusion
from gscfd.teachers.texts import TextFeatures
from gscfd.types import Cameras

VIEWS = 3


def ring(elevation: float = 0.0) -> Cameras:
    return turntable(VIEWS, size=16, elevation=elevation, start=20.0)


def made(folder: Path, large: bool) -> str:
    """The name of a tiny teacher with an adapter, always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = tiny.sdxl(folder, **tiny.SDXL_LEVELS) if large else tiny.stable_diffusion(folder)
        return f"{base}+{tiny.mv_adapter(folder / 'mvadapter_t2mv.safetensors', base, large=large)}"


def load(name: str) -> GuidedTeacher:
    return load_teacher(name, device="cpu", local_files_only=True)


@pytest.fixture(scope="module", params=[False, True], ids=["sd21", "sdxl"])
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bool]:
    return made(tmp_path_factory.mktemp("adapted"), request.param), request.param


# ----------------------------------------------------------------------------------------------------------- reference


def encoded(state: dict[str, Tensor], images: Tensor, large: bool) -> list[Tensor]:
    """The camera encoder: unshuffled pixels, a convolution, then per level pooling, a 1 x 1 convolution and two
    residual blocks."""
    h = F.conv2d(
        F.pixel_unshuffle(images, 16 if large else 8),
        state["adapter.conv_in.weight"],
        state["adapter.conv_in.bias"],
        padding=1,
    )
    features = []
    for level in range(4):
        if level in ((2,) if large else (1, 2, 3)):
            h = F.avg_pool2d(h, 2, ceil_mode=True)
        name = f"adapter.body.{level}"
        if f"{name}.in_conv.weight" in state:
            h = F.conv2d(h, state[f"{name}.in_conv.weight"], state[f"{name}.in_conv.bias"])
        for block in (f"{name}.resnets.0", f"{name}.resnets.1"):
            inner = F.conv2d(h, state[f"{block}.block1.weight"], state[f"{block}.block1.bias"], padding=1).relu()
            h = h + F.conv2d(inner, state[f"{block}.block2.weight"], state[f"{block}.block2.bias"])
        features.append(h)
    return features


def across_rows(state: dict[str, Tensor], name: str, tokens: Tensor, heads: int) -> Tensor:
    """Attention over one row of all views at a time, one head at a time."""
    side = round(tokens.shape[1] ** 0.5)
    q, k, v = (tokens @ state[f"{name}.to_{part}_mv.weight"].T for part in "qkv")
    grid = torch.zeros_like(q).reshape(-1, VIEWS, side, side, q.shape[-1])
    q, k, v = (x.reshape(grid.shape) for x in (q, k, v))
    for group in range(len(grid)):
        for row in range(side):
            for head in torch.arange(q.shape[-1]).chunk(heads):
                mine, others, values = (x[group, :, row].flatten(0, 1)[:, head] for x in (q, k, v))
                weights = (mine @ others.T / len(head) ** 0.5).softmax(-1)
                grid[group, :, row, :, head] = (weights @ values).reshape(VIEWS, side, -1)
    joined = grid.reshape(len(tokens), side**2, -1)
    return joined @ state[f"{name}.to_out_mv.0.weight"].T + state[f"{name}.to_out_mv.0.bias"]


def reference(name: str, x: Tensor, t: int, text: TextFeatures, images: Tensor, large: bool) -> Tensor:
    """The stock UNet, whose self-attentions add to their outputs."""
    base, file = name.split("+")
    unet = UNet2DConditionModel.from_pretrained(Path(base) / "unet").eval()
    state = load_file(file)
    for module, attn in unet.named_modules():
        if module.endswith("attn1"):

            def add(
                _: object, inputs: Any, output: Tensor, name: str = f"{module}.processor", heads: int = attn.heads
            ) -> Tensor:
                return output + across_rows(state, name, inputs[0], heads)

            attn.register_forward_hook(add)
    added = None
    if large:
        size = float(2 * x.shape[-1])
        ids = torch.tensor([[size, size, 0, 0, size, size]] * len(x))
        added = {"text_embeds": text.pooled, "time_ids": ids}
    features = [feature.repeat(len(x) // VIEWS, 1, 1, 1) for feature in encoded(state, images, large)]
    output: Tensor = unet(
        x, t, text.tokens, added_cond_kwargs=added, down_intrablock_additional_residuals=features
    ).sample
    return output


@torch.no_grad()
def test_the_network_equals_the_reference(named: tuple[str, bool]) -> None:
    name, large = named
    teacher, cameras = load(name), ring(10.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * VIEWS, *teacher.latent_shape, generator=generator)
    text = TextFeatures(
        torch.randn(len(x), 7, tiny.WIDTH, generator=generator),
        torch.randn(len(x), 32, generator=generator) if large else None,
    )
    side = 8 * x.shape[-1]
    images = mv_adapter_labels(cameras)[:, :, None, None].expand(-1, -1, side, side)
    found = teacher.denoiser(x, 300, text, cameras)
    wanted = reference(name, x, 300, text, images, large)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    for wrong in (images.flip(0), images.flip(1)):
        other = reference(name, x, 300, text, wrong, large)
        assert (other - wanted).norm() > 1e-3 * wanted.norm(), "control: other cameras"
    alone = torch.cat([teacher.denoiser(x[i : i + 1], 300, part(text, i), only(cameras, i)) for i in range(VIEWS)])
    assert (alone - found[:VIEWS]).norm() > 1e-3 * found.norm(), "control: views that do not see each other"


def part(text: TextFeatures, i: int) -> TextFeatures:
    return TextFeatures(text.tokens[i : i + 1], None if text.pooled is None else text.pooled[i : i + 1])


def only(cameras: Cameras, i: int) -> Cameras:
    return Cameras(cameras.viewmats[i : i + 1], cameras.Ks[i : i + 1], cameras.width, cameras.height)


PUBLIC = {
    False: [-0.10723, -0.129032, -0.017665, 0.077666, -0.124656, -0.015591, -0.104415, 0.073109],
    True: [-0.339511, -0.497327, -1.092784, -0.584141, -0.020949, -0.698748, -0.782857, -0.518998],
}
"""Start of the first view by MV-Adapter's public code (4277e00), with the same weights, inputs and cameras, by whether
the model is SDXL."""


def fixed(name: str, large: bool) -> tuple[GuidedTeacher, Tensor, TextFeatures]:
    """A teacher and inputs that no generator draws."""
    teacher = load(name)
    x = torch.linspace(-2, 2, VIEWS * teacher.latent_shape[0] * teacher.latent_shape[1] ** 2).sin()
    tokens = torch.linspace(-1, 1, VIEWS * 5 * tiny.WIDTH).reshape(VIEWS, 5, -1)
    pooled = torch.linspace(-1, 1, VIEWS * 32).reshape(VIEWS, 32) if large else None
    return teacher, x.reshape(VIEWS, *teacher.latent_shape), TextFeatures(tokens, pooled)


@torch.no_grad()
def test_the_network_gives_the_numbers_of_the_public_code(named: tuple[str, bool]) -> None:
    teacher, x, text = fixed(*named)
    found = teacher.denoiser(x, 500, text, ring())
    torch.testing.assert_close(found[0, 0, 0, :8], torch.tensor(PUBLIC[named[1]]), atol=1e-5, rtol=1e-5)
    higher = teacher.denoiser(x, 500, text, ring(10.0))[0, 0, 0, :8]
    assert (higher - found[0, 0, 0, :8]).abs().max() > 1e-4, "control: the cameras count"


# ------------------------------------------------------------------------------------------------- cameras and schedule


def test_the_front_is_at_minus_y_and_the_view_looks_at_it() -> None:
    """Azimuths 0 and 90, elevation 0 and 30: directions by hand, mapped from [-1, 1] to [0, 1]."""
    angles, ones = torch.tensor([0.0, 90.0, 0.0]), torch.ones(3)
    cameras = orbit(angles, torch.tensor([0.0, 0.0, 30.0]), 2 * ones, 40 * ones, 8, 8)
    half, root = 0.5, 0.75**0.5
    forward = torch.tensor([[0, 1, 0], [-1, 0, 0], [0, root, -half]])
    wanted = torch.cat([forward, -forward], 1) / 2 + 0.5
    torch.testing.assert_close(mv_adapter_labels(cameras), wanted, atol=1e-6, rtol=0)


def test_the_schedule_has_more_noise_toward_its_end(named: tuple[str, bool]) -> None:
    teacher = load(named[0])
    plain = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod.double()
    shifted = torch.tensor(as_a(Diffusion, teacher.schedule).alphas_cumprod, dtype=torch.float64)
    ratio = (plain / (1 - plain)) / (shifted / (1 - shifted))
    torch.testing.assert_close(ratio[[0, 999]], torch.tensor([1.0, 8.0], dtype=torch.float64), atol=1e-3, rtol=0)
    slope = ratio.log().diff()
    assert (slope - slope.mean()).abs().max() < 1e-4, "linear in the logarithm"


# ------------------------------------------------------------------------------------------------------------- loading


def test_an_adapted_teacher_is_multi_view_of_its_own_size(named: tuple[str, bool]) -> None:
    name, large = named
    teacher = load(name)
    assert teacher.multiview and isinstance(teacher.denoiser, AdaptedDenoiser) and is_here(name)
    assert teacher.latent_shape == (4, 12, 12) if large else (4, 8, 8)
    assert (teacher.denoiser.image_size == teacher.image_size) == large
    teacher.set_prompt(Prompt(text="a duck", cfg=3.0, cfg_rescale=0.5))
    eps = teacher.predict_eps(torch.randn(VIEWS, *teacher.latent_shape), 300, ring())
    assert eps.isfinite().all() and list(teacher.asked) == [""]


def test_a_name_with_a_plus_may_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "a+b").mkdir()
    assert halves(str(tmp_path / "a+b")) == (str(tmp_path / "a+b"), None)
    assert halves("sd/xl+some/one/x.safetensors") == ("sd/xl", "some/one/x.safetensors") and halves("a/b") == (
        "a/b",
        None,
    )


def edited(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path, str], str]:
    def make(folder: Path, name: str) -> str:
        base, file = name.split("+")
        state = copy.copy(load_file(file))
        change(state)
        save_file(state, folder / "x.safetensors")
        return f"{base}+{folder / 'x.safetensors'}"

    return make


def other_base(folder: Path, name: str) -> str:
    base = tiny.stable_diffusion(folder / "wide", block_out_channels=[16, 16, 32, 32])
    return f"{base}+{name.split('+')[1]}"


def sdxl_base(folder: Path, name: str) -> str:
    return f"{tiny.sdxl(folder / 'xl', **tiny.SDXL_LEVELS)}+{name.split('+')[1]}"


@pytest.mark.parametrize(
    "make, words",
    [
        (other_base, "Stable Diffusion 2.1, got .* another base model"),
        (sdxl_base, "MV-Adapter of SDXL, got .* another base model"),
        (edited(lambda state: state.pop("adapter.conv_in.bias")), "lacks adapter.conv_in.bias"),
        (edited(lambda state: state.pop(next(k for k in state if "to_q_mv" in k))), "does not fit this UNet"),
        (edited(lambda state: state.update({"x.to_q_ref.weight": torch.zeros(1)})), "needs an input image"),
        (lambda folder, name: name.replace("mvadapter_t2mv", "mvadapter_tg2mv"), "expected an adapter"),
        (lambda folder, name: f"{name.split('+')[0]}+some/one", "expected an adapter"),
        (lambda folder, name: f"{tiny.mvdream(folder)}+{name.split('+')[1]}", "Stable Diffusion 2.1 or SDXL before"),
    ],
)
def test_what_does_not_belong_together_is_refused(make: Callable[[Path, str], str], words: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    name = made(tmp_path / "base", large=False)
    with pytest.raises(UserError, match=words):
        load(make(tmp_path, name))


def test_an_adapter_guided_by_geometry_is_named(tmp_path: Path) -> None:
    """It has the same tensors: its name alone tells."""
    base, file = made(tmp_path, large=False).split("+")
    other = Path(file).rename(tmp_path / "mvadapter_tg2mv_sd21.safetensors")
    with pytest.raises(UserError, match="needs the geometry"):
        load(f"{base}+{other}")
