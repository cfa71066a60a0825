"""Train the toybox teachers: `python -m gscfd.toybox.train_teachers --out DIR`.

Six parts in order: the VAE; the text encoder; the multi-view teacher; the single-view teacher, which starts from it;
the scorer; and the export in diffusers' folder layout. Every part saves as it goes; the same command continues where it
stopped.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel
from transformers.models.clip.modeling_clip import CLIPOutput

from gscfd.cameras import mvdream_matrices, turntable
from gscfd.prompts import VIEW_WORDS, join_words, with_view
from gscfd.teachers.multiview import join_views
from gscfd.toybox import models
from gscfd.toybox.data import Group, make_group
from gscfd.toybox.objects import COLORS, KINDS, parse_caption, sample_object

Example = TypeVar("Example")
Model = TypeVar("Model", bound=nn.Module)
PARTS = ("vae", "text", "multiview", "singleview", "scorer", "export")


@dataclass(kw_only=True)
class Recipe:
    """How one part is trained."""

    steps: int
    """Optimiser steps."""
    batch: int
    """Examples per step; an example is a group of views."""
    lr: float = 8e-4
    """Peak learning rate of AdamW; warms up over 100 steps, then falls to zero along a cosine."""
    reuse: float = 3.0
    """How many times an example is seen before it leaves the pool, on average."""
    pool: int = 4096
    """Examples kept in memory."""
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones exported."""


@dataclass(kw_only=True)
class Settings:
    out: Path
    """Where checkpoints, sample sheets and the exported teachers go."""
    parts: tuple[str, ...] = PARTS
    """Which parts to train; what they need is loaded, or trained before them."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    bf16: bool = torch.cuda.is_available()
    """Autocast to bfloat16. Off on CPUs: without AMX it is slower than float32."""
    vae: Recipe = field(default_factory=lambda: Recipe(steps=6000, batch=4, lr=5e-4, pool=1024, reuse=4.0))
    text: Recipe = field(default_factory=lambda: Recipe(steps=1000, batch=128, lr=1e-3, pool=8192, reuse=50.0, ema=0.9))
    multiview: Recipe = field(default_factory=lambda: Recipe(steps=12000, batch=8, lr=1e-3, pool=16384, reuse=6.0))
    singleview: Recipe = field(default_factory=lambda: Recipe(steps=5000, batch=2, lr=4e-4, pool=2048))
    scorer: Recipe = field(default_factory=lambda: Recipe(steps=8000, batch=48, lr=1e-3, pool=8192, reuse=6.0))
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.parts) - set(PARTS)
        if unknown:
            raise ValueError(f"parts: expected some of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")


class Pool(Generic[Example]):
    """A ring of recent examples, so that making data costs a fraction of a step."""

    def __init__(self, make: Callable[[int], Example], recipe: Recipe, next_seed: int):
        self.make, self.size, self.next_seed = make, recipe.pool, next_seed
        self.fresh_per_draw = recipe.batch / recipe.reuse
        self.owed = float(4 * recipe.batch)
        self.items: list[Example] = []

    def draw(self, count: int, rng: np.random.Generator) -> list[Example]:
        self.owed += self.fresh_per_draw
        while self.owed >= 1:
            self.owed -= 1
            item = self.make(self.next_seed)
            if len(self.items) < self.size:
                self.items.append(item)
            else:
                self.items[self.next_seed % self.size] = item
            self.next_seed += 1
        return [self.items[i] for i in rng.integers(len(self.items), size=count)]


def fit(
    name: str,
    module: Model,
    make: Callable[[int], Example],
    loss_of: Callable[[Model, list[Example], np.random.Generator], Tensor],
    sheet: Callable[[Model], Image.Image] | None,
    recipe: Recipe,
    settings: Settings,
) -> Model:
    """Train `module`, resuming from `settings.out / name / state.pt` when it is there; returns the averaged weights."""
    folder = settings.out / name
    folder.mkdir(parents=True, exist_ok=True)
    module.to(settings.device).train()
    average = copy.deepcopy(module).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01)
    start, next_seed = 0, 1_000_000 * (1 + PARTS.index(name) + 10 * settings.seed)
    state_path = folder / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, map_location=settings.device, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start, next_seed = state["step"], state["next_seed"]
    pool = Pool(make, recipe, next_seed)
    smooth, saved = float("nan"), time.monotonic()
    progress = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, desc=name, mininterval=5.0)

    def save(step: int) -> None:
        state = {
            "module": module.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "next_seed": pool.next_seed,
        }
        torch.save(state, folder / "state.tmp")
        os.replace(folder / "state.tmp", state_path)
        if sheet is not None:
            sheet(average).save(folder / "samples.png")
        with open(folder / "loss.csv", "a") as file:
            file.write(f"{step},{smooth:.5f}\n")

    for step in progress:
        rng = np.random.default_rng([settings.seed, PARTS.index(name), step])
        torch.manual_seed(int(rng.integers(2**62)))
        # The learning rate warms up, then falls to zero along a cosine.
        fraction = step / recipe.steps
        lr = recipe.lr * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * fraction))
        for group in optimizer.param_groups:
            group["lr"] = lr
        # One step.
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.bf16):
            loss = loss_of(module, pool.draw(recipe.batch, rng), rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        # Average the weights, over a window that grows with the run.
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), module.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        # Report and save.
        value = loss.item()
        if not math.isfinite(value):
            raise SystemExit(f"{name}: the loss is not finite at step {step}; the last good state is {state_path}")
        smooth = value if math.isnan(smooth) else 0.99 * smooth + 0.01 * value
        progress.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if time.monotonic() - saved > 300:
            save(step + 1)
            saved = time.monotonic()
    if start < recipe.steps:
        save(recipe.steps)
    return average


def tile(images: Tensor, columns: int) -> Image.Image:
    """A contact sheet of images [B, 3, H, W] in [0, 1]."""
    rows = images.float().cpu().clamp(0, 1).unflatten(0, (-1, columns))
    sheet = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((sheet.numpy() * 255).round().astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------------- VAE


def image_example(seed: int, views: int) -> Tensor:
    """[V, 3, 64, 64] uint8: views at 64 px, or crops of views at 128 px."""
    if seed % 3:
        images = make_group(seed, views=views, size=64, grouped=False).images
    else:
        large = make_group(seed, views=views, size=128, grouped=False).images
        y, x = np.random.default_rng(seed).integers(64, size=2)
        images = large[:, :, y : y + 64, x : x + 64]
    return (images * 255).round().to(torch.uint8)


def vae_loss(vae: AutoencoderKL, batch: list[Tensor], rng: np.random.Generator) -> Tensor:
    """L1 and squared error of the reconstruction, and a light pull of the posterior towards N(0, I).

    Most steps see crops of 32 x 32: a quarter of the cost, and nearly the same progress per step. Some decode the
    latents at half their resolution, and must find the picture at half its own (EQ-VAE, Kouzelis et al. 2025): that
    keeps the latents smooth, which is what makes them easy to denoise.
    """
    size = 32 if rng.random() < 0.75 else 64
    y, x = rng.integers(64 - size + 1, size=2)
    images = torch.cat(batch)[:, :, y : y + size, x : x + size].to(vae.device, torch.float32) / 127.5 - 1
    posterior = vae.encode(images).latent_dist
    latents = posterior.sample()
    if rng.random() < 0.4:
        latents, images = F.avg_pool2d(latents, 2), F.avg_pool2d(images, 2)
    difference = vae.decode(latents).sample - images
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return difference.abs().mean() + 2 * difference.square().mean() + 1e-4 * kl


def train_vae(settings: Settings) -> AutoencoderKL:
    vae = models.build_vae().to(memory_format=torch.channels_last)
    shown = torch.cat([image_example(seed, 2) for seed in range(12)])

    def sheet(average: AutoencoderKL) -> Image.Image:
        x = shown.to(average.device, torch.float32) / 127.5 - 1
        with torch.no_grad():
            decoded = average.decode(average.encode(x).latent_dist.mean).sample
        return tile(torch.cat([x, decoded]) / 2 + 0.5, 12)

    trained = fit("vae", vae, lambda seed: image_example(seed, 4), vae_loss, sheet, settings.vae, settings)
    with torch.no_grad():
        latents = trained.encode(shown.to(settings.device, torch.float32) / 127.5 - 1).latent_dist.mean
    trained.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return trained


# ------------------------------------------------------------------------------------------------------------- text


FACTS = ((None, *KINDS), (None, *COLORS), (None, *COLORS), (None, *KINDS), (None, *COLORS))
"""What a caption can say: kind, colour, part's colour; kind and colour of what the object stands on."""


def facts(caption: str) -> list[int]:
    """The caption's choice of each of FACTS."""
    said = parse_caption(caption)
    if said is None:
        return [0] * len(FACTS)
    named = (said.kind, said.color, said.part_color, said.on_kind, said.on_color)
    return [choices.index(fact) for choices, fact in zip(FACTS, named, strict=True)]


def fact_heads(*choices: tuple) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(models.TEXT_WIDTH, len(names)) for names in choices])


def facts_loss(heads: nn.ModuleList, features: Tensor, truth: list[list[int]]) -> Tensor:
    """Sum of the cross-entropies of all that is read linearly from features [B, D]; truth: [B][heads] choices."""
    targets = torch.tensor(truth, device=features.device).T
    losses = [F.cross_entropy(head(features), target) for head, target in zip(heads, targets, strict=True)]
    return torch.stack(losses).sum()


class TextReader(nn.Module):
    """A text encoder whose end tokens say what the caption says: kind, colours, view words.

    The UNets hear a caption best through its many end tokens. A small CLIP's tell colours apart far better than kinds,
    and so did the UNets that listened to one: the right colours on shapeless blobs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = models.build_tokenizer()
        self.text_encoder = models.build_text_encoder(self.tokenizer)
        self.heads = fact_heads(*FACTS, ("", *VIEW_WORDS))


def caption_example(seed: int) -> tuple[str, ...]:
    return (*sample_object(seed, spacing=0.2).captions, "")


def reading_loss(module: TextReader, batch: list[tuple[str, ...]], rng: np.random.Generator) -> Tensor:
    """Cross-entropy of each answer, read linearly from a random one of the caption's end tokens."""
    device = module.text_encoder.device
    texts, truth = [], []
    for captions in batch:
        caption = captions[rng.integers(len(captions))]
        words = VIEW_WORDS[rng.integers(len(VIEW_WORDS))] if caption and rng.random() < 0.5 else ""
        texts.append(join_words(caption, words) if words else caption)
        truth.append([*facts(caption), ("", *VIEW_WORDS).index(words)])
    ids = module.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    ends = torch.multinomial((ids == module.tokenizer.eos_token_id).float(), 1)[:, 0]
    features = module.text_encoder(ids.to(device)).last_hidden_state[torch.arange(len(ids)), ends.to(device)]
    return facts_loss(module.heads, features, truth)


def train_text(settings: Settings) -> CLIPTextModel:
    return fit("text", TextReader(), caption_example, reading_loss, None, settings.text, settings).text_encoder


# ----------------------------------------------------------------------------------------------------------- teachers


class Denoiser(nn.Module):
    """A UNet and the frozen text encoder that it listens to."""

    def __init__(self, multiview: bool, text_encoder: CLIPTextModel):
        super().__init__()
        self.tokenizer = models.build_tokenizer()
        self.text_encoder = copy.deepcopy(text_encoder).eval().requires_grad_(False)
        self.unet = models.build_unet(multiview).to(memory_format=torch.channels_last)
        if multiview:
            join_views(self.unet, models.VIEWS)

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """[B, L, D] text embedding."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.unet.device)).last_hidden_state


@dataclass
class LatentGroup:
    latents: Tensor
    """[V, 4, h, w] scaled VAE latents."""
    group: Group
    """Cameras and captions; its images are dropped."""


def latent_example(seed: int, vae: AutoencoderKL, *, size: int, grouped: bool) -> LatentGroup:
    group = make_group(seed, views=models.VIEWS, size=size, grouped=grouped)
    with torch.no_grad():
        latents = vae.encode(group.images.to(vae.device) * 2 - 1).latent_dist.mean * vae.config["scaling_factor"]
    group.images = torch.empty(0)
    return LatentGroup(latents.cpu(), group)


def choose_caption(captions: tuple[str, ...], rng: np.random.Generator) -> str:
    """The most specific caption three times in four, else any; one in ten is empty, for classifier-free guidance."""
    if rng.random() < 0.1:
        return ""
    return captions[0] if rng.random() < 0.75 else captions[rng.integers(len(captions))]


def denoising_loss(
    denoiser: Denoiser,
    batch: list[LatentGroup],
    rng: np.random.Generator,
    *,
    scheduler: DDIMScheduler,
    multiview: bool,
) -> Tensor:
    """Squared error of the v-prediction (Salimans & Ho 2022), one time per group of views."""
    device, views = denoiser.unet.device, models.VIEWS
    z = torch.cat([item.latents for item in batch]).to(device)
    captions = [choose_caption(item.group.captions, rng) for item in batch for _ in range(1 if multiview else views)]
    if multiview:
        texts = [caption for caption in captions for _ in range(views)]
        t = draw_times(len(batch), rng, COARSE_TIMES).repeat_interleave(views)
        cameras = torch.cat([item.group.cameras for item in batch]).to(device)
    else:
        words = [w for item in batch for w in item.group.view_words]
        texts = [join_words(c, w) if c and rng.random() < 0.85 else c for c, w in zip(captions, words, strict=True)]
        t = draw_times(len(z), rng, REFINE_TIMES)
        cameras = None
    noise = torch.randn_like(z)
    x = scheduler.add_noise(z, noise, t)
    target = scheduler.get_velocity(z, noise, t)
    v = denoiser.unet(x, t.to(device), denoiser.embed(texts), class_labels=cameras).sample
    return F.mse_loss(v.float(), target)


COARSE_TIMES = ((0.0, 0.0), (0.05, 200.0), (0.35, 600.0), (1.0, 1000.0))
REFINE_TIMES = ((0.0, 0.0), (0.05, 50.0), (0.75, 500.0), (1.0, 1000.0))
"""(share of the draws, t below which they lie): most where the stage that the teacher serves spends its steps."""


def draw_times(count: int, rng: np.random.Generator, shares: tuple[tuple[float, float], ...]) -> Tensor:
    """[count] int64 times in [0, 1000), one in each of `count` equal shares of the distribution."""
    strata = (np.arange(count) + rng.random(count)) / count
    return torch.from_numpy(np.interp(strata, [share for share, _ in shares], [t for _, t in shares])).long()


SHEET_PROMPTS = (
    "a yellow duck",
    "a red mushroom with a white stem",
    "a snowman with a blue hat",
    "a green chair",
    "a blue mug",
    "a white house with a red roof",
    "a yellow duck on a brown table",
    "a pink rocket",
)


@torch.no_grad()
def ddim(denoiser: Denoiser, texts: list[str], cameras: Tensor | None, *, cfg: float, steps: int, seed: int) -> Tensor:
    """[B, 4, h, w] latents sampled with DDIM and classifier-free guidance."""
    scheduler = models.build_scheduler()
    scheduler.set_timesteps(steps)
    device, size = denoiser.unet.device, denoiser.unet.config["sample_size"]
    x = torch.randn(len(texts), models.LATENT_CHANNELS, size, size, generator=torch.Generator().manual_seed(seed))
    x = x.to(device)
    context = denoiser.embed([""] * len(texts) + texts)
    labels = None if cameras is None else torch.cat([cameras, cameras]).to(device)
    for t in scheduler.timesteps:
        v_empty, v_text = denoiser.unet(torch.cat([x, x]), t, context, class_labels=labels).sample.chunk(2)
        x = scheduler.step(v_empty + cfg * (v_text - v_empty), t, x).prev_sample
    return x


def sample_sheet(denoiser: Denoiser, vae: AutoencoderKL, *, multiview: bool) -> Image.Image:
    """Four views of each of the prompts above."""
    cameras = turntable(models.VIEWS, size=64)
    repeated = [prompt for prompt in SHEET_PROMPTS for _ in range(models.VIEWS)]
    if multiview:
        latents = ddim(
            denoiser, repeated, mvdream_matrices(cameras).repeat(len(SHEET_PROMPTS), 1), cfg=4.0, steps=30, seed=0
        )
    else:
        azimuths = [0.0, 90.0, 180.0, 270.0] * len(SHEET_PROMPTS)
        texts = [with_view(p, a, 15.0) for p, a in zip(repeated, azimuths, strict=True)]
        latents = ddim(denoiser, texts, None, cfg=4.0, steps=30, seed=0)
    return tile(vae.decode(latents / vae.config["scaling_factor"]).sample / 2 + 0.5, 2 * models.VIEWS)


def train_denoiser(
    settings: Settings, vae: AutoencoderKL, text_encoder: CLIPTextModel, start_from: Denoiser | None
) -> Denoiser:
    """The multi-view teacher, or (given one to start from) the single-view teacher."""
    multiview = start_from is None
    name, size = ("multiview", models.MULTIVIEW_SIZE) if multiview else ("singleview", models.SINGLEVIEW_SIZE)
    denoiser, scheduler = Denoiser(multiview, text_encoder), models.build_scheduler()
    if start_from is not None:
        weights = {k: v for k, v in start_from.unet.state_dict().items() if not k.startswith("class_embedding.")}
        denoiser.unet.load_state_dict(weights)

    def loss_of(module: Denoiser, batch: list[LatentGroup], rng: np.random.Generator) -> Tensor:
        return denoising_loss(module, batch, rng, scheduler=scheduler, multiview=multiview)

    return fit(
        name,
        denoiser,
        lambda seed: latent_example(seed, vae, size=size, grouped=multiview),
        loss_of,
        lambda average: sample_sheet(average, vae, multiview=multiview),
        getattr(settings, name),
        settings,
    )


# ------------------------------------------------------------------------------------------------------------- scorer


class Clip(nn.Module):
    """A CLIP and its tokenizer; its text tower starts as one that can read."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.tokenizer = models.build_tokenizer()
        self.clip = models.build_clip(self.tokenizer)
        self.clip.text_model.load_state_dict(text_encoder.state_dict())
        self.heads = fact_heads(*FACTS)

    def compare(self, images: Tensor, texts: list[str]) -> CLIPOutput:
        """CLIP's output for images [B, 3, 64, 64] in [0, 1] and P texts; its logits_per_image are [B, P]."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return self.clip(input_ids=tokens.input_ids.to(images.device), pixel_values=images * 2 - 1)


def scorer_example(seed: int) -> Group:
    """Views of any object: the judge knows also the (kind, colour) pairs that the teachers never see."""
    group = make_group(seed, views=2, size=models.CLIP_SIZE, grouped=False, allow_withheld=True)
    group.images = (group.images * 255).round().to(torch.uint8)
    return group


def degrade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, noise and contrast changes, so that the scorer judges the object and not the renderer."""
    if rng.random() < 0.5:
        small = int(rng.integers(28, 60))
        images = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True)
        images = F.interpolate(images, size=(models.CLIP_SIZE,) * 2, mode="bilinear")
    contrast = 0.8 + 0.4 * torch.rand(len(images), 1, 1, 1, device=images.device)
    images = (images - 0.5) * contrast + 0.5
    return (images + 0.06 * rng.random() * torch.randn_like(images)).clamp(0, 1)


def contrastive_loss(module: Clip, batch: list[Group], rng: np.random.Generator) -> Tensor:
    """CLIP's symmetric cross-entropy, where images of equal captions are all right answers (SupCon); and what is in the
    picture must be read linearly from its features, which teaches far more per picture than telling a few apart."""
    device = module.clip.device
    texts = [g.captions[0] if rng.random() < 0.7 else g.captions[rng.integers(len(g.captions))] for g in batch]
    images = torch.stack([g.images[rng.integers(len(g.images))] for g in batch]).to(device).float() / 255
    output = module.compare(degrade(images, rng), texts)
    logits = output.logits_per_image
    same = torch.tensor([[a == b for b in texts] for a in texts], device=device).float()
    same = same / same.sum(1, keepdim=True)
    contrast = 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))
    seen = output.vision_model_output.pooler_output
    return contrast + facts_loss(module.heads, seen, [facts(g.captions[0]) for g in batch])


def train_scorer(settings: Settings, text_encoder: CLIPTextModel) -> Clip:
    """A CLIP over all (kind, colour) pairs."""
    held = [scorer_example(seed) for seed in range(64)]

    def sheet(average: Clip) -> Image.Image:
        """Held-out retrieval goes to the console; the sheet shows the pictures it was measured on."""
        texts = [g.captions[0] for g in held]
        images = torch.stack([g.images[0] for g in held]).to(average.clip.device).float() / 255
        with torch.no_grad():
            best = average.compare(images, texts).logits_per_image.argmax(1).tolist()
        right = sum(texts[i] == text for i, text in zip(best, texts, strict=True))
        tqdm.write(f"scorer: {right} of {len(held)} held-out images retrieve their caption among {len(held)}")
        return tile(images, 16)

    return fit("scorer", Clip(text_encoder), scorer_example, contrastive_loss, sheet, settings.scorer, settings)


# ------------------------------------------------------------------------------------------------------------- export


def export_teacher(denoiser: Denoiser, vae: AutoencoderKL, folder: Path) -> None:
    """Write one teacher as a diffusers folder in float16."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=copy.deepcopy(denoiser.text_encoder).half(),
        tokenizer=denoiser.tokenizer,
        unet=copy.deepcopy(denoiser.unet).half(),
        scheduler=models.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def main(settings: Settings) -> None:
    print(f"training {', '.join(settings.parts)} on {settings.device} into {settings.out}")
    parts, folder = set(settings.parts), settings.out / "export"
    if parts - {"scorer", "text"}:
        vae = train_vae(settings).eval().requires_grad_(False)
    if parts - {"vae"}:
        text_encoder = train_text(settings)
    if parts & {"multiview", "singleview", "export"}:
        multiview = train_denoiser(settings, vae, text_encoder, None)
        export_teacher(multiview, vae, folder / "multiview")
    if parts & {"singleview", "export"}:
        export_teacher(train_denoiser(settings, vae, text_encoder, multiview), vae, folder / "singleview")
    if parts & {"scorer", "export"}:
        scorer = train_scorer(settings, text_encoder)
        copy.deepcopy(scorer.clip).half().save_pretrained(folder / "scorer")
        scorer.tokenizer.save_pretrained(folder / "scorer")


if __name__ == "__main__":
    main(tyro.cli(Settings, prog="python -m gscfd.toybox.train_teachers"))
