"""Makes a prompt with several seeds and puts the splats side by side: one column per seed, front above back.

python examples/compare_seeds.py --prompt "a red car" --seeds 0 1 2 3
"""

from pathlib import Path

import torch
import tyro
from PIL import Image

import gscfd
from gscfd.cameras import turntable
from gscfd.config import load_preset, merged


def main(
    prompt: str = "a yellow duck", seeds: tuple[int, ...] = (0, 1, 2), steps: int = 60, out: Path = Path("outputs")
) -> None:
    """
    Args:
        prompt: What to make.
        seeds: One splat for each.
        steps: Steps of the coarse stage. The polish takes an eighth as many.
        out: Folder for seeds.png.
    """
    config = merged(load_preset("toybox"), {"coarse": {"steps": steps}, "polish": {"steps": steps // 8}})
    columns = []
    for seed in seeds:
        gaussians = gscfd.generate(prompt, seed=seed, config=config)
        views = gaussians.render(turntable(2, size=256)).over(torch.ones(3, device=gaussians.device))
        columns.append(torch.cat(list(views)))
        print(f"seed {seed}: {len(gaussians)} Gaussians")
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray((torch.cat(columns, 1).clamp(0, 1) * 255).byte().cpu().numpy()).save(out / "seeds.png")


if __name__ == "__main__":
    tyro.cli(main)
