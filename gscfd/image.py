"""Distills a teacher into an image: `gscfd image "a yellow duck" --out duck.png`.

Runs the distillation methods in two dimensions, without Gaussians, or the samplers from which they derive.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from gscfd.cli import check_out, exit_code, with_prompt
from gscfd.config import Drawing, Dtype, VsdConfig, check, first
from gscfd.errors import UserError
from gscfd.prompts import as_text


@dataclass(kw_only=True)
class ImageOptions(Drawing):
    """Turn a text prompt into an image, by distillation or by sampling."""

    prompt: str = ""
    """Description of the object, in the teacher's vocabulary; --prompt itself may be left out."""
    out: Path
    """Output .png, in an existing folder. A multi-view teacher draws four views side by side."""
    teacher: str = "toybox/multiview"
    """Diffusers folder, MVDream's single file, OWNER/REPO on the Hugging Face Hub, toybox/multiview or
    toybox/singleview."""
    cfg: float | None = None
    """Classifier-free guidance scale: eps_neg + cfg (eps_text - eps_neg). Unset: 2 and 4 for the toybox's multi-view
    and single-view teacher, otherwise 7.5."""
    cfg_rescale: float = 0.5
    """Share of the guided prediction that is rescaled to the unguided standard deviation, in [0, 1]."""
    negative_prompt: str | None = None
    """Text of the unconditional branch. Unset: the text that the teacher's authors use; empty for the toybox."""
    dtype: Dtype = "auto"
    """Precision of the teacher. auto: bfloat16 on CUDA and on CPUs with bfloat16 instructions, otherwise float32."""
    overwrite: bool = False
    """Replace the file if it exists."""

    def __post_init__(self) -> None:
        self.prompt = as_text(self.prompt)
        self.negative_prompt = None if self.negative_prompt is None else as_text(self.negative_prompt)


def check_settings(options: ImageOptions) -> None:
    """Raises UserError for a value that is out of range or that the method does not use."""
    method, gamma, churn = options.method, options.gamma, options.churn
    check(options.steps >= 1, "steps", "at least 1", options.steps)
    check(0 <= options.cfg_rescale <= 1, "cfg-rescale", "a value in [0, 1]", options.cfg_rescale)
    check(0 <= options.seed < 2**63, "seed", "a value in [0, 2^63)", options.seed)
    check(gamma is None or method == "cfd", "gamma", "only with --method cfd", f"--method {method}")
    check(churn is None or method == "edm", "churn", "only with --method edm", f"--method {method}")
    check(options.vsd == VsdConfig() or method == "vsd", "vsd", "only with --method vsd", f"--method {method}")
    check(gamma is None or 0 <= gamma < 1, "gamma", "a value in [0, 1)", gamma)
    check(churn is None or churn >= 0, "churn", "at least 0", churn)


def check_texts(options: ImageOptions) -> None:
    """Raises UserError for an empty prompt or words that a toybox teacher does not know."""
    from gscfd.teachers.kinds import known_words
    from gscfd.toybox.words import check_words

    if not options.prompt.strip():
        raise UserError('prompt: expected a description such as --prompt "a yellow duck", got nothing')
    if known_words(options.teacher):
        check_words("prompt", options.prompt)
        check_words("negative-prompt", options.negative_prompt or "")


def make(options: ImageOptions) -> None:
    """Generates the image, writes it and prints its path. Raises UserError for bad input."""
    check_settings(options)
    check_out(options.out, ".png", options.overwrite)
    check_texts(options)
    # These load the libraries of the teachers, for seconds.
    from gscfd.devices import choose_device, choose_dtype
    from gscfd.distil.picture import draw_picture
    from gscfd.distil.sampling import decoded
    from gscfd.pictures import as_bytes, write_contact_sheet
    from gscfd.teachers.base import Prompt
    from gscfd.teachers.load import load_teacher

    device = choose_device(options.device)
    teacher = load_teacher(options.teacher, device=device, dtype=choose_dtype(options.dtype, device))
    teacher.set_prompt(
        Prompt(
            text=options.prompt,
            negative=options.negative_prompt,
            cfg=first(options.cfg, teacher.sampling_cfg),
            cfg_rescale=options.cfg_rescale,
        )
    )
    frames = as_bytes(decoded(teacher, draw_picture(options, teacher)).permute(0, 2, 3, 1))
    try:
        write_contact_sheet(frames, options.out, columns=len(frames))
    except OSError as error:
        raise UserError(f"out: cannot write {options.out} ({error.strerror}); choose another --out") from None
    print(f"{options.out}  {options.method}, {options.steps} steps, seed {options.seed}")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    read = partial(tyro.cli, ImageOptions, prog="gscfd image")
    return exit_code(lambda: make(with_prompt(read, arguments)))


if __name__ == "__main__":
    sys.exit(main())
