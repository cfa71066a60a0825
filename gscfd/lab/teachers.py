"""How good a toybox teacher is, behind `python -m gscfd.toybox.measure TEACHER`.

Three things are measured: its latent space, on true views; its denoising, against the exact posterior mean over many
objects of one caption; and its samples, by the shipped scorer and by the true objects that they come nearest to.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gscfd.cameras import sample_group
from gscfd.cli import check_out
from gscfd.config import first
from gscfd.distil.sampling import sample
from gscfd.errors import UserError
from gscfd.files import write_text
from gscfd.lab.ideal import border_color, posterior_mean
from gscfd.lab.judges import SCORER, Scorer
from gscfd.lab.metrics import frechet_distance, moments, r_precision
from gscfd.lab.options import MeasureOptions
from gscfd.lab.references import sampled_views
from gscfd.pictures import random_background, write_contact_sheet
from gscfd.teachers.base import Prompt
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.load import load_teacher
from gscfd.toybox.data import FOV, RADIUS, make_group, render_object, spacing_for
from gscfd.toybox.objects import ToyObject
from gscfd.toybox.truth import KNOWN_PROMPTS, TRIES, WITHHELD_PROMPTS, true_objects
from gscfd.toybox.words import parse_caption
from gscfd.types import Cameras

TIMES = (0.9, 0.7, 0.5, 0.3, 0.15, 0.05)
"""At which denoising is measured, as shares of T."""
VIEWS = 4
HELD_OUT_SEED = 900_000_000
"""First of the objects that no teacher was trained on."""
TRIES_PER_OBJECT = 100
"""Seeds looked at for each object that a caption is asked to have."""
CHUNK = 64
"""Images encoded at a time."""


def objects_of(prompt: str, count: int, size: int) -> list[ToyObject]:
    """Objects that the prompt describes, made for views of this many pixels. Raises UserError if there are not so
    many."""
    found = list(true_objects(prompt, count, spacing=spacing_for(size), tries=max(TRIES, TRIES_PER_OBJECT * count)))
    if len(found) < count:
        raise UserError(
            f"prompts: expected captions of single toybox objects, got {prompt!r}, which {len(found)} of {count} have; "
            "give another, such as 'a blue mug'"
        )
    return found


def group_of(size: int, generator: torch.Generator) -> Cameras:
    """Four views at equal azimuth steps, as teachers are trained on."""
    return sample_group(VIEWS, elevation=(0, 30), fov=FOV, radius=RADIUS, size=size, generator=generator)


# -------------------------------------------------------------------------------------------------------------- space


def encoded(teacher: GuidedTeacher, images: Tensor) -> Tensor:
    """[B, C, h, w] of images [B, 3, H, W] in [0, 1]; without gradient."""
    with torch.no_grad():
        return torch.cat([teacher.encode(chunk) for chunk in images.split(CHUNK)])


def median_ms(work: Callable[[], object], repeats: int = 15) -> float:
    """Of processor time, all threads together."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1000 * sorted(times)[repeats // 2]


def encoder_ms(teacher: GuidedTeacher, views: int, size: int) -> float:
    """Processor time of encoding `views` images forward and backward."""
    images = torch.rand(views, 3, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    space = teacher.space
    before, space.image_size = space.image_size, size
    spent = median_ms(lambda: space.encode(images).square().sum().backward())
    space.image_size = before
    return spent


def smoothness(teacher: GuidedTeacher, images: Tensor) -> float:
    """How much latents of views blended half and half, [B, 3, H, W] each, miss the blend of their latents, relative to
    the latents' spread: 0 for a linear space."""
    z, other = encoded(teacher, images), encoded(teacher, images.roll(1, 0))
    blended = encoded(teacher, (images + images.roll(1, 0)) / 2)
    return ((blended - (z + other) / 2).square().mean() / z.var()).sqrt().item()


def measure_space(teacher: GuidedTeacher, count: int) -> dict[str, float]:
    """On `count` groups of views of objects that the teacher was not trained on."""
    size = teacher.image_size
    groups = [make_group(HELD_OUT_SEED + i, views=VIEWS, size=size, grouped=True) for i in range(count)]
    images = torch.cat([group.images for group in groups])
    z = encoded(teacher, images)
    decoded = torch.cat([teacher.decode(chunk) for chunk in z.split(CHUNK)])
    error = (decoded - images).square().mean((1, 2, 3))
    return {
        "channels": z.shape[1],
        "reconstruction_db": (-10 * error.log10()).mean().item(),
        "pooled_reconstruction_db": -10 * math.log10(error.mean().item()),
        "rms": z.square().mean().sqrt().item(),
        "bend": smoothness(teacher, images),
        "coarse_encoder_ms": encoder_ms(teacher, 4, 64),
        "refine_encoder_ms": encoder_ms(teacher, 1, 128),
    }


# ---------------------------------------------------------------------------------------------------------- denoising


def covered(things: list[ToyObject], cameras: Cameras, cells: int) -> Tensor:
    """[K, V, cells, cells] bool: where an object is seen."""
    black, white = (
        torch.stack([render_object(thing, cameras, torch.full((3,), level)) for thing in things])
        for level in (0.0, 1.0)
    )
    opacity = 1 - (white - black).mean(2)
    return F.adaptive_max_pool2d(opacity, cells) > 0.1


@torch.no_grad()
def measure_denoising(
    teacher: GuidedTeacher, prompt: str, objects: int, draws: int, generator: torch.Generator
) -> dict[float, tuple[float, float]]:
    """For each of TIMES, the squared distance of the teacher's denoised latents from the ideal ones, relative to the
    variance of the true latents: in cells with an object, and in the others."""
    size, cells = teacher.image_size, teacher.latent_shape[-1]
    things = objects_of(prompt, objects, size)
    cameras, background = group_of(size, generator), random_background(generator)
    known = torch.stack([encoded(teacher, render_object(thing, cameras, background)) for thing in things])
    teacher.set_prompt(Prompt(text=prompt, cfg=1.0))
    chosen = torch.randperm(len(things), generator=generator)[:draws].tolist()
    masks = covered([things[i] for i in chosen], cameras, cells)
    found = {}
    for share in TIMES:
        t = round(share * teacher.timesteps)
        alpha, sigma = teacher.alpha_sigma(t)
        errors = []
        for i in chosen:
            x = alpha * known[i] + sigma * torch.randn(known[i].shape, generator=generator)
            guess = (x - sigma * teacher.predict_eps(x, t, cameras, cfg=1)) / alpha
            ideal = posterior_mean(x, known, alpha, sigma, joint=teacher.multiview)
            errors.append((guess - ideal).square().mean(1))
        error = torch.stack(errors) / known.var()
        found[share] = (error[masks].mean().item(), error[~masks].mean().item())
    return found


def mean_of(tables: list[dict[float, tuple[float, float]]]) -> dict[float, tuple[float, float]]:
    return {
        share: (
            sum(table[share][0] for table in tables) / len(tables),
            sum(table[share][1] for table in tables) / len(tables),
        )
        for share in TIMES
    }


# ------------------------------------------------------------------------------------------------------------ samples


def nearest_db(images: Tensor, things: list[ToyObject], cameras: Cameras) -> float:
    """PSNR of the views to those of the true object that is nearest to them; at most 100."""
    background = border_color(images)
    errors = [(render_object(thing, cameras, background) - images).square().mean().item() for thing in things]
    return -10 * math.log10(max(min(errors), 1e-10))


@dataclass(frozen=True)
class Sampled:
    """What the samples of one prompt are like."""

    prompt: str
    r_precision: float
    similarity: float
    nearest_db: float | None
    """None for a scene of two objects."""


@torch.no_grad()
def measure_samples(
    teacher: GuidedTeacher, prompts: list[str], settings: MeasureOptions
) -> tuple[list[Sampled], float | None, Tensor]:
    """Of each prompt; the Frechet distance of the scorer's features to those of true views, None if all prompts are
    scenes of two objects; and all views."""
    scorer, generator = Scorer(SCORER), torch.Generator().manual_seed(settings.seed)
    cfg = first(settings.cfg, teacher.sampling_cfg)
    rows, views, features, truths = [], [], [], []
    for truth, prompt in enumerate(prompts):
        teacher.set_prompt(Prompt(text=prompt, cfg=cfg, cfg_rescale=settings.cfg_rescale))
        two = (said := parse_caption(prompt)) is not None and said.on_kind is not None
        things = [] if two else objects_of(prompt, settings.nearest, teacher.image_size)
        near, seen = [], []
        for _ in range(settings.groups):
            cameras = sampled_views(teacher.image_size, generator)
            images = sample(teacher, cameras, steps=settings.steps, generator=generator)
            seen.append(images)
            if things:
                near.append(nearest_db(images, things, cameras))
                truths += [render_object(thing, cameras, border_color(images)) for thing in things[:4]]
        pictures = torch.cat(seen)
        similarity = scorer.similarity(pictures, prompts)
        rows.append(
            Sampled(
                prompt,
                r_precision(similarity, truth),
                similarity[:, truth].mean().item(),
                sum(near) / len(near) if near else None,
            )
        )
        views.append(pictures)
        if things:
            features.append(scorer.image_features(pictures))
        print(row_text(rows[-1]), flush=True)
    if not truths:
        return rows, None, torch.cat(views)
    true_features = scorer.image_features(torch.cat(truths))
    return rows, frechet_distance(moments(torch.cat(features)), moments(true_features)), torch.cat(views)


def row_text(row: Sampled) -> str:
    near = "" if row.nearest_db is None else f"{row.nearest_db:.2f} dB"
    return f"| {row.prompt} | {row.r_precision:.0%} | {row.similarity:.3f} | {near} |"


# ------------------------------------------------------------------------------------------------------------ command


def check_settings(settings: MeasureOptions) -> None:
    """Raises UserError."""
    for name in ("objects", "draws", "groups", "nearest", "steps"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name}: expected at least 1, got {getattr(settings, name)}; give a larger number")
    if not settings.captions:
        raise UserError("captions: expected at least one, got none; leave the option out for the usual ones")
    for name, texts in (("captions", settings.captions), ("prompts", settings.prompts or ())):
        for text in texts:
            said = parse_caption(text)
            if said is None or (name == "captions" and said.on_kind is not None):
                wanted = "toybox captions" if name == "prompts" else "captions of single toybox objects"
                raise UserError(f"{name}: expected {wanted}, got {text!r}; give another, such as 'a blue mug'")
    if settings.out is not None:
        check_out(settings.out, ".json", overwrite=True)


def space_text(space: dict[str, float]) -> str:
    return (
        f"space: {space['channels']} channels, reconstruction {space['reconstruction_db']:.2f} dB (mean over views) "
        f"{space['pooled_reconstruction_db']:.2f} dB (pooled), rms {space['rms']:.2f}, bend {space['bend']:.3f}; "
        f"encoder forward and backward {space['coarse_encoder_ms']:.1f} ms for 4 x 64 px, "
        f"{space['refine_encoder_ms']:.1f} ms for 128 px"
    )


def measure(settings: MeasureOptions) -> None:
    check_settings(settings)
    teacher = load_teacher(settings.teacher, device="cpu")
    space = measure_space(teacher, 32)
    print(space_text(space), flush=True)
    generator = torch.Generator().manual_seed(settings.seed)
    denoising = mean_of(
        [measure_denoising(teacher, c, settings.objects, settings.draws, generator) for c in settings.captions]
    )
    print("| t | object | background |\n|---|---|---|")
    for share, (inside, outside) in denoising.items():
        print(f"| {share} | {inside:.4f} | {outside:.4f} |", flush=True)
    found: dict[str, object] = {"settings": asdict(replace(settings, out=None)), "space": space}
    found["excess"] = {str(share): errors for share, errors in denoising.items()}
    prompts = KNOWN_PROMPTS + WITHHELD_PROMPTS if settings.prompts is None else settings.prompts
    if prompts:
        print("| prompt | R-precision | similarity | nearest true object |\n|---|---|---|---|")
        rows, distance, views = measure_samples(teacher, list(prompts), settings)
        found |= {"samples": [asdict(row) for row in rows], "frechet": distance}
        near = [row.nearest_db for row in rows if row.nearest_db is not None]
        words = [f"R-precision {sum(row.r_precision for row in rows) / len(rows):.1%}"]
        if distance is not None:
            words += [f"nearest true object {sum(near) / len(near):.2f} dB", f"Frechet distance {distance:.4f}"]
        print(f"all: {', '.join(words)}")
        if settings.out is not None:
            save_views(views, settings.out.with_suffix(".png"), columns=VIEWS * settings.groups)
    if settings.out is not None:
        write_text(json.dumps(found, indent=1), settings.out)


def save_views(images: Tensor, file: Path, columns: int) -> None:
    """A contact sheet of images [B, 3, H, W] in [0, 1]."""
    write_contact_sheet((images.permute(0, 2, 3, 1) * 255).round().byte().numpy(), file, columns=columns)
