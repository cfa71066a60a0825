"""PlayCanvas' .sog, version 2: a zip of lossless WebP images with one pixel per Gaussian
(https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog)."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gsplat.exporter import sort_centers
from PIL import Image
from scipy.special import expit

from gscfd.export.transform import smallest_three
from gscfd.files import atomic_write
from gscfd.gaussians import Gaussians

PALETTE = 16384
"""Maximum number of distinct view-dependent colors in a file; a splat with more uses the nearest of them."""
PALETTE_ROUNDS = 3
PALETTE_COLUMNS = 64
CODEBOOK_ROUNDS = 20


def write_sog(gaussians: Gaussians, path: str | Path) -> None:
    """Writes about 10 bytes per Gaussian."""
    tensors = gaussians.tensors()
    order = sort_centers(tensors["means"], torch.arange(len(gaussians)))
    values = {name: value[order].cpu().double().numpy() for name, value in tensors.items()}
    meta: dict[str, Any] = {"version": 2, "count": len(gaussians)}
    images: dict[str, np.ndarray] = {}
    for part in (_means, _scales, _quats, _sh0, *([_shN] if gaussians.sh_degree else [])):
        part(values, meta, images)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("meta.json"), json.dumps(meta))
        for name, image in images.items():
            archive.writestr(zipfile.ZipInfo(name), webp(image))


def _means(values: dict[str, np.ndarray], meta: dict[str, Any], images: dict[str, np.ndarray]) -> None:
    """Stores sign(x) ln(1 + |x|), scaled to its range, as 16 bits split over two images."""
    logs = np.sign(values["means"]) * np.log1p(np.abs(values["means"]))
    low, high = logs.min(0), logs.max(0)
    levels = np.round(65535 * (logs - low) / np.where(high > low, high - low, 1)).astype(np.uint16)
    images["means_l.webp"], images["means_u.webp"] = in_rows(levels & 255), in_rows(levels >> 8)
    meta["means"] = {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]}


def _scales(values: dict[str, np.ndarray], meta: dict[str, Any], images: dict[str, np.ndarray]) -> None:
    book, indices = codebook(values["scales"])
    images["scales.webp"] = in_rows(indices)
    meta["scales"] = {"codebook": book, "files": ["scales.webp"]}


def _quats(values: dict[str, np.ndarray], meta: dict[str, Any], images: dict[str, np.ndarray]) -> None:
    """Stores the components of wxyz except the largest as bytes over +-sqrt(1/2); alpha is 252 + the index of the
    largest."""
    largest, others = smallest_three(values["quats"])
    levels = np.round(255 * (others + 1) / 2)
    images["quats.webp"] = in_rows(np.column_stack([levels, 252 + largest]))
    meta["quats"] = {"files": ["quats.webp"]}


def _sh0(values: dict[str, np.ndarray], meta: dict[str, Any], images: dict[str, np.ndarray]) -> None:
    book, indices = codebook(values["sh0"][:, 0])
    opacity = np.round(255 * expit(values["opacities"]))
    images["sh0.webp"] = in_rows(np.column_stack([indices, opacity]))
    meta["sh0"] = {"codebook": book, "files": ["sh0.webp"]}


def _shN(values: dict[str, np.ndarray], meta: dict[str, Any], images: dict[str, np.ndarray]) -> None:
    """Stores a palette of coefficients, 64 entries per row, one pixel per coefficient, and each Gaussian's palette
    index."""
    count, coefficients, _ = values["shN"].shape
    entries, labels = palette(values["shN"].reshape(count, -1))
    book, indices = codebook(entries)
    rows = math.ceil(len(entries) / PALETTE_COLUMNS)
    centroids = np.zeros((rows * PALETTE_COLUMNS, coefficients, 3), np.uint8)
    centroids[: len(entries)] = indices.reshape(-1, coefficients, 3)
    images["shN_centroids.webp"] = centroids.reshape(rows, PALETTE_COLUMNS * coefficients, 3)
    images["shN_labels.webp"] = in_rows(np.column_stack([labels & 255, labels >> 8, np.zeros_like(labels)]))
    meta["shN"] = {
        "count": len(entries),
        "bands": math.isqrt(coefficients + 1) - 1,
        "codebook": book,
        "files": ["shN_centroids.webp", "shN_labels.webp"],
    }


def codebook(values: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Returns 256 ascending numbers and, for each value, the index of the nearest (Lloyd's algorithm from the
    quantiles)."""
    book = np.quantile(values, np.linspace(0, 1, 256))
    for _ in range(CODEBOOK_ROUNDS):
        nearest = np.searchsorted((book[1:] + book[:-1]) / 2, values.ravel())
        counts = np.bincount(nearest, minlength=256)
        sums = np.bincount(nearest, values.ravel(), minlength=256)
        book = np.where(counts > 0, sums / np.maximum(counts, 1), book)
    indices = np.searchsorted((book[1:] + book[:-1]) / 2, values.ravel())
    return book.tolist(), indices.reshape(values.shape).astype(np.uint8)


def palette(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most PALETTE entries and, for each row, the index of the nearest (Lloyd's algorithm). If the rows fit,
    they are the entries."""
    if len(rows) <= PALETTE:
        return rows, np.arange(len(rows))
    points = torch.from_numpy(rows).float()
    entries = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:PALETTE]]
    for _ in range(PALETTE_ROUNDS):
        labels = _nearest(points, entries)
        counts = torch.bincount(labels, minlength=PALETTE)[:, None]
        sums = torch.zeros_like(entries).index_add(0, labels, points)
        entries = torch.where(counts > 0, sums / counts.clamp_min(1), entries)
    return entries.double().numpy(), _nearest(points, entries).numpy()


def _nearest(points: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.cdist(chunk, entries).argmin(1) for chunk in points.split(1024)])


def in_rows(pixels: np.ndarray) -> np.ndarray:
    """Arranges pixels [N, C] in reading order as an image [H, W, C] uint8, as square as possible and padded with 0."""
    width = math.ceil(math.sqrt(len(pixels)))
    image = np.zeros((math.ceil(len(pixels) / width) * width, pixels.shape[1]), np.uint8)
    image[: len(pixels)] = pixels
    return image.reshape(-1, width, pixels.shape[1])


def webp(image: np.ndarray) -> bytes:
    """Encodes losslessly, including pixels with alpha 0."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="WEBP", lossless=True, exact=True)
    return buffer.getvalue()
