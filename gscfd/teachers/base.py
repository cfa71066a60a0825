"""Interface between a stage and its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gscfd.config import CFG_RESCALE, TeacherStage, first
from gscfd.types import Cameras


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Request to a teacher: texts and guidance settings."""

    text: str
    negative: str | None = None
    """Text of the unconditional branch (CFD App. E.1); None: the default of the teacher's family."""
    cfg: float
    """Classifier-free guidance on the conventional scale: eps_neg + cfg (eps_text - eps_neg)."""
    cfg_rescale: float = 0.0
    """In [0, 1]: how far the guided prediction is scaled back to the text prediction's standard deviation (Lin et al.
    2023, section 3.4), which keeps colors from saturating."""
    perp_neg: bool = False
    """Mix the view words by the camera's azimuth and push away from the other views (Perp-Neg, against two-faced
    objects); only for teachers that receive the view in words."""


class Teacher(Protocol):
    multiview: bool
    """Whether the views of a batch form one group that must be denoised together."""
    image_size: int
    """Width and height in pixels of the input images."""
    latent_shape: tuple[int, int, int]
    """C, h, w of one view: VAE latents, or pixels for a teacher without a VAE."""
    timesteps: int
    """T: the number of integer times."""

    def set_prompt(self, prompt: Prompt) -> None:
        """Raises UserError if the text encoders cannot be read, or the text is longer than they support."""
        ...

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        """Returns alpha and sigma of x_t = alpha z + sigma eps."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Maps [V, 3, H, W] in [0, 1] to [V, C, h, w]; differentiable."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Maps [V, C, h, w] to [V, 3, H, W] in [0, 1], or NaN where the picture is not finite; without gradient."""
        ...

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        """Returns the guided prediction of the noise in x_t under the prompt, [V, C, h, w]; without gradient.

        cfg: replaces the prompt's. 0 returns the prediction for the empty text, 1 the text's, both unmodified.
        """
        ...


def stage_prompt(text: str, stage: TeacherStage) -> Prompt:
    """Returns the prompt of a stage from `Config.stage`. "{prompt}" in its negative prompt stands for the text."""
    return Prompt(
        text=text,
        negative=None if stage.negative_prompt is None else stage.negative_prompt.replace("{prompt}", text),
        cfg=stage.scale,
        cfg_rescale=first(stage.cfg_rescale, CFG_RESCALE),
        perp_neg=stage.perp_neg,
    )
