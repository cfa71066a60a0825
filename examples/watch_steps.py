"""Watches a run: saves what the teacher sees every few steps and prints the progress.

`on_step` receives a report after every step, with the images, the noise, the loss and the Gaussians of that moment.

python examples/watch_steps.py --prompt "a green cactus" --every 25
"""

from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image

import gscfd
from gscfd.config import load_preset, merged


def main(prompt: str = "a yellow duck", steps: int = 200, every: int = 20, out: Path = Path("outputs/steps")) -> None:
    """
    Args:
        prompt: What to make.
        steps: Steps of the coarse stage. The polish takes an eighth as many.
        every: Steps between two pictures.
        out: Folder for the pictures.
    """
    config = merged(load_preset("toybox"), {"coarse": {"steps": steps}, "polish": {"steps": -(-steps // 8)}})
    out.mkdir(parents=True, exist_ok=True)

    def save(report: Any) -> None:
        if report.step % every == 0:
            pixels = (report.images.clamp(0, 1) * 255).byte().cpu()  # [V, H, W, 3]
            Image.fromarray(torch.cat(list(pixels), 1).numpy()).save(out / f"{report.stage}-{report.step:04}.png")
            print(f"{report.stage} {report.step}/{report.steps}: {report.count} Gaussians, t = {report.t:.2f}")

    gscfd.generate(prompt, config=config, on_step=save)


if __name__ == "__main__":
    tyro.cli(main)
