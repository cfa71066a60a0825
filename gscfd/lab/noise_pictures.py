"""Pictures of a finished run's noise, painted on its splat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.cli import check_out
from gscfd.config import NoiseKind, check
from gscfd.errors import UserError
from gscfd.gaussians import Gaussians
from gscfd.lab.options import ShowNoiseOptions
from gscfd.noise import kinds
from gscfd.noise.field import NoiseField
from gscfd.noise.kinds import NOISES
from gscfd.noise_kernels import cells, cpu
from gscfd.pictures import as_bytes, write_contact_sheet, write_video
from gscfd.runs.names import read_run
from gscfd.types import Cameras, Render

SAMPLES = 4
"""Render samples per noise pixel in each direction."""
TURN = 10.0
"""Degrees between the two views of the correlation map."""
SHEET_FRAMES = 8


def check_settings(options: ShowNoiseOptions) -> None:
    """Raises UserError for a value out of range."""
    check(options.frames >= 2, "frames", "at least 2", options.frames)
    check(
        options.size >= 16 and options.size % SAMPLES == 0,
        "size",
        f"a multiple of {SAMPLES} from 16 up",
        options.size,
    )
    if options.out is not None:
        check(options.out.suffix == ".mp4", "out", "the name of an .mp4 file", str(options.out))
        for path in (options.out, *pictures_beside(options.out)):
            if path.exists():
                raise UserError(f"out: {path} exists; choose another --out, or remove it")


def pictures_beside(video: Path) -> tuple[Path, Path]:
    """Returns the pictures that belong to a video: the sheet of frames, and the map of shared noise."""
    return video.with_suffix(".png"), video.with_name(f"{video.stem}-correlation.png")


def painted_turntable(gaussians: Gaussians, field: NoiseField, kind: NoiseKind, frames: int, size: int) -> np.ndarray:
    """Returns frames [frames, size, 2 size, 3] uint8 with the splat and, beside it, the noise of that view, three
    channels as colors.

    field: three channels, size / 4 noise pixels on each side. kind "iid" is new in every frame.
    """
    cameras, noise, pictures = turntable(frames, size=size), NOISES[kind], []
    for i in range(frames):
        view = cameras[i : i + 1]
        render = gaussians.render(view).to("cpu")
        image = render.over(torch.ones(3))[0].clamp(0, 1)
        colors = (0.5 + noise(field, view, render, i)[0] / 5).clamp(0, 1).permute(1, 2, 0)
        pictures.append(as_bytes(torch.cat([image, _enlarged(colors)], 1)))
    return np.stack(pictures)


def predicted_share(field: NoiseField, cells: cells.Grid, cameras: Cameras, render: Render) -> Tensor:
    """Returns E(p) = sum over q of R_pq^2, [h, w]: the share of the first view's noise that the second predicts, in [0,
    1].

    R_pq = beta N_pq / sqrt(n_p n_q), where N_pq is the number of cells owned by pixel p in the first view and by q in
    the second, and beta is the share of the noise that is not fresh in every view.

    cells: `noise.grid(field)` or `noise.radial_grid(field)`. cameras, render: of two views.
    """
    depth, opacity = kinds.surface_images(field, cameras, render)
    first, second = (cpu.owners(cells, depth[v], opacity[v], cameras.viewmats[v], cameras.Ks[v]) for v in (0, 1))
    (_, p), (_, q) = first, second
    pixels = field.height * field.width
    counts_p, counts_q = (torch.bincount(x, minlength=pixels) for x in (p, q))
    _, in_first, in_second = np.intersect1d(first[0].numpy(), second[0].numpy(), return_indices=True)
    pairs, shared = torch.unique(p[in_first] * pixels + q[in_second], return_counts=True)
    p, q = pairs // pixels, pairs % pixels
    squares = (field.beta * shared.double()) ** 2 / (counts_p[p] * counts_q[q])
    return torch.zeros(pixels, dtype=torch.float64).index_add(0, p, squares).reshape(field.height, field.width)


def correlation_picture(gaussians: Gaussians, field: NoiseField, radial: bool, size: int) -> tuple[np.ndarray, float]:
    """Returns a picture [1, size, 3 size, 3] uint8 and the mean of E.

    The picture shows the front, the view TURN degrees away, and E of the first given the second as heat: black 0, red,
    yellow, white 1. The mean is over the pixels that the object fills.
    """
    both = turntable(round(360 / TURN), size=size)[:2]
    render = gaussians.render(both).to("cpu")
    share = predicted_share(field, (kinds.radial_grid if radial else kinds.grid)(field), both, render)
    parts = (kinds.radial_parts if radial else kinds.surface_parts)(field, both, render, 0)
    filled = parts.coverage[0] == 1
    heat = torch.stack([(3 * share - i).clamp(0, 1) for i in range(3)], -1).float()
    images = [image.clamp(0, 1) for image in render.over(torch.ones(3))]
    mean = share[filled].mean().item() if filled.any() else 0.0
    return as_bytes(torch.cat([*images, _enlarged(heat)], 1))[None], mean


def _enlarged(image: Tensor) -> Tensor:
    return image.repeat_interleave(SAMPLES, 0).repeat_interleave(SAMPLES, 1)


def show(options: ShowNoiseOptions) -> None:
    """Writes the files. Raises UserError for errors the user can fix."""
    check_settings(options)
    config, gaussians = read_run(options.run)
    kind = options.noise or config.noise_kind
    video = options.out or options.run / "noise.mp4"
    check_out(video, ".mp4", overwrite=True)
    latent = options.size // SAMPLES
    field = NoiseField(
        config.seed,
        3,
        latent,
        latent,
        gamma=0.0,
        beta=config.noise.beta,
        theta=config.noise.theta,
        span=options.frames,
    )
    frames = painted_turntable(gaussians, field, kind, options.frames, options.size)
    shown = np.linspace(0, options.frames, min(SHEET_FRAMES, options.frames), endpoint=False).astype(int)
    try:
        write_video(frames, video)
        sheet, path = pictures_beside(video)
        write_contact_sheet(frames[shown], sheet, columns=2 if len(shown) % 2 == 0 else 1)
        print(f"{video}  {kind} noise on {len(gaussians)} Gaussians; frames in {sheet}")
        if kind in ("surface", "radial"):
            picture, mean = correlation_picture(gaussians, field, kind == "radial", options.size)
            write_contact_sheet(picture, path, columns=1)
            print(f"{path}  a view {TURN:.0f} degrees away predicts {mean:.0%} of the noise on the object")
    except OSError as error:
        raise UserError(f"out: cannot write {video} ({error.strerror}); choose another --out") from None
