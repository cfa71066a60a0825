"""Writes a splat in any of the formats."""

from __future__ import annotations

import math
from functools import partial
from io import BytesIO
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args
from zipfile import ZIP_DEFLATED, ZipFile

from gscfd.cli import check_out
from gscfd.config import check, load_run
from gscfd.errors import UserError, warn
from gscfd.export import Axes, Format
from gscfd.export.glb import write_mesh_glb, write_splat_glb
from gscfd.export.html import write_html
from gscfd.export.mesh import SIDES, beside, extract_mesh, write_mesh_obj, write_mesh_ply
from gscfd.export.options import ExportOptions
from gscfd.export.sog import write_sog
from gscfd.export.splat import visible, write_compressed_ply, write_splat
from gscfd.export.spz import write_spz
from gscfd.export.transform import change_of_axes, transformed, with_degree
from gscfd.export.turntable import THREE_QUARTERS, turntable_frames
from gscfd.gaussians import Gaussians
from gscfd.pictures import write_contact_sheet, write_video
from gscfd.ply import LARGEST_LOG_POSITION, LARGEST_LOG_SCALE

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
"""Axes that the readers of a format expect; for .ply, gscfd's own."""
APPLIES: dict[str, set[Format]] = {
    "axes": set(AXES),
    "sh_degree": {"ply", "compressed.ply", "spz", "sog", "glb"},
    "frames": {"mp4", "png"},
    "size": {"mp4", "png"},
    "background": {"mp4", "png", "html"},
    "alpha": {"png"},
    "shadow": {"mp4", "png"},
    "resolution": {"obj", "mesh.glb", "mesh.ply"},
    "triangles": {"obj", "mesh.glb", "mesh.ply"},
}
CHOICES: dict[str, tuple[object, ...]] = {
    "axes": (None, *get_args(Axes)),
    "source_axes": get_args(Axes),
    "sh_degree": (None, 0, 1, 2, 3),
}
WHOLE_NUMBERS = ("frames", "size", "resolution", "triangles")
FRAMES: dict[Format, int] = {"mp4": 80, "png": 8}
SIZE = 512
RESOLUTION = 128
MOST_TRIANGLES = 20_000
WHITE = (1.0, 1.0, 1.0)
SHEET_COLUMNS = 4
IN_VIEW, FITTING = (0.05, 1.3), 0.5
"""Range of the Gaussians' median distance from the origin at which pictures, pages and triangles show the object, and
the distance of gscfd's own splats. A Gaussian's size adds to its distance."""
LOG_SIZES = (-16.0, LARGEST_LOG_SCALE)
"""Natural logarithms of the sizes that all formats hold as 32-bit floats."""


def check_settings(options: ExportOptions) -> None:
    """Raises UserError for a value out of range or one that the format does not use."""
    for name, formats in APPLIES.items():
        given = getattr(options, name) not in (None, False)
        option = name.replace("_", "-")
        if given and options.to not in formats:
            raise UserError(f"{option}: expected only with --to {', '.join(sorted(formats))}, got --to {options.to}")
    for name, choices in CHOICES.items():  # from Python they may be anything
        known = ", ".join(str(choice) for choice in choices)
        check(getattr(options, name) in choices, name.replace("_", "-"), f"one of {known}", getattr(options, name))
    for name in WHOLE_NUMBERS:
        value = getattr(options, name)
        check(value is None or isinstance(value, Integral), name, "a whole number", value)
    check(0 < options.scale < float("inf"), "scale", "a number above 0", options.scale)
    frames, size, background = options.frames, options.size, options.background
    if frames is not None:
        check(frames >= 1, "frames", "at least 1", frames)
        whole = options.to == "mp4" or frames <= SHEET_COLUMNS or frames % SHEET_COLUMNS == 0
        check(whole, "frames", f"for a .png 1 to {SHEET_COLUMNS}, or a multiple of {SHEET_COLUMNS}", frames)
    if size is not None:
        check(16 <= size <= 4096 and size % 2 == 0, "size", "an even number from 16 to 4096", size)
    if background is not None:
        three = len(background) == 3 and all(0 <= c <= 1 for c in background)
        check(three, "background", "three numbers in [0, 1]", background)
        check(not options.alpha, "background", "no --background beside --alpha", background)
    check(not (options.alpha and options.shadow), "shadow", "no --shadow beside --alpha", options.shadow)
    if options.resolution is not None:
        check(16 <= options.resolution <= 1024, "resolution", "16 to 1024", options.resolution)
    if options.triangles is not None:
        check(options.triangles >= 100, "triangles", "at least 100", options.triangles)


def places(options: ExportOptions) -> tuple[Path, Path]:
    """Returns the .ply to read and the file to write. Raises UserError if the source is missing or the output already
    exists."""
    source = options.source / "splat.ply" if options.source.is_dir() else options.source
    if not source.is_file():
        raise UserError(f"source: expected a run with a splat.ply, or a .ply file, but there is no {source}")
    out = options.out or source.with_name(f"{source.name.removesuffix('.ply')}.{options.to}")
    if out.exists() and out.samefile(source):
        raise UserError(f"out: {out} is the source; choose another --out")
    check_out(out, "." + options.to.removeprefix("mesh."), options.overwrite)
    for ending in SIDES.get(options.to, ()):
        check_out(beside(out, ending), ending, options.overwrite)
    return source, out


def write(options: ExportOptions, gaussians: Gaussians, out: Path, title: str = "") -> str:
    """Writes the file; returns a summary of its contents. gaussians: as read from the source. title: of a page; "": the
    file's name. Raises UserError if the format cannot hold them."""
    check(len(gaussians) > 0, "source", "at least one Gaussian", 0)
    upright = change_of_axes(options.source_axes, "z-up")
    turn = change_of_axes(options.source_axes, options.axes or AXES.get(options.to, "z-up"))
    placed = transformed(gaussians, turn, options.scale)
    check_range(placed, options.scale)
    if options.to in MESHES:
        mesh = extract_mesh(
            transformed(gaussians, upright), options.resolution or RESOLUTION, options.triangles or MOST_TRIANGLES
        )
        MESHES[options.to](mesh.transformed(turn @ upright.T, options.scale), out)
        return f"{len(mesh.triangles)} triangles"
    if options.to in SPLATS:
        kept = visible(placed) if options.to == "compressed.ply" else placed
        degree = gaussians.sh_degree if options.sh_degree is None else options.sh_degree
        SPLATS[options.to](with_degree(kept, degree), out)
        faint = len(placed) - len(kept)
        return f"{len(kept)} Gaussians{f' ({faint} of an opacity up to 1/255 dropped)' if faint else ''}"
    if options.to == "html":
        write_html(placed, out, options.background or WHITE, title)
        return f"{len(gaussians)} Gaussians"
    frames = options.frames or FRAMES[options.to]
    background = None if options.alpha else options.background or WHITE
    start, shadow = THREE_QUARTERS, options.shadow
    pictures = turntable_frames(placed, frames, options.size or SIZE, background, start=start, shadow=shadow)
    sheet = partial(write_contact_sheet, columns=min(frames, SHEET_COLUMNS))
    (write_video if options.to == "mp4" else sheet)(pictures, out)
    return f"{frames} pictures"


def download(gaussians: Gaussians, to: Format, name: str, title: str = "") -> tuple[str, bytes]:
    """Returns the name and the content of one file with the splat in a format, with the format's defaults: `name`.`to`,
    or `name`.`to`.zip with that file and those that belong to it. title: as for `write`. Raises UserError if a package
    is missing or the splat does not fit the format."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / f"{name}.{to}"
        write(ExportOptions(source=out, to=to), gaussians, out, title)
        files = sorted(Path(folder).iterdir())
        if len(files) == 1:
            return out.name, out.read_bytes()
        packed = BytesIO()
        with ZipFile(packed, "w", ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
        return f"{out.name}.zip", packed.getvalue()


def title_of(source: Path) -> str:
    """Returns the last prompt of the run that a run folder or its splat.ply belongs to; "" if there is none."""
    folder = source if source.is_dir() else source.parent
    if source != folder and source.name != "splat.ply":
        return ""
    try:
        config = load_run(folder)
    except UserError:
        return ""
    return [config.prompt, *(edit.prompt for edit in config.edits if edit.prompt)][-1]


def check_range(gaussians: Gaussians, scale: float) -> None:
    """Raises UserError if positions or sizes are too large, or most sizes too small, for 32-bit floats."""
    distance = gaussians.means.detach().abs().max().item()
    sizes = gaussians.scales.detach().amax(1)
    low, high = LOG_SIZES
    fits = distance < math.exp(LARGEST_LOG_POSITION) and sizes.max() <= high and sizes.median() >= low
    if not fits:
        raise UserError(
            f"scale: expected positions below {math.exp(LARGEST_LOG_POSITION):.1e} and sizes from {math.exp(low):.1e} "
            f"to {math.exp(high):.1e}, got positions up to {distance:.3g} and a median size of "
            f"{sizes.median().exp():.3g}; choose another --scale than {scale:g}"
        )


def warn_of_size(gaussians: Gaussians, options: ExportOptions) -> None:
    """Warns if the splat, as read, is not in the ball that the format shows."""
    if options.to in SPLATS:
        return
    means, sizes = gaussians.means.detach(), gaussians.scales.detach().amax(1).exp()
    scale = 1.0 if options.to in MESHES else options.scale
    extent = (means.norm(dim=1) + sizes).median().item()
    distance = scale * extent
    if IN_VIEW[0] <= distance <= IN_VIEW[1]:
        return
    center = means.median(0).values
    if center.norm() > 2 * (means - center).norm(dim=1).median():
        advice = "move it to the origin in a splat editor"
    else:
        fitting = f"--scale {FITTING / extent:.2g}"
        via = f"export it with --to ply {fitting} first, then that file to {options.to}"
        advice = via if options.to in MESHES else f"try {fitting}"
    warn(
        f"source: expected an object in the ball of radius 1 about the origin, which .{options.to} shows, got "
        f"Gaussians at a median distance of {distance:.3g} from it; {advice}"
    )


def export(options: ExportOptions) -> None:
    """Writes the file and prints a summary. Raises UserError for errors the user can fix."""
    check_settings(options)
    source, out = places(options)
    gaussians = Gaussians.load_ply(source)
    try:
        what = write(options, gaussians, out, title_of(options.source))
    except OSError as error:
        raise UserError(f"out: cannot write {out} ({error.strerror}); choose another --out") from None
    print(f"{out}  {what}, {out.stat().st_size / 1000:.0f} kB")
    if gaussians.sh_degree and (options.to in ("splat", "html") or options.sh_degree == 0):
        print(f"view-dependent color is dropped from {out.name}")
    warn_of_size(gaussians, options)
