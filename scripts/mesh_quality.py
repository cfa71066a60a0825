"""Table of meshes beside their splats: similarity by an independent renderer, triangles, closedness and processor time.

    python scripts/mesh_quality.py outputs/a-red-car-0 outputs/a-yellow-duck-0

Each mesh goes through a .glb file into trimesh, whose ray caster draws it over white: four views around the object. The
limit of a hard outline is the similarity of a picture that has the splat's exact colors wherever its opacity is above
one half, and white elsewhere. Needs pip install '.[mesh]' and embreex.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import trimesh
import tyro
from torch import Tensor

from gscfd.cameras import turntable
from gscfd.export.options import ExportOptions
from gscfd.export.write import write
from gscfd.gaussians import Gaussians
from gscfd.lab.metrics import psnr
from gscfd.pictures import as_bytes, write_contact_sheet
from gscfd.types import Cameras

VIEWS = 4
FINER = 2
"""Rays per pixel along each axis."""
barycentric: Any = trimesh.triangles.points_to_barycentric


@dataclass
class Arguments:
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or .ply files."""
    size: int = 256
    """Width and height of the views in pixels."""
    sheets: Path | None = None
    """Folder for pictures of each splat above its mesh."""


def main(arguments: Arguments) -> None:
    print("| splat | PSNR of the mesh | limit of a hard outline | triangles | closed | parts | processor seconds |")
    print("|---|---:|---:|---:|---|---:|---:|")
    for source in arguments.sources:
        print(row(source, arguments), flush=True)


def row(source: Path, arguments: Arguments) -> str:
    """Returns the line of the table for a run folder or .ply file."""
    gaussians = Gaussians.load_ply(source / "splat.ply" if source.is_dir() else source)
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mesh.glb"
        write(ExportOptions(source=source, to="mesh.glb", axes="z-up"), gaussians, path)
        seconds = time.process_time() - begin
        shape: Any = trimesh.load(path, process=False, force="mesh")
    cameras = turntable(VIEWS, size=arguments.size * FINER)
    drawn = smaller(torch.stack([ray_cast(shape, cameras[i : i + 1]) for i in range(VIEWS)]))
    expected, hard = (smaller(image) for image in splat_and_hard(gaussians, cameras))
    if arguments.sheets is not None:
        arguments.sheets.mkdir(parents=True, exist_ok=True)
        frames = as_bytes(torch.cat([expected, drawn]))
        write_contact_sheet(frames, arguments.sheets / f"{source.stem}.png", columns=VIEWS)
    shape.merge_vertices(merge_tex=True, merge_norm=True)
    closed = "yes" if shape.is_watertight and shape.is_winding_consistent and shape.volume > 0 else "no"
    return (
        f"| {source.stem} | {psnr(drawn, expected):.1f} dB | {psnr(hard, expected):.1f} dB | {len(shape.faces)} "
        f"| {closed} | {shape.body_count} | {seconds:.0f} |"
    )


def splat_and_hard(gaussians: Gaussians, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Returns the splat over white, [V, S, S, 3], and the same with a hard outline."""
    with torch.no_grad():
        render = gaussians.render(cameras)
    color = render.rgb / render.opacity.clamp_min(1e-6)
    return render.rgb + 1 - render.opacity, torch.where(render.opacity > 0.5, color, 1.0)


def smaller(images: Tensor) -> Tensor:
    """Returns the means [V, S, S, 3] over FINER by FINER pixels."""
    return torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).float(), FINER).permute(0, 2, 3, 1)


def ray_cast(shape: Any, camera: Cameras) -> Tensor:
    """Returns the textured shape over white, [S, S, 3], by trimesh's ray caster."""
    size, matrix = camera.width, torch.linalg.inv(camera.viewmats[0].double()).numpy()
    pixel = (np.mgrid[:size, :size] + 0.5 - size / 2) / camera.Ks[0, 0, 0].item()
    directions = np.stack([pixel[1], pixel[0], np.ones_like(pixel[0])], -1).reshape(-1, 3) @ matrix[:3, :3].T
    starts = np.repeat(matrix[None, :3, 3], len(directions), 0)
    triangle, ray, place = shape.ray.intersects_id(starts, directions, multiple_hits=False, return_locations=True)
    weights = barycentric(shape.triangles[triangle], place)
    uv = (shape.visual.uv[shape.faces[triangle]] * weights[..., None]).sum(1)
    texture = np.asarray(shape.visual.material.baseColorTexture.convert("RGB")) / 255
    column, line = (np.array([uv[:, 0], 1 - uv[:, 1]]) * len(texture)).astype(int).clip(0, len(texture) - 1)
    image = np.ones((size * size, 3))
    image[ray] = texture[line, column]
    return torch.from_numpy(image.reshape(size, size, 3))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
