"""The compiled core against the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
from whiteness import owner_views

from gscfd.noise import kinds
from gscfd.noise.field import NoiseField
from gscfd.noise_kernels import reference
from gscfd.types import Cameras, Render


def assert_as_oracle(field: NoiseField, cameras: Cameras, render: Render, *, radial: bool = False) -> None:
    """Owner maps equal on 99.9 % of the pixels, and noise there within 1e-5, at step 5."""
    grid = kinds.radial_grid(field) if radial else kinds.grid(field)
    parts = (kinds.radial_parts if radial else kinds.surface_parts)(field, cameras, render, 5)
    found = owner_views(field, cameras, render, radial=radial)
    stream = kinds._RADIAL if radial else kinds._SURFACE
    agree, total = 0, 0
    for v, view in enumerate(found):
        depth, opacity = (image[v, ..., 0].double().numpy() for image in (render.depth, render.opacity))
        viewmat, K = (matrix[v].float().double().numpy() for matrix in (cameras.viewmats, cameras.Ks))
        images = (depth, opacity, viewmat, K)
        settings: dict[str, Any] = {
            "pitch": float(np.float32(grid.pitch)),
            "layer_depth": float(np.float32(grid.layer_depth)),
            "normal_radius": field.normal_radius,
            "smoothing": field.smoothing,
        }
        latent = (field.height, field.width)
        if radial:
            oracle = reference.radial_owners(*images, latent, cells=grid.radial, **settings)
        else:
            oracle = reference.surface_owners(*images, latent, **settings)
        expected = dict(zip(oracle.cells.tolist(), oracle.pixels.tolist(), strict=True))
        owners = dict(zip(view.cells.view(np.uint64).tolist(), view.pixels.tolist(), strict=True))
        wrong = {p for cell, p in expected.items() if owners.get(cell) != p}
        wrong |= {p for cell, p in owners.items() if expected.get(cell) != p}
        equal = np.setdiff1d(np.arange(len(view.counts)), list(wrong))
        values = reference.foreground(oracle, field.channels, field.seed, field.nodes(5), stream)
        error = np.abs(values.reshape(field.channels, -1) - parts.noise[v].flatten(1).numpy())[:, equal].max()
        agree, total = agree + len(equal), total + len(view.counts)
        assert error < 1e-5
        assert np.abs(oracle.coverage.ravel() - view.coverage).max() < 1e-6
    print(f"owner maps equal on {agree} of {total} pixels")
    assert agree >= 0.999 * total
