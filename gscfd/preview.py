"""Samples a teacher directly, without a run: `gscfd preview "a yellow duck"`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tyro

from gscfd.cli import check_out, exit_code, with_prompt
from gscfd.config import Config, Dtype, StageName, TeacherStage, check, check_device, load_preset
from gscfd.errors import UserError
from gscfd.prompts import as_text

VIEWS = 4
"""Number of views of a single-view teacher: front, side, back, side."""


@dataclass(kw_only=True)
class PreviewOptions:
    """Sample a stage's teacher and show the views side by side. A run cannot make an object that its teacher cannot
    draw."""

    prompt: str = ""
    """Description of the object, in the teacher's vocabulary; --prompt itself may be left out."""
    preset: str | None = None
    """Name or .yaml path of the preset that supplies the teacher and the views. Unset: the default preset of
    gscfd train."""
    stage: StageName | None = None
    """Stage that supplies the teacher. Unset: coarse, or refine if the preset has no coarse stage. A sample begins with
    pure noise, which the teacher of a later stage never sees in a run: the toybox's draws many objects as lumps."""
    teacher: str | None = None
    """Teacher to use instead of the stage's: a folder, a checkpoint file or OWNER/REPO."""
    out: Path | None = None
    """Output .png. Unset: outputs/<prompt>-<seed>-<stage>.png."""
    overwrite: bool = False
    """Replace the file if it exists."""
    steps: int = 50
    """Number of sampling steps, 1 to 1000."""
    seed: int = 0
    """Seed of all random draws, in [0, 2^63)."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N. auto: CUDA if torch finds a CUDA device."""
    dtype: Dtype = "auto"
    """Precision of the teacher. auto: bfloat16 on CUDA and on CPUs with bfloat16 instructions, otherwise float32."""

    def __post_init__(self) -> None:
        self.prompt = as_text(self.prompt)


def check_settings(options: PreviewOptions) -> None:
    """Raises UserError for a value out of range."""
    check(options.prompt.strip() != "", "prompt", 'a description such as "a yellow duck"', options.prompt)
    check_device(options.device)
    check(1 <= options.steps <= 1000, "steps", "1 to 1000", options.steps)
    check(0 <= options.seed < 2**63, "seed", "a value in [0, 2^63)", options.seed)
    check(options.out is None or options.out.suffix == ".png", "out", "the name of a .png file", str(options.out))


def chosen_stage(options: PreviewOptions, config: Config) -> tuple[StageName, TeacherStage]:
    """Returns the stage's name and its settings. Raises UserError for words that a toybox teacher does not know."""
    from gscfd.teachers.kinds import known_words
    from gscfd.toybox.words import check_words

    name = next(iter(config.stages())) if options.stage is None else options.stage
    stage = config.stage(name)
    stage = replace(stage, teacher=options.teacher or stage.teacher)
    if known_words(stage.teacher):
        check_words("prompt", options.prompt)
    return name, stage


def preview(options: PreviewOptions) -> None:
    """Samples the views, writes the image and prints its path. Raises UserError for bad input."""
    from gscfd.runs.names import default_folder
    from gscfd.runs.options import default_preset

    check_settings(options)
    config = load_preset(options.preset or default_preset(options.device)[0])
    name, stage = chosen_stage(options, config)
    folder = default_folder(options.prompt, options.seed)
    out = options.out or folder.with_name(f"{folder.name}-{name}.png")
    check_out(out, ".png", options.overwrite, make_folder=options.out is None)
    # These load the libraries of the teachers, for seconds.
    import torch

    from gscfd.cameras import turntable
    from gscfd.devices import choose_device, choose_dtype
    from gscfd.distil.sampling import for_sampling, sample
    from gscfd.pictures import as_bytes, write_contact_sheet
    from gscfd.teachers.base import stage_prompt
    from gscfd.teachers.load import load_teacher

    device = choose_device(options.device)
    teacher = load_teacher(stage.teacher, device=device, dtype=choose_dtype(options.dtype, device))
    teacher.set_prompt(stage_prompt(options.prompt, for_sampling(stage, teacher)))
    views = stage.views if teacher.multiview else VIEWS
    cameras = turntable(views, size=teacher.image_size).to(device)
    generator = torch.Generator().manual_seed(options.seed)
    images = sample(teacher, cameras, steps=options.steps, generator=generator)
    frames = as_bytes(images.permute(0, 2, 3, 1))
    try:
        out.parent.mkdir(exist_ok=True)
        write_contact_sheet(frames, out, columns=views)
    except OSError as error:
        raise UserError(f"out: cannot write {out} ({error.strerror}); choose another --out") from None
    print(f"{out}  {views} views by {stage.teacher}")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    read = partial(tyro.cli, PreviewOptions, prog="gscfd preview")
    return exit_code(lambda: preview(with_prompt(read, arguments)))


if __name__ == "__main__":
    sys.exit(main())
