"""Noise schedules of teachers, x_t = alpha x0 + sigma eps, and the meaning of their networks' outputs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from gscfd.errors import UserError

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
MOST_TIMESTEPS = 100_000
LEAST_SQUARED_ALPHA = 5e-8
"""Replaces alpha^2 = 0 at the last time of a schedule with zero terminal SNR, where steps would divide by it."""


class Schedule(Protocol):
    timesteps: int

    def alpha_sigma(self, t: int) -> tuple[float, float]: ...

    def to_eps(self, x_t: Tensor, output: Tensor, t: int) -> Tensor:
        """Converts the network's output to the noise in x_t; all [V, C, h, w]."""
        ...

    def target(self, z: Tensor, eps: Tensor, t: int) -> Tensor:
        """Returns the training target of the network for x_t = alpha z + sigma eps; all [V, C, h, w]."""
        ...


class Diffusion:
    """Variance-preserving diffusion, alpha^2 + sigma^2 = 1. alphas_cumprod: [T], alpha_t squared."""

    def __init__(self, alphas_cumprod: Tensor, prediction: str):
        if prediction not in ("epsilon", "v_prediction"):
            raise UserError(f"scheduler.prediction_type: expected epsilon or v_prediction, got {prediction}")
        self.alphas_cumprod: list[float] = alphas_cumprod.double().tolist()
        self.timesteps = len(self.alphas_cumprod)
        self.prediction = prediction

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        squared = self.alphas_cumprod[t]
        return squared**0.5, (1 - squared) ** 0.5

    def to_eps(self, x_t: Tensor, output: Tensor, t: int) -> Tensor:
        """For v-prediction, eps = alpha v + sigma x_t (Salimans & Ho 2022, appendix D)."""
        if self.prediction == "epsilon":
            return output
        alpha, sigma = self.alpha_sigma(t)
        return alpha * output + sigma * x_t

    def target(self, z: Tensor, eps: Tensor, t: int) -> Tensor:
        """v = alpha eps - sigma z."""
        if self.prediction == "epsilon":
            return eps
        alpha, sigma = self.alpha_sigma(t)
        return alpha * eps - sigma * z


class Flow:
    """Rectified flow: sigma = t / T, alpha = 1 - sigma; the network outputs v = eps - x0 (Esser et al. 2024).

    The sampler's `shift` changes the times a sampler visits and is not part of the teacher.
    """

    def __init__(self, timesteps: int):
        self.timesteps = timesteps

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        return 1 - t / self.timesteps, t / self.timesteps

    def to_eps(self, x_t: Tensor, output: Tensor, t: int) -> Tensor:
        """eps = x_t + (1 - sigma) v."""
        alpha, _ = self.alpha_sigma(t)
        return x_t + alpha * output

    def target(self, z: Tensor, eps: Tensor, t: int) -> Tensor:
        """v = eps - z."""
        return eps - z


def check_timesteps(config: dict[str, Any]) -> None:
    """Raises UserError for a number of timesteps that no teacher has, whose schedule may fill the memory."""
    steps = config.get("num_train_timesteps", 1000)
    if not (isinstance(steps, int) and 1 < steps <= MOST_TIMESTEPS):
        raise UserError(
            f"scheduler.num_train_timesteps: expected a whole number from 2 to {MOST_TIMESTEPS}, got {steps!r}; use "
            "the teacher's own scheduler"
        )


def diffusion(config: dict[str, Any]) -> Diffusion:
    """Returns the schedule of a diffusers scheduler's config. Raises UserError if it is not a plain diffusion."""
    if "beta_schedule" not in config or config.get("use_flow_sigmas"):
        got = config.get("_class_name")
        raise UserError(
            f"scheduler: expected a diffusion schedule (with beta_schedule), got {got}; use the teacher's own"
        )
    check_timesteps(config)
    betas = DDIMScheduler(**{key: config[key] for key in BETAS if key in config})
    schedule = Diffusion(betas.alphas_cumprod, config.get("prediction_type", "epsilon"))
    if schedule.alphas_cumprod[-1] <= 0 and schedule.prediction == "epsilon":
        raise UserError(
            "scheduler.rescale_betas_zero_snr: expected false with prediction_type epsilon, which says nothing of the "
            "image at zero SNR, got true; use the teacher's own scheduler"
        )
    schedule.alphas_cumprod = [max(squared, LEAST_SQUARED_ALPHA) for squared in schedule.alphas_cumprod]
    return schedule


def shifted(schedule: Diffusion, factor: float) -> Diffusion:
    """Returns the schedule with more noise: the signal-to-noise ratio alpha^2 / sigma^2 is divided by factor^(t / (T -
    1)), as MV-Adapter's models were trained (Huang et al. 2024)."""
    last = schedule.timesteps - 1
    squares = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
    ratios = squares / (1 - squares) / factor ** (torch.arange(last + 1, dtype=torch.float64) / last)
    return Diffusion(ratios / (1 + ratios), schedule.prediction)


def flow(config: dict[str, Any]) -> Flow:
    """Returns the schedule of a flow-matching scheduler's config. Raises UserError for any other.

    The class name decides: a flow scheduler's config would silently produce a wrong linear diffusion.
    """
    name = str(config.get("_class_name"))
    if not name.startswith("FlowMatch"):
        raise UserError(f"scheduler: expected a FlowMatch... scheduler, got {name}; use the teacher's own")
    check_timesteps(config)
    return Flow(config.get("num_train_timesteps", 1000))
