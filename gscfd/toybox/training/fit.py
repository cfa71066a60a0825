"""The training loop of all parts: example pool, schedule, averaged weights, resuming."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from gscfd.errors import UserError, warn
from gscfd.toybox.training import states

Example = TypeVar("Example")
Model = TypeVar("Model", bound=nn.Module)
PARTS = ("vae", "text", "multiview", "singleview", "scorer", "export")


@dataclass(kw_only=True)
class Recipe:
    """Training settings of one part."""

    steps: int
    """Optimizer steps."""
    batch: int
    """Examples per step; an example is a group of views."""
    lr: float = 8e-4
    """Peak learning rate of AdamW; warms up over 100 steps, then falls to zero along a cosine."""
    reuse: float = 3.0
    """Average number of times an example is used before it leaves the pool."""
    pool: int = 4096
    """Number of examples kept in memory."""
    ema: float = 0.999
    """Decay of the averaged weights, which are exported."""


@dataclass(kw_only=True)
class TrainingOptions:
    out: Path
    """Folder for checkpoints, sample sheets and the exported teachers."""
    parts: tuple[str, ...] = PARTS
    """Parts to train; parts they depend on are loaded, or trained first."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    bf16: bool = True
    """Use autocast to bfloat16 on CUDA. CPUs use float32: without AMX, bfloat16 is slower there."""
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
    """A ring buffer of recent examples, so that generating data takes only a fraction of a step."""

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
    settings: TrainingOptions,
) -> Model:
    """Trains `module`, resuming from `settings.out / name / state.pt` if it exists; returns the averaged weights.

    Raises UserError for a state of another module, for one that is damaged, and for a loss that is not finite.
    """
    device = torch.device(settings.device)
    folder = settings.out / name
    folder.mkdir(parents=True, exist_ok=True)
    module.to(settings.device).train()
    average = copy.deepcopy(module).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01)
    start, next_seed = 0, 1_000_000 * (1 + PARTS.index(name) + 10 * settings.seed)
    if (state := states.newest(folder / "state.pt", device)) is not None:
        load(state, folder, module, average, optimizer)
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
        states.save(state, folder / "state.pt")
        try:
            if sheet is not None:
                sheet(average).save(folder / "samples.png")
            with open(folder / "loss.csv", "a") as file:
                file.write(f"{step},{smooth:.5f}\n")
        except OSError as error:
            warn(f"{folder}: the samples and the loss could not be saved ({error}); training goes on")

    for step in progress:
        rng = np.random.default_rng([settings.seed, PARTS.index(name), step])
        torch.manual_seed(int(rng.integers(2**62)))
        # The learning rate warms up, then falls to zero along a cosine.
        fraction = step / recipe.steps
        lr = recipe.lr * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * fraction))
        for group in optimizer.param_groups:
            group["lr"] = lr
        # One step. Examples are made in float32.
        batch = pool.draw(recipe.batch, rng)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16 and device.type == "cuda"):
            loss = loss_of(module, batch, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        # Average the weights over a window that grows during the run.
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), module.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        # Report and save.
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"{name}.lr: expected finite losses, got {value} at step {step}; try a smaller one")
        smooth = value if math.isnan(smooth) else 0.99 * smooth + 0.01 * value
        progress.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if time.monotonic() - saved > 300:
            save(step + 1)
            saved = time.monotonic()
    if start < recipe.steps:
        save(recipe.steps)
    return average


def load(
    state: dict[str, Any], folder: Path, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Takes over a state. Raises UserError for one of another module, such as that of an earlier version."""
    try:
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (LookupError, RuntimeError, ValueError) as error:
        raise UserError(
            f"out: expected the state of this network in {folder}, got another's ({str(error)[:200]}); choose another "
            "folder, or delete that one to train it anew"
        ) from error


def tile(images: Tensor, columns: int) -> Image.Image:
    """Returns a contact sheet of images [B, 3, H, W] in [0, 1]."""
    rows = images.float().cpu().clamp(0, 1).unflatten(0, (-1, columns))
    sheet = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((sheet.numpy() * 255).round().astype(np.uint8))
