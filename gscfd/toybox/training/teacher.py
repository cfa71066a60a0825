"""Train a toybox denoiser for a given time: `python -m gscfd.toybox.training.teacher --out DIR --space DIR --data DIR`.

The same command goes on where it was stopped. Everything of a step happens on the device: on CUDA it is one graph.
"""

from __future__ import annotations

import copy
import math
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from importlib import resources
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from diffusers import UNet2DConditionModel
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel

from gscfd.cli import exit_code
from gscfd.config import check
from gscfd.devices import choose_device, choose_dtype
from gscfd.errors import UserError, warn
from gscfd.teachers.load import Vae, read_vae
from gscfd.teachers.multiview import join_views
from gscfd.teachers.spaces import Latents
from gscfd.teachers.texts import read_text_model, read_tokenizer
from gscfd.teachers.weights import fill, read_weights
from gscfd.toybox import models
from gscfd.toybox.training import states
from gscfd.toybox.training.groups import VIEWS, read_shard, render_on, shard_files
from gscfd.toybox.training.pool import Pool

SHIPPED = Path(str(resources.files("gscfd.toybox"))) / "weights" / "multiview"
TIMES = {
    "multiview": ((0.0, 0.0), (0.12, 200.0), (0.5, 600.0), (1.0, 1000.0)),
    "singleview": ((0.0, 0.0), (0.1, 50.0), (0.6, 500.0), (1.0, 1000.0)),
}
"""(share of the draws, t below which they lie)."""
SIZES = {"multiview": models.MULTIVIEW_SIZE, "singleview": models.SINGLEVIEW_SIZE}
"""Pixels of a view, both ways."""
COOLDOWN = 0.2
"""Last share of the time, in which the learning rate falls to zero."""
WARMUP = 100
"""Steps in which the learning rate rises."""
STATE = "state.pt"
BINS = 10
"""Of t, in the table of losses."""
LOOK_EVERY = 50
"""Most steps between two looks at the loss, and for new data."""
LOOK_SECONDS = 60.0
"""Most time between them, where steps are slow."""
MOST_RESTARTS = 3
"""In a row, from the last good state."""


@dataclass(kw_only=True)
class Settings:
    """Train a toybox denoiser for a given time."""

    out: Path
    """State, losses and the exported teacher."""
    space: Path
    """The VAE, a folder in diffusers' layout."""
    data: Path
    """Rendered groups; files that appear while it trains are read, too."""
    kind: Literal["multiview", "singleview"] = "multiview"
    words: Path = SHIPPED
    """A teacher whose text encoder and tokenizer are taken."""
    start: Path | None = None
    """A UNet's folder to begin from."""
    channels: tuple[int, ...] = (48, 96, 192)
    """Width of the UNet at each resolution."""
    layers: int = 1
    """Residual blocks at each resolution."""
    minutes: float = 60.0
    """Of training, with the reading of the data; all runs of this command together."""
    batch: int = 8
    """Groups per step."""
    lr: float = 8e-4
    """Peak learning rate: constant, and falling to zero in the last fifth of the time."""
    ema: float = 0.9998
    """Most decay of the averaged weights, which are the ones exported; early on they average the last tenth."""
    capacity: int = 40_000
    """Groups on the device."""
    workers: int = 0
    """Processes that render more groups meanwhile."""
    save_minutes: float = 4.0
    """Between two saved states."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    seed: int = 0

    @property
    def recipe(self) -> dict[str, Any]:
        """What a state must agree in."""
        return {"kind": self.kind, "channels": list(self.channels), "layers": self.layers}


def time_table(shares: tuple[tuple[float, float], ...], size: int = 4096) -> Tensor:
    """[size] int64: the times at equal steps of their distribution."""
    u = (torch.arange(size) + 0.5) / size
    (low, start), *rest = shares
    table = torch.full((size,), start)
    for high, end in rest:
        inside = (u >= low) & (u < high)
        table[inside] = start + (u[inside] - low) / (high - low) * (end - start)
        low, start = high, end
    return table.long()


class Losses:
    """Mean losses by time, summed on the device."""

    def __init__(self, device: torch.device):
        self.sums, self.counts = torch.zeros(2, BINS, device=device)

    def add(self, loss: Tensor, t: Tensor) -> None:
        """loss, t: [B]."""
        bins = t * BINS // 1000
        self.sums.index_add_(0, bins, loss)
        self.counts.index_add_(0, bins, torch.ones_like(loss))

    def read(self) -> tuple[float, list[float]]:
        """The mean loss, and the mean in each bin; starts anew."""
        total = (self.sums.sum() / self.counts.sum()).item()
        each = (self.sums / self.counts).tolist()
        self.sums.zero_()
        self.counts.zero_()
        return total, each


class Clock:
    """The time since it was last asked."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def lap(self) -> float:
        """Returns the seconds since the last call, or since the clock was made."""
        before, self.last = self.last, time.monotonic()
        return self.last - before


class Training:
    """A denoiser in training: networks, optimizer, average; `step` is free of the host."""

    def __init__(self, settings: Settings, unet: UNet2DConditionModel, text: CLIPTextModel, vae: Vae, pool: Pool):
        self.settings, self.pool = settings, pool
        self.device = torch.device(settings.device)
        self.multiview = settings.kind == "multiview"
        self.unet = unet.to(self.device, memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(unet).eval().requires_grad_(False)
        for network in (self.unet, self.average):
            if self.multiview:
                join_views(network, VIEWS)
        self.text = text.to(self.device).eval().requires_grad_(False)
        frozen = vae.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.space = Latents(frozen, unet.config["sample_size"])
        squares = models.build_scheduler().alphas_cumprod.to(self.device)
        self.alphas, self.sigmas = squares.sqrt(), (1 - squares).sqrt()
        self.times = time_table(TIMES[settings.kind]).to(self.device)
        self.lr = torch.zeros((), device=self.device)
        self.decay = torch.zeros((), device=self.device)
        cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True, capturable=cuda
        )
        self.kept, self.trained = list(self.average.parameters()), list(self.unet.parameters())
        self.losses = Losses(self.device)
        self.steps, self.seconds = 0, 0.0

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 for the UNet, where that is faster."""
        fast = choose_dtype("auto", self.device) == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)

    def draw_times(self, groups: int) -> Tensor:
        """[B] one time per view, shared by the views of a group where they are denoised together; one in each of equal
        shares of the distribution."""
        count = groups if self.multiview else groups * VIEWS
        u = (torch.arange(count, device=self.device) + torch.rand(count, device=self.device)) / count
        t = self.times[(u * len(self.times)).long().clamp(max=len(self.times) - 1)]
        return t.repeat_interleave(VIEWS) if self.multiview else t

    def denoising_loss(self) -> Tensor:
        """Mean squared error of the v-prediction (Salimans & Ho 2022)."""
        batch = self.pool.draw(self.settings.batch)
        with torch.no_grad():
            z = self.space.encode(batch.images.contiguous(memory_format=torch.channels_last))
            features = self.text(batch.tokens).last_hidden_state
            t, noise = self.draw_times(self.settings.batch), torch.randn_like(z)
            alpha, sigma = (values[t][:, None, None, None] for values in (self.alphas, self.sigmas))
            x, target = alpha * z + sigma * noise, alpha * noise - sigma * z
        with self.autocast():
            v = self.unet(x, t, features, class_labels=batch.cameras if self.multiview else None).sample
        loss = F.mse_loss(v.float(), target, reduction="none").mean((1, 2, 3))
        self.losses.add(loss.detach(), t)
        return loss.mean()

    def step(self) -> None:
        self.denoising_loss().backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0, foreach=True)
        self.optimizer.step()
        torch._foreach_zero_([parameter.grad for parameter in self.trained])
        with torch.no_grad():
            torch._foreach_mul_(self.kept, self.decay)
            torch._foreach_add_(self.kept, torch._foreach_mul(self.trained, 1 - self.decay))

    def schedule(self) -> None:
        """Tell the device the learning rate and the decay of this step."""
        share = self.seconds / (60 * self.settings.minutes)
        falling = min(1.0, max(0.0, (1 - share) / COOLDOWN))
        self.lr.fill_(self.settings.lr * falling * min(1.0, (self.steps + 1) / WARMUP))
        self.decay.fill_(min(self.settings.ema, (1 + self.steps) / (10 + self.steps)))

    def captured(self) -> Callable[[], None]:
        """`step`, as one graph on CUDA."""
        if self.device.type != "cuda":
            return self.step
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay

    # State

    def state(self) -> dict[str, Any]:
        return {
            "recipe": self.settings.recipe,
            "unet": self.unet.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "steps": self.steps,
            "seconds": self.seconds,
        }

    def load_state(self, state: dict[str, Any], folder: Path) -> None:
        """Takes the values alone: a captured graph keeps its own tensors. Raises UserError for another recipe."""
        if state.get("recipe") != self.settings.recipe:
            raise UserError(
                f"out: expected a state of the recipe {self.settings.recipe}, got {state.get('recipe')} in {folder}; "
                "choose another folder, or give that recipe"
            )
        try:
            self.unet.load_state_dict(state["unet"])
            self.average.load_state_dict(state["average"])
        except RuntimeError as error:
            raise UserError(
                f"space: expected that of the state in {folder}, got {self.settings.space}, whose networks differ; "
                "give that space, or choose another --out"
            ) from error
        for i, parameter in enumerate(self.trained):
            kept = self.optimizer.state[parameter]
            for name, value in state["optimizer"][i].items():
                if name in kept:
                    kept[name].copy_(value)
                else:
                    kept[name] = value.clone()
        self.steps, self.seconds = state["steps"], state["seconds"]


def save_state(training: Training, folder: Path) -> None:
    """Saves the state, unless the last step has broken it: its loss is only that of the weights before it."""
    if all(bool(weight.isfinite().all()) for weight in training.kept):
        states.save(training.state(), folder / STATE)
    else:
        warn(f"expected finite weights at step {training.steps}, got others; the last saved state is kept")


def restore(training: Training, folder: Path) -> bool:
    """Reads the newest state that is whole; False where there is none. Raises UserError for one of another recipe, and
    if all are damaged."""
    state = states.newest(folder / STATE, training.device)
    if state is not None:
        training.load_state(state, folder)
    return state is not None


def build_unet(settings: Settings, vae: Vae) -> UNet2DConditionModel:
    """Random weights, or those of `start`."""
    multiview = settings.kind == "multiview"
    unet = models.build_unet(multiview, settings.channels, settings.layers, vae.config["latent_channels"])
    if settings.start is not None:
        state = {key: value.float() for key, value in read_weights(settings.start).items()}
        if not multiview:
            state = {key: value for key, value in state.items() if not key.startswith("class_embedding.")}
        fill(unet, state, settings.start)
    return unet


def prepare(settings: Settings) -> Training:
    torch.manual_seed(settings.seed)
    vae = read_vae(settings.space).float()
    tokenizer = read_tokenizer(settings.words / "tokenizer")
    text = read_text_model(CLIPTextModel, settings.words / "text_encoder").float()
    files = shard_files(settings.data)
    if not files:
        raise UserError(f"data: expected rendered groups in {settings.data}, got none; make them with training.groups")
    first, size = read_shard(files[0]), SIZES[settings.kind]
    if first.layers.shape[-1] != size:
        raise UserError(
            f"data: expected views of {size} pixels for a {settings.kind} teacher, got {first.layers.shape[-1]} in "
            f"{files[0]}; render others with training.groups --size {size}"
        )
    pool = Pool(
        settings.capacity,
        first,
        tokenizer,
        words=settings.kind == "singleview",
        device=torch.device(settings.device),
    )
    return Training(settings, build_unet(settings, vae), text, vae, pool)


def read_new(pool: Pool, folder: Path, known: set[Path]) -> None:
    """Put the files that are not known yet into the pool. One that cannot be used is warned of: it may be the last of
    many hours."""
    for file in shard_files(folder):
        if file not in known:
            known.add(file)
            try:
                pool.add(read_shard(file))
            except UserError as error:
                warn(f"{error}; training goes on without it")


def render_more(settings: Settings, first_seed: int) -> BaseProcess | None:
    """Workers that render further groups while this process trains."""
    if not settings.workers:
        return None
    numbers = {"size": SIZES[settings.kind], "grouped": settings.kind == "multiview", "workers": settings.workers}
    process = get_context("spawn").Process(target=render_on, args=(settings.data, first_seed), kwargs=numbers)
    process.start()
    return process


def export(training: Training, folder: Path) -> None:
    """The teacher of the averaged weights, a folder in diffusers' layout in float16."""
    copy.deepcopy(training.average).half().save_pretrained(folder / "unet")
    copy.deepcopy(training.space.vae).half().save_pretrained(folder / "vae")
    copy.deepcopy(training.text).half().save_pretrained(folder / "text_encoder")
    training.pool.tokenizer.save_pretrained(folder / "tokenizer")
    models.build_scheduler().save_pretrained(folder / "scheduler")


def write_losses(file: Path, training: Training, total: float, each: list[float]) -> None:
    if not file.exists():
        bins = ",".join(f"t<{(i + 1) * 1000 // BINS}" for i in range(BINS))
        file.write_text(f"step,minutes,groups,loss,{bins}\n")
    numbers = ",".join(f"{value:.5f}" for value in (total, *each))
    with open(file, "a") as opened:
        opened.write(f"{training.steps},{training.seconds / 60:.2f},{training.pool.added},{numbers}\n")


def train(training: Training, settings: Settings) -> None:
    """Until the time is over, which counts from here on: the data are read in it, too."""
    clock = Clock()
    known: set[Path] = set()
    read_new(training.pool, settings.data, known)
    restore(training, settings.out)
    torch.manual_seed(settings.seed + training.steps)
    training.schedule()
    step, restarts, saved, looked = training.captured(), 0, time.monotonic(), time.monotonic()
    training.seconds += clock.lap()
    limit = 60 * settings.minutes
    progress = tqdm(initial=training.steps, desc=settings.kind, unit="step", mininterval=10.0)
    while training.seconds < limit:
        training.schedule()
        step()
        training.steps += 1
        progress.update()
        training.seconds += clock.lap()
        due = training.steps % LOOK_EVERY == 0 or time.monotonic() - looked > LOOK_SECONDS
        if not due and training.seconds < limit:
            continue
        total, each = training.losses.read()  # waits for the device
        training.seconds += clock.lap()
        looked = time.monotonic()
        if not math.isfinite(total):
            restarts, at, spent = restarts + 1, training.steps, training.seconds
            if restarts > MOST_RESTARTS or not restore(training, settings.out):
                raise UserError(f"lr: expected finite losses, got {total} at step {at}; try a smaller one")
            warn(f"the loss was {total} at step {at}; training goes on from step {training.steps}, the last good state")
            training.seconds = spent  # the time is gone, although its steps are
            torch.manual_seed(settings.seed + training.steps + restarts)
            continue
        restarts = 0
        progress.set_postfix(loss=f"{total:.4f}", refresh=False)
        write_losses(settings.out / "losses.csv", training, total, each)
        read_new(training.pool, settings.data, known)
        if looked - saved > 60 * settings.save_minutes:
            save_state(training, settings.out)
            saved = looked
    save_state(training, settings.out)


def main() -> None:
    settings = tyro.cli(Settings, prog="python -m gscfd.toybox.training.teacher")
    for name in ("batch", "capacity"):
        check(getattr(settings, name) >= 1, name, "at least 1", getattr(settings, name))
    check(settings.workers >= 0, "workers", "at least 0", settings.workers)
    settings = replace(settings, device=str(choose_device(settings.device)))
    settings.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    training = prepare(settings)
    print(f"training {asdict(settings)}")
    last_seed = int(shard_files(settings.data)[-1].stem)
    workers = render_more(settings, last_seed)
    try:
        train(training, settings)
        export(training, settings.out / "teacher")
    finally:
        if workers is not None:
            workers.terminate()


if __name__ == "__main__":
    sys.exit(exit_code(main))
