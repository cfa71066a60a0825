"""Draws noise of few and odd sizes, for compute-sanitizer: `sanitize.py cuda` or, to rehearse, `sanitize.py cpu`."""

from __future__ import annotations

import sys

import torch
from shapes import sphere

from gscfd.cameras import turntable
from gscfd.noise.field import NoiseField
from gscfd.noise.kinds import surface


def main(device: str) -> None:
    cameras = turntable(2, size=100)
    render, cameras = sphere(cameras).to(device), cameras.to(device)
    for background in ("screen", "fresh", "direction"):
        for height, width in ((30, 48), (100, 100), (7, 5)):
            field = NoiseField(0, 5, height, width, beta=0.9, background=background, normal_radius=2)
            surface(field, cameras, render, 3)
    if device == "cuda":
        torch.cuda.synchronize()
    print("drawn")


if __name__ == "__main__":
    main(sys.argv[1])
