"""Writes a splat in every format that needs no extra package and prints the size of each file.

python examples/export_everything.py --ply outputs/duck/splat.ply
"""

from pathlib import Path

import tyro

import gscfd
from gscfd.config import load_preset, merged
from gscfd.export.glb import write_splat_glb
from gscfd.export.html import write_html
from gscfd.export.sog import write_sog
from gscfd.export.splat import write_compressed_ply, write_splat
from gscfd.export.spz import write_spz


def main(ply: Path | None = None, steps: int = 100, out: Path = Path("outputs/exports")) -> None:
    """ply: a splat of gscfd or another program; unset: a yellow duck is made in `steps` steps per stage."""
    config = merged(load_preset("toybox"), {"coarse": {"steps": steps}, "polish": {"steps": 0}})
    gaussians = gscfd.Gaussians.load_ply(ply) if ply else gscfd.generate("a yellow duck", config=config)
    out.mkdir(parents=True, exist_ok=True)
    gaussians.save_ply(out / "splat.ply")
    write_compressed_ply(gaussians, out / "splat.compressed.ply")
    write_splat(gaussians, out / "splat.splat")
    write_spz(gaussians, out / "splat.spz")
    write_sog(gaussians, out / "splat.sog")
    write_splat_glb(gaussians, out / "splat.glb")
    write_html(gaussians, out / "splat.html", background=(1.0, 1.0, 1.0))  # opens in a browser
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 1024:7.0f} KiB  {path}")


if __name__ == "__main__":
    tyro.cli(main)
