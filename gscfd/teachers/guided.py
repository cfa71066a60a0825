"""A teacher composed of a space, a network, a schedule and its wording, with guided predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gscfd.cameras import azimuth_elevation
from gscfd.deferred import moved
from gscfd.errors import UserError
from gscfd.prompts import VIEW_WORDS, ViewMix, Wording, join_words, perp_neg_mix, view_words, with_suffix
from gscfd.teachers.base import Prompt
from gscfd.teachers.denoisers import Denoiser
from gscfd.teachers.schedules import Schedule
from gscfd.teachers.spaces import Space
from gscfd.teachers.texts import TextFeatures, mixed, repaired, stacked
from gscfd.types import Cameras

MOST_CFG = 7.5
"""Maximum guidance scale for sampling; distillation's scales of 50 and more would saturate the image."""


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """Returns the component of x perpendicular to y per sample: x - <x, y> / max(<y, y>, 1e-6) y. x, y: [V, C, h,
    w]."""
    share = (x * y).sum((1, 2, 3), keepdim=True) / y.square().sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
    return x - share * y


def guide(negative: Tensor, text: Tensor, cfg: float, others: list[Tensor], weights: Tensor) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022), with Perp-Neg (Armandpour et al. 2023) if there are others:
    eps_neg + cfg (e + sum_i w_i perp(e_i, e)), e = eps_text - eps_neg, e_i = eps_i - eps_neg.

    negative, text and each of the K others: [V, C, h, w]. weights: [K, V].
    """
    direction = text - negative
    for other, weight in zip(others, weights, strict=True):
        direction = direction + weight[:, None, None, None] * perpendicular(other - negative, text - negative)
    return negative + cfg * direction


def rescale(guided: Tensor, text: Tensor, share: float, *, joint: bool) -> Tensor:
    """Scales the guided x0 back to the text prediction's standard deviation by `share` (Lin et al. 2023, Eq. 15-16).

    guided, text: [V, C, h, w] denoised predictions. share: 0 keeps the guided value, 1 uses the scaled one. joint:
    whether the views share one standard deviation, over the whole group, as in MVDream's code.
    """
    over = (0, 1, 2, 3) if joint else (1, 2, 3)
    ratio = text.std(over, keepdim=True) / guided.std(over, keepdim=True)
    return guided * (1 - share + share * ratio)


class GuidedTeacher:
    """See `Teacher`. encode_texts: loads, runs and releases the text encoders; its results are cached."""

    def __init__(
        self,
        *,
        space: Space,
        denoiser: Denoiser,
        schedule: Schedule,
        encode_texts: Callable[[list[str]], list[TextFeatures]],
        wording: Wording,
        multiview: bool,
        sampling_cfg: float = MOST_CFG,
    ):
        """sampling_cfg: guidance scale at which its samples are best."""
        self.space, self.denoiser, self.schedule = space, denoiser, schedule
        self.encode_texts, self.wording, self.multiview = encode_texts, wording, multiview
        self.image_size, self.latent_shape = space.image_size, space.latent_shape
        self.timesteps, self.sampling_cfg = schedule.timesteps, sampling_cfg
        self.prompt: Prompt | None = None
        self.known: dict[str, TextFeatures] = {}

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return self.schedule.alpha_sigma(t)

    def encode(self, images: Tensor) -> Tensor:
        return self.space.encode(images)

    def decode(self, z: Tensor) -> Tensor:
        return self.space.decode(z)

    def set_prompt(self, prompt: Prompt) -> None:
        """Encodes the prompt; a teacher that receives the view in words gets one text per view word (DreamFusion)."""
        if prompt.perp_neg and not self.wording.view_words:
            raise UserError(
                "perp_neg: expected a teacher that receives the view in words, got one that reads the camera; "
                "leave perp_neg off for this stage"
            )
        negative = self.wording.negative if prompt.negative is None else prompt.negative
        text = with_suffix(prompt.text, self.wording.suffix)
        if self.wording.repaired:
            negative, text = repaired(negative), repaired(text)
        views = VIEW_WORDS if self.wording.view_words else ("",)
        self.negative = negative
        self.asked = {words: join_words(text, words) if words else text for words in views}
        new = [text for text in dict.fromkeys([negative, *self.asked.values(), ""]) if text not in self.known]
        if new:
            self.known |= zip(new, self.encode_texts(new), strict=True)
        width = self.known[negative].tokens.shape[-1]
        if width != self.denoiser.text_width:
            raise UserError(
                f"text encoder: expected {self.denoiser.text_width} numbers per token, as the denoiser reads, got "
                f"{width}; take all parts from one model"
            )
        self.prompt = prompt

    @torch.no_grad()
    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        if self.prompt is None:
            raise RuntimeError("predict_eps: set_prompt first")
        mixes = self.view_mixes(cameras)
        unguided = cfg is None and self.prompt.cfg == 1 and not self.prompt.perp_neg
        if cfg in (0, 1) or unguided:
            alone = [self.known[""]] * len(mixes) if cfg == 0 else self.positives(mixes)
            return self.branch_eps(x_t, t, stacked(alone), cameras)[0]
        negative, positive, *others = self.branch_eps(x_t, t, self.branches(mixes), cameras)
        weights = torch.tensor([[weight for _, weight in mix.negatives] for mix in mixes], dtype=x_t.dtype).T
        guided = guide(negative, positive, self.prompt.cfg if cfg is None else cfg, others, moved(weights, x_t.device))
        alpha, sigma = self.alpha_sigma(t)
        if self.prompt.cfg_rescale == 0 or sigma == 0:  # without noise, no noise makes another image of x_t
            return guided
        share, joint = self.prompt.cfg_rescale, self.multiview
        x0 = rescale((x_t - sigma * guided) / alpha, (x_t - sigma * positive) / alpha, share, joint=joint)
        return (x_t - alpha * x0) / sigma

    def texts(self, cameras: Cameras) -> TextFeatures:
        """Returns the positive prompt for each view."""
        return stacked(self.positives(self.view_mixes(cameras)))

    def branch_eps(self, x_t: Tensor, t: int, text: TextFeatures, cameras: Cameras) -> tuple[Tensor, ...]:
        """Returns the noise in x_t, [V, C, h, w], for each branch of the texts, which hold V texts per branch."""
        count = len(text.tokens) // len(x_t)
        x = x_t.repeat(count, 1, 1, 1)
        # Copied: if the network is a CUDA graph, its next output overwrites this one.
        output = self.denoiser(x, t, text, cameras).to(x.dtype, copy=True)
        return self.schedule.to_eps(x, output, t).chunk(count)

    def view_mixes(self, cameras: Cameras) -> list[ViewMix]:
        """Returns the mix of view words of each view."""
        if not self.wording.view_words:
            return [ViewMix((("", 1.0),))] * len(cameras)
        azimuth, elevation = azimuth_elevation(cameras)
        places = list(zip(azimuth.tolist(), elevation.tolist(), strict=True))
        if self.prompt is not None and self.prompt.perp_neg:
            return [perp_neg_mix(a, e) for a, e in places]
        return [ViewMix(((view_words(a, e), 1.0),)) for a, e in places]

    def branches(self, mixes: list[ViewMix]) -> TextFeatures:
        """Returns the texts of one call: the negatives of all views, then the positives, then the texts to push away
        from."""
        of = {words: self.known[text] for words, text in self.asked.items()}
        pushed = [of[mix.negatives[k][0]] for k in range(len(mixes[0].negatives)) for mix in mixes]
        return stacked([*self.negatives(mixes), *self.positives(mixes), *pushed])

    def negatives(self, mixes: list[ViewMix]) -> list[TextFeatures]:
        return [self.known[self.negative]] * len(mixes)

    def positives(self, mixes: list[ViewMix]) -> list[TextFeatures]:
        of = {words: self.known[text] for words, text in self.asked.items()}
        return [mixed([(of[words], share) for words, share in mix.positive]) for mix in mixes]
