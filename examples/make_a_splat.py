"""Makes a splat from a prompt and writes it as a .ply file with a picture of four sides.

python examples/make_a_splat.py --prompt "a red car"
"""

from pathlib import Path

import torch
import tyro
from PIL import Image

import gscfd
from gscfd.cameras import turntable
from gscfd.config import load_preset, merged


def main(prompt: str = "a yellow duck", seed: int = 0, steps: int = 200, out: Path = Path("outputs/duck")) -> None:
    """
    Args:
        prompt: What to make.
        seed: The same seed gives the same splat.
        steps: Steps of the coarse stage. The polish takes an eighth as many.
        out: Folder for splat.ply and views.png.
    """
    config = merged(load_preset("toybox"), {"coarse": {"steps": steps}, "polish": {"steps": steps // 8}})
    gaussians = gscfd.generate(prompt, seed=seed, config=config)
    out.mkdir(parents=True, exist_ok=True)
    gaussians.save_ply(out / "splat.ply")
    views = gaussians.render(turntable(4, size=256)).over(torch.ones(3, device=gaussians.device))
    pixels = (views.clamp(0, 1) * 255).byte().cpu()
    Image.fromarray(torch.cat(list(pixels), 1).numpy()).save(out / "views.png")
    print(f"{len(gaussians)} Gaussians in {out / 'splat.ply'}")


if __name__ == "__main__":
    tyro.cli(main)
