"""Write a splat for other programs: `python -m gscfd.export RUN_DIR|PLY --to FORMAT`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gscfd.cli import exit_code
from gscfd.config import check
from gscfd.errors import UserError
from gscfd.export import Format
from gscfd.export.glb import write_mesh_glb, write_splat_glb
from gscfd.export.html import write_html
from gscfd.export.mesh import extract_mesh, write_mesh_obj, write_mesh_ply
from gscfd.export.sog import write_sog
from gscfd.export.splat import write_compressed_ply, write_splat
from gscfd.export.spz import write_spz
from gscfd.export.transform import Axes, change_of_axes, transformed, with_degree
from gscfd.export.turntable import turntable_frames
from gscfd.gaussians import Gaussians
from gscfd.pictures import write_contact_sheet, write_video

SPLATS = {
    "ply": Gaussians.save_ply,
    "compressed.ply": write_compressed_ply,
    "splat": write_splat,
    "spz": write_spz,
    "sog": write_sog,
    "glb": write_splat_glb,
}
MESHES = {"obj": write_mesh_obj, "mesh.glb": write_mesh_glb, "mesh.ply": write_mesh_ply}
AXES: dict[Format, Axes] = {
    "ply": "z-up",
    **dict.fromkeys(("glb", "spz", "obj", "mesh.glb", "mesh.ply"), "y-up"),
    **dict.fromkeys(("compressed.ply", "splat", "sog"), "y-down"),
}
"""What the programs that open a format expect, and gscfd's own for .ply."""
APPLIES: dict[str, set[Format]] = {
    "axes": set(AXES),
    "sh_degree": {"ply", "compressed.ply", "spz", "sog", "glb"},
    "frames": {"mp4", "png"},
    "size": {"mp4", "png"},
    "background": {"mp4", "png", "html"},
    "alpha": {"png"},
    "resolution": {"obj", "mesh.glb", "mesh.ply"},
}
FRAMES: dict[Format, int] = {"mp4": 96, "png": 8}
SIZE = 512
RESOLUTION = 192
WHITE = (1.0, 1.0, 1.0)
SHEET_COLUMNS = 4


@dataclass(kw_only=True)
class ExportOptions:
    """Write a splat for other programs: as Gaussians, as a page for a browser, as triangles, or as pictures."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or a 3DGS .ply of any program."""
    to: Format
    """What to write. obj, mesh.glb and mesh.ply are triangles with colors (pip install 'gscfd[mesh]')."""
    out: Path | None = None
    """The file; unset: the source's name with the format's ending, beside it."""
    overwrite: bool = False
    """Replace the file if it exists."""
    axes: Axes | None = None
    """Axes of the file; unset: z-up for ply, y-up for glb, spz and triangles, y-down for compressed.ply, splat, sog."""
    source_axes: Axes = "z-up"
    """Axes of the source; captures by other programs are mostly y-down."""
    scale: float = 1.0
    """How long one unit of the source is in the file, say in meters; gscfd's objects have a radius of about 1. Pictures
    and pages look at a ball of radius 1."""
    sh_degree: Literal[0, 1, 2, 3] | None = None
    """Degree of the spherical harmonics in the file; unset: the source's. 3 is what some readers of .ply insist on."""
    frames: int | None = None
    """Pictures of one turn; unset: 96 for mp4, 8 for png, which shows them in rows of four."""
    size: int | None = None
    """Pixels on each side of a picture; unset: 512."""
    background: tuple[float, float, float] | None = None
    """Red, green and blue in [0, 1]; unset: white."""
    alpha: bool = False
    """A transparent background."""
    resolution: int | None = None
    """Voxels along the ball of radius 1 from which triangles are made; unset: 192."""


def check_settings(options: ExportOptions) -> None:
    """Raise UserError for a value out of range, and for one that the format has no use for."""
    for name, formats in APPLIES.items():
        given = getattr(options, name) not in (None, False)
        option = name.replace("_", "-")
        if given and options.to not in formats:
            raise UserError(f"{option}: expected only with --to {', '.join(sorted(formats))}, got --to {options.to}")
    check(0 < options.scale < float("inf"), "scale", "a number above 0", options.scale)
    frames, size, background = options.frames, options.size, options.background
    if frames is not None:
        check(frames >= 1, "frames", "at least 1", frames)
        whole = options.to == "mp4" or frames <= SHEET_COLUMNS or frames % SHEET_COLUMNS == 0
        check(whole, "frames", f"for a .png 1 to {SHEET_COLUMNS}, or a multiple of {SHEET_COLUMNS}", frames)
    if size is not None:
        check(16 <= size <= 4096 and size % 2 == 0, "size", "an even number from 16 to 4096", size)
    if background is not None:
        check(all(0 <= c <= 1 for c in background), "background", "three numbers in [0, 1]", background)
        check(not options.alpha, "background", "no --background beside --alpha", background)
    if options.resolution is not None:
        check(16 <= options.resolution <= 1024, "resolution", "16 to 1024", options.resolution)


def places(options: ExportOptions) -> tuple[Path, Path]:
    """The .ply to read and the file to write. Raises UserError when one is missing and the other in the way."""
    source = options.source / "splat.ply" if options.source.is_dir() else options.source
    if not source.is_file():
        raise UserError(f"source: expected a run with a splat.ply, or a .ply file, but there is no {source}")
    out = options.out or source.with_name(f"{source.name.removesuffix('.ply')}.{options.to}")
    ending = "." + options.to.removeprefix("mesh.")
    if not out.name.endswith(ending):
        raise UserError(f"out: expected a name that ends in {ending}, got {out}")
    if not out.parent.is_dir():
        raise UserError(f"out: expected a file in an existing folder, got {out}; make {out.parent} first")
    if out.exists() and (out.is_dir() or out.samefile(source)):
        raise UserError(f"out: {out} is {'a folder' if out.is_dir() else 'the source'}; choose another --out")
    if out.exists() and not options.overwrite:
        raise UserError(f"out: {out} exists; choose another --out, or add --overwrite")
    return source, out


def write(options: ExportOptions, gaussians: Gaussians, out: Path) -> str:
    """Write the file; returns what it holds. gaussians: as read."""
    upright = change_of_axes(options.source_axes, "z-up")
    turn = change_of_axes(options.source_axes, options.axes or AXES.get(options.to, "z-up"))
    if options.to in MESHES:
        mesh = extract_mesh(transformed(gaussians, upright), options.resolution or RESOLUTION)
        MESHES[options.to](mesh.transformed(turn @ upright.T, options.scale), out)
        return f"{len(mesh.triangles)} triangles"
    placed = transformed(gaussians, turn, options.scale)
    if options.to in SPLATS:
        degree = gaussians.sh_degree if options.sh_degree is None else options.sh_degree
        SPLATS[options.to](with_degree(placed, degree), out)
        return f"{len(gaussians)} Gaussians"
    if options.to == "html":
        write_html(placed, out, options.background or WHITE)
        return f"{len(gaussians)} Gaussians"
    frames = options.frames or FRAMES[options.to]
    background = None if options.alpha else options.background or WHITE
    pictures = turntable_frames(placed, frames, options.size or SIZE, background)
    sheet = partial(write_contact_sheet, columns=min(frames, SHEET_COLUMNS))
    (write_video if options.to == "mp4" else sheet)(pictures, out)
    return f"{frames} pictures"


def export(options: ExportOptions) -> None:
    """Write the file and say so. Raises UserError for what the user can mend."""
    check_settings(options)
    source, out = places(options)
    gaussians = Gaussians.load_ply(source)
    try:
        what = write(options, gaussians, out)
    except OSError as error:
        raise UserError(f"out: cannot write {out} ({error.strerror}); choose another --out") from None
    print(f"{out}  {what}, {out.stat().st_size / 1000:.0f} kB")
    if gaussians.sh_degree and (options.to in ("splat", "html") or options.sh_degree == 0):
        print(f"the colors that depend on the view are left out of {out.name}")


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: export(tyro.cli(ExportOptions, args=arguments, prog="python -m gscfd.export")))


if __name__ == "__main__":
    sys.exit(main())
