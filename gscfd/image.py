"""Distil a teacher into a picture: `python -m gscfd.image --prompt "a yellow duck" --out duck.png`.

The methods of distillation in two dimensions, without Gaussians between, beside the samplers that they come from.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from gscfd import sampling
from gscfd.cameras import turntable
from gscfd.config import Dtype, VsdConfig, check
from gscfd.devices import choose_device, choose_dtype
from gscfd.errors import UserError, exit_code
from gscfd.export.turntable import write_contact_sheet
from gscfd.lora import Lora
from gscfd.teachers import Prompt, load_teacher
from gscfd.teachers.find import TOYBOX
from gscfd.teachers.guided import GuidedTeacher
from gscfd.train import check_words

GAMMA_OF = {"cfd": 1e-4, "fsd": 0.0, "sds": 1.0}
"""Share of fresh noise per step of the methods that follow the clean flow."""
GROUP = 4
"""Views of a multi-view teacher's picture, from the front round the object."""


@dataclass(kw_only=True)
class Settings:
    """Turn a text prompt into a picture, by distillation or by sampling."""

    prompt: str
    """What to make, in the words of the teacher."""
    out: Path
    """A .png in an existing folder. A multi-view teacher draws four views side by side."""
    method: Literal["cfd", "fsd", "sds", "vsd", "ddim", "edm"] = "cfd"
    """Descent along the clean flow: cfd with a little fresh noise, fsd with none, sds with fresh noise alone; vsd, sds
    against a LoRA that learns the picture. Samplers: ddim, and edm with Heun steps and as much fresh noise as --churn
    says."""
    steps: int = 50
    """Each asks the teacher once, with edm twice."""
    teacher: str = "toybox/singleview"
    """A diffusers folder, MVDream's single file, OWNER/REPO of the hub, or toybox/multiview, toybox/singleview."""
    cfg: float = 4.0
    """Classifier-free guidance: eps_neg + cfg (eps_text - eps_neg)."""
    cfg_rescale: float = 0.5
    """Share of the guided prediction that is scaled back to the unguided standard deviation, in [0, 1]."""
    negative_prompt: str | None = None
    """Text of the unconditional branch. Unset: the one that the teacher's authors use; none for the toybox."""
    gamma: float | None = None
    """Share of fresh noise per step of cfd (CFD Eq. 10), in [0, 1). Unset: 1e-4."""
    churn: float | None = None
    """EDM's S_churn. Unset: 0, no fresh noise."""
    vsd: VsdConfig = field(default_factory=VsdConfig)
    """The LoRA of vsd."""
    seed: int = 0
    """One seed sets every random draw."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Dtype = "auto"
    """Precision of the teacher. auto: bfloat16 on CUDA and on a CPU that has instructions for it, else float32."""
    overwrite: bool = False
    """Replace the file if it exists."""


def check_settings(settings: Settings) -> None:
    """Raise UserError for a value out of range, and for one that the method has no use for."""
    method, gamma, churn = settings.method, settings.gamma, settings.churn
    check(settings.steps >= 1, "steps", "at least 1", settings.steps)
    check(0 <= settings.cfg_rescale <= 1, "cfg-rescale", "a value in [0, 1]", settings.cfg_rescale)
    check(0 <= settings.seed < 2**63, "seed", "a value in [0, 2^63)", settings.seed)
    check(gamma is None or method == "cfd", "gamma", "only with --method cfd", f"--method {method}")
    check(churn is None or method == "edm", "churn", "only with --method edm", f"--method {method}")
    check(settings.vsd == VsdConfig() or method == "vsd", "vsd", "only with --method vsd", f"--method {method}")
    check(gamma is None or 0 <= gamma < 1, "gamma", "a value in [0, 1)", gamma)
    check(churn is None or churn >= 0, "churn", "at least 0", churn)


def check_out(out: Path, overwrite: bool) -> None:
    """Raise UserError unless the picture can go there."""
    if out.suffix != ".png":
        raise UserError(f"out: expected a name that ends in .png, got {out}")
    if not out.parent.is_dir():
        raise UserError(f"out: expected a file in an existing folder, got {out}; make {out.parent} first")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UserError(f"out: {out} exists; choose another --out, or add --overwrite for a file")


def check_texts(settings: Settings) -> None:
    """Raise UserError for an empty prompt, or words that a toybox teacher never saw."""
    if not settings.prompt.strip():
        raise UserError('prompt: expected a description such as --prompt "a yellow duck", got nothing')
    if settings.teacher.startswith(TOYBOX):
        check_words("prompt", settings.prompt)
        check_words("negative-prompt", settings.negative_prompt or "")


def draw_picture(settings: Settings, teacher: GuidedTeacher) -> Tensor:
    """[V, C, h, w] what the method makes of the seed's noise. teacher: told the prompt. Raises UserError for more steps
    than it has times."""
    most = int((sampling.T_MAX - sampling.T_MIN) * teacher.timesteps)
    check(settings.steps <= most, "steps", f"at most {most}, a time of the teacher for each", settings.steps)
    times = sampling.falling_times(settings.steps, teacher.timesteps)
    device, views = choose_device(settings.device), GROUP if teacher.multiview else 1
    cameras = turntable(views, size=teacher.image_size).to(device)
    generator = torch.Generator().manual_seed(settings.seed)
    draw = partial(torch.randn, views, *teacher.latent_shape, generator=generator)
    noise = draw().to(device)

    def fresh(step: int) -> Tensor:
        return draw().to(device)

    if settings.method == "ddim":
        return sampling.ddim(teacher, teacher.alpha_sigma(times[0])[1] * noise, times, cameras)
    if settings.method == "edm":
        return sampling.edm(teacher, noise, fresh, times, cameras, churn=settings.churn or 0.0)
    if settings.method == "vsd":
        learner = Lora(teacher, settings.vsd, seed=int(torch.randint(2**62, (), generator=generator)))
        return sampling.variational(teacher, learner, noise, fresh, times, cameras, generator)
    gamma = GAMMA_OF[settings.method] if settings.gamma is None else settings.gamma
    return sampling.clean_flow(teacher, noise, fresh, times, cameras, gamma=gamma)


def make(settings: Settings) -> None:
    """Write the picture and say so. Raises UserError for what the user can mend."""
    check_settings(settings)
    check_out(settings.out, settings.overwrite)
    check_texts(settings)
    device = choose_device(settings.device)
    teacher = load_teacher(settings.teacher, device=device, dtype=choose_dtype(settings.dtype, device))
    teacher.set_prompt(
        Prompt(
            text=settings.prompt,
            negative=settings.negative_prompt,
            cfg=settings.cfg,
            cfg_rescale=settings.cfg_rescale,
        )
    )
    images = teacher.decode(draw_picture(settings, teacher)).permute(0, 2, 3, 1).cpu()
    frames = (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    try:
        write_contact_sheet(frames, settings.out, columns=len(frames))
    except OSError as error:
        raise UserError(f"out: cannot write {settings.out} ({error.strerror}); choose another --out") from None
    print(f"{settings.out}  {settings.method}, {settings.steps} steps, seed {settings.seed}")


def main(arguments: list[str] | None = None) -> int:
    return exit_code(lambda: make(tyro.cli(Settings, args=arguments, prog="python -m gscfd.image")))


if __name__ == "__main__":
    sys.exit(main())
