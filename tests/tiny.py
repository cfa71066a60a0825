"""A stage that takes milliseconds: a teacher without networks that wants one picture from every side."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gscfd.config import CdsConfig, DensifyConfig, LearningRates, MethodName, StageConfig, WatchdogConfig
from gscfd.distil.methods import method
from gscfd.distil.protocols import Noise
from gscfd.distil.stage import StepReport, run_stage
from gscfd.distil.state import StateDict
from gscfd.gaussians import Gaussians, ball, rasterize
from gscfd.teachers.base import Prompt
from gscfd.types import Cameras, Render


class PixelTeacher:
    """What a teacher has besides its times and its predictions. It has no VAE and reads no prompt."""

    multiview = False
    image_size: int
    latent_shape: tuple[int, int, int]

    def set_prompt(self, prompt: Prompt) -> None:
        pass

    def encode(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, self.latent_shape[1:])

    def decode(self, z: Tensor) -> Tensor:
        factor = self.image_size // self.latent_shape[-1]
        return z.repeat_interleave(factor, -1).repeat_interleave(factor, -2).clamp(0, 1)


class TinyTeacher(PixelTeacher):
    image_size, latent_shape, timesteps = 16, (3, 8, 8), 100
    target = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(9))

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        angle = math.pi / 2 * t / self.timesteps
        return math.cos(angle), math.sin(angle)

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras, cfg: float | None = None) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return (x_t - alpha * self.target) / max(sigma, 0.01)


class TinyLearner:
    """Knows the renders of the steps before by their mean, which it follows slower and slower."""

    name, remedy = "tiny", "vsd.lr"

    def __init__(self) -> None:
        self.mean, self.count = torch.zeros(3, 8, 8), torch.zeros(())

    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras) -> Tensor:
        alpha, sigma = TinyTeacher().alpha_sigma(t)
        return (x_t - alpha * self.mean) / max(sigma, 0.01)

    def learn(self, z: Tensor, cameras: Cameras, generator: torch.Generator) -> None:
        noise = torch.randn(z.shape, generator=generator)
        self.count += 1
        self.mean += ((z + 0.1 * noise).mean(0) - self.mean) / self.count

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "count": self.count}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.mean, self.count = tensors["mean"].clone(), tensors["count"].clone()


def drawn(cameras: Cameras, render: Render, step: int) -> Tensor:
    return torch.randn(len(cameras), 3, 8, 8, generator=torch.Generator().manual_seed(step))


def stage_config(**changes: Any) -> StageConfig:
    return StageConfig(
        **{
            "teacher": "tiny",
            "steps": 12,
            "views": 2,
            "cfg": 1.0,
            "t_schedule": "uniform",
            "t_points": ((0.0, 0.0),),
            "cds": CdsConfig(t_max=0.7, t_min=0.1, gap=(0.1, 0.2), weight="uniform"),
            "lr": LearningRates(means=2e-2, end=0.5),
            "densify": DensifyConfig(start=0.0, stop=1.0, every=3, grad_threshold=0.02),
            **changes,
        }
    )


def tiny_stage(
    config: StageConfig | None = None,
    *,
    guidance: MethodName = "cfd",
    resume: StateDict | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    noise: Noise = drawn,
    watchdog: WatchdogConfig | None = None,
    keep_every: int = 4,
) -> Gaussians:
    """Distil 60 Gaussians; returns them."""
    learner = TinyLearner() if guidance == "vsd" else None
    gaussians = ball(60, radius=0.6, opacity=0.3, generator=torch.Generator().manual_seed(3))
    config = config or stage_config()
    run_stage(
        gaussians,
        config,
        name="coarse",
        teacher=TinyTeacher(),
        rasterize=rasterize,
        noise=noise,
        method=method(guidance, config, TinyTeacher.timesteps, learner),
        seed=5,
        watchdog=watchdog or WatchdogConfig(),
        keep_every=keep_every,
        on_step=on_step or (lambda report: None),
        learner=learner,
        resume=resume,
    )
    return gaussians
