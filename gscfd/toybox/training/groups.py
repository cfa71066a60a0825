"""Rendered groups of views as training data, made once by worker processes and kept in files.

    python -m gscfd.toybox.training.groups --out DIR --count 20000 --workers 2

A file holds SHARD groups, named by the seed of its first. The same seeds give the same files: what is there is kept.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import torch
import tyro
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from gscfd.cameras import azimuth_elevation, mvdream_matrices, sample_group
from gscfd.cli import exit_code
from gscfd.config import check
from gscfd.errors import UserError
from gscfd.prompts import view_words
from gscfd.toybox.data import FOV, RADIUS, colors_and_opacity, free_views, spacing_for
from gscfd.toybox.objects import ToyObject, sample_object
from gscfd.types import Cameras

VIEWS = 4
SHARD = 500
"""Groups in a file."""
AHEAD = 3
"""Files that are asked for at a time, per worker."""
ENDLESS = 10**9
"""Groups: more than any training waits for."""
ELEVATION = (0.0, 30.0)
"""Degrees: where the coarse stage looks from."""
WIDE_ELEVATION = (-10.0, 50.0)
WIDE_SHARE = 0.2
"""Share of the groups that look from further below and above, for what comes after the coarse stage."""


@dataclass
class Groups:
    """N groups of V views of one object each."""

    layers: Tensor
    """[N, V, 4, H, W] uint8: colors times opacity, and opacity."""
    cameras: Tensor
    """[N, V, 16] MVDream camera matrices."""
    captions: list[list[str]]
    """[N] true captions of each object, the most specific first."""
    view_words: list[list[str]]
    """[N][V] "front view", ..."""

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, some: slice) -> Groups:
        return Groups(self.layers[some], self.cameras[some], self.captions[some], self.view_words[some])


def composite(layers: Tensor, background: Tensor) -> Tensor:
    """[..., 3, H, W] in [0, 1]: layers [..., 4, H, W] uint8 over a background [..., 3]."""
    layers = layers.float() / 255
    return layers[..., :3, :, :] + (1 - layers[..., 3:, :, :]) * background[..., None, None]


def render_layers(thing: ToyObject, cameras: Cameras) -> Tensor:
    """[V, 4, H, W] uint8: colors times opacity, and opacity."""
    layers = torch.cat(colors_and_opacity(thing, cameras), -1).clamp(0, 1).permute(0, 3, 1, 2)
    return (layers * 255).round().to(torch.uint8).contiguous()


def group_cameras(size: int, generator: torch.Generator) -> Cameras:
    """Four views at equal azimuth steps."""
    wide = torch.rand((), generator=generator).item() < WIDE_SHARE
    return sample_group(
        VIEWS,
        elevation=WIDE_ELEVATION if wide else ELEVATION,
        fov=FOV,
        radius=RADIUS,
        size=size,
        generator=generator,
    )


def make_shard(first_seed: int, *, size: int, grouped: bool, count: int = SHARD) -> Groups:
    """The groups of `count` seeds. grouped: views at equal azimuth steps, else independent."""
    layers, matrices, captions, words = [], [], [], []
    for seed in range(first_seed, first_seed + count):
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([11, seed]).generate_state(1)[0]))
        thing = sample_object(seed, spacing=spacing_for(size))
        cameras = group_cameras(size, generator) if grouped else free_views(VIEWS, size, generator)
        azimuth, elevation = azimuth_elevation(cameras)
        layers.append(render_layers(thing, cameras))
        matrices.append(mvdream_matrices(cameras))
        captions.append(list(thing.captions))
        words.append([view_words(a, e) for a, e in zip(azimuth.tolist(), elevation.tolist(), strict=True)])
    return Groups(torch.stack(layers), torch.stack(matrices).float(), captions, words)


def write_shard(groups: Groups, file: Path) -> None:
    """Whole or not at all. Raises UserError if it cannot be written, as on a full disk."""
    texts = {"captions": json.dumps(groups.captions), "view_words": json.dumps(groups.view_words)}
    partial = file.with_suffix(".partial")
    try:
        save_file({"layers": groups.layers, "cameras": groups.cameras}, partial, metadata=texts)
        os.replace(partial, file)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"out: expected a folder with room for rendered groups, got {file.parent} ({error}); free space, and the "
            "same command goes on"
        ) from error


def read_shard(file: Path) -> Groups:
    """Raises UserError for a damaged file."""
    try:
        with safe_open(file, "pt") as opened:
            texts = opened.metadata()
            layers, cameras = opened.get_tensor("layers"), opened.get_tensor("cameras")
        return Groups(layers, cameras, json.loads(texts["captions"]), json.loads(texts["view_words"]))
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{file}: expected rendered groups, got {error}; delete it, and it is made again") from error


def shard_files(folder: Path) -> list[Path]:
    """The finished files, in the order of their seeds."""
    return sorted(folder.glob("*.safetensors"), key=lambda file: int(file.stem))


def make_file(file: Path, size: int, grouped: bool) -> Path:
    """What a worker does: one file, on one thread."""
    torch.set_num_threads(1)
    if not file.exists():
        write_shard(make_shard(int(file.stem), size=size, grouped=grouped), file)
    return file


def start_worker() -> None:
    """Puts this process behind everything else that runs, and ends it with its parent."""
    os.nice(19)
    leave_with_parent()


def leave_with_parent() -> None:
    """Ends this process when its parent ends, however that ends: a worker of a killed one waits for work for ever."""
    parent = parent_process()
    assert parent is not None

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, name="leave with parent", daemon=True).start()


def make_files(folder: Path, first_seed: int, count: int, *, size: int, grouped: bool, workers: int) -> Iterator[Path]:
    """The files of `count` groups, in the order of their seeds, as they are finished. Only a few are under way at a
    time: after an error or Ctrl-C nothing else is rendered."""
    folder.mkdir(parents=True, exist_ok=True)
    under_way = deque[Future[Path]]()
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=start_worker) as pool:
        try:
            for seed in range(first_seed, first_seed + count, SHARD):
                under_way.append(pool.submit(make_file, folder / f"{seed}.safetensors", size, grouped))
                if len(under_way) == AHEAD * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def render_on(folder: Path, first_seed: int, *, size: int, grouped: bool, workers: int) -> None:
    """Renders groups into the folder until this process, a child of the one that reads them, is ended."""
    leave_with_parent()
    for _ in make_files(folder, first_seed, ENDLESS, size=size, grouped=grouped, workers=workers):
        pass


@dataclass(kw_only=True)
class Settings:
    """Render groups of views of the toybox world into files."""

    out: Path
    count: int = 20_000
    """Groups, each of four views."""
    first_seed: int = 3_000_000
    """Of the objects."""
    size: int = 64
    """Pixels of a view, both ways."""
    grouped: bool = True
    """Four views at equal azimuth steps, for the multi-view teacher; else independent ones."""
    workers: int = max(1, (os.cpu_count() or 1) - 1)


def main() -> None:
    settings = tyro.cli(Settings, prog="python -m gscfd.toybox.training.groups")
    for name in ("count", "size", "workers"):
        check(getattr(settings, name) >= 1, name, "at least 1", getattr(settings, name))
    made = make_files(
        settings.out,
        settings.first_seed,
        settings.count,
        size=settings.size,
        grouped=settings.grouped,
        workers=settings.workers,
    )
    for _ in tqdm(made, total=-(-settings.count // SHARD), unit="file"):
        pass


if __name__ == "__main__":
    sys.exit(exit_code(main))
