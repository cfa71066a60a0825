"""The LoRA of --guidance vsd (Wang et al. 2023, ProlificDreamer): a low-rank adaptation (Hu et al. 2021) of the
teacher's network, trained on the renders."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from gscfd.config import MethodName, StageConfig, VsdConfig
from gscfd.deferred import moved
from gscfd.distil.methods import LEARNING
from gscfd.distil.state import load_moments, part
from gscfd.errors import UserError
from gscfd.teachers.denoisers import MultiviewDenoiser, UNetDenoiser
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.kinds import CAMERA_NUMBERS
from gscfd.types import Cameras

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
"""Adapted layers: all attention projections, as in ProlificDreamer; the last two occur only in DeepFloyd IF."""


def unet_of(teacher: GuidedTeacher, name: str) -> UNetDenoiser | MultiviewDenoiser:
    """Returns the network that a LoRA adapts. name: argument that selected the teacher, for the error message.

    Raises UserError for a transformer, and for a model with an adapter.
    """
    if not isinstance(teacher.denoiser, (UNetDenoiser, MultiviewDenoiser)):
        raise UserError(
            f"{name}: expected a teacher with a UNet alone, to which vsd adds a LoRA, got a transformer (Stable "
            "Diffusion 3, FLUX) or an MV-Adapter; choose Stable Diffusion, SDXL, MVDream, DeepFloyd IF or the toybox, "
            "or another method"
        )
    return teacher.denoiser


def twin(denoiser: UNetDenoiser | MultiviewDenoiser) -> UNetDenoiser | MultiviewDenoiser:
    """Returns a copy with its own modules that shares the weights of the original."""
    weights = [*denoiser.unet.parameters(), *denoiser.unet.buffers()]
    return copy.deepcopy(denoiser, {id(weight): weight for weight in weights})


def camera_embedding(unet: UNet2DConditionModel) -> nn.Module:
    """Returns a network that adds the camera to the time embedding, as in ProlificDreamer; its initial output is 0."""
    embedding = TimestepEmbedding(CAMERA_NUMBERS, unet.time_embedding.linear_2.out_features)
    nn.init.zeros_(embedding.linear_2.weight)
    nn.init.zeros_(embedding.linear_2.bias)
    result: nn.Module = embedding.to(unet.device)
    return result


class Lora:
    """A `Learner` whose initial prediction is the teacher's prediction for the text, without guidance.

    It uses the teacher's prompt, schedule and weights without changing them. If the teacher has no camera input, such
    as Stable Diffusion, the LoRA adds a camera embedding. Trained parameters are in float32.
    """

    name = "lora"
    remedy = "vsd.lr"

    def __init__(self, teacher: GuidedTeacher, config: VsdConfig, *, seed: int):
        """seed: for the initial weights. Raises UserError if the teacher is a transformer."""
        self.teacher = teacher
        self.denoiser = twin(unet_of(teacher, "teacher"))
        unet = self.denoiser.unet
        low_rank = LoraConfig(
            r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=TARGETS
        )
        # Both calls draw from the global generator, whose state is restored.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            inject_adapter_in_model(low_rank, unet)
            if unet.class_embedding is None:
                unet.class_embedding = camera_embedding(unet)
        self.params = {name: value for name, value in unet.named_parameters() if value.requires_grad}
        for value in self.params.values():
            value.data = value.data.float()
        self.optimizer = torch.optim.AdamW(self.params.values(), lr=config.lr, fused=unet.device.type == "cuda")

    def output(self, x_t: Tensor, t: int, cameras: Cameras) -> Tensor:
        """Returns the network's output [V, C, h, w], in the teacher's parameterization (epsilon or v)."""
        return self.denoiser(x_t, t, self.teacher.texts(cameras), cameras).to(x_t.dtype)

    @torch.no_grad()
    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras) -> Tensor:
        return self.teacher.schedule.to_eps(x_t, self.output(x_t, t, cameras), t)

    def loss(self, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
        """Returns the mean squared error of the network's output for x_t = alpha z + sigma noise (ProlificDreamer
        section 3.2)."""
        alpha, sigma = self.teacher.alpha_sigma(t)
        target = self.teacher.schedule.target(z, noise, t)
        return F.mse_loss(self.output(alpha * z + sigma * noise, t, cameras), target)

    def learn(self, z: Tensor, cameras: Cameras, generator: torch.Generator) -> None:
        """Makes one AdamW step at a time drawn uniformly from all of the teacher's (ProlificDreamer Algorithm 1)."""
        t = int(torch.randint(self.teacher.timesteps, (), generator=generator))
        noise = moved(torch.randn(z.shape, generator=generator), z.device)
        self.loss(z, noise, t, cameras).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for name, value in self.params.items():
            own = {"value": value.detach(), **self.optimizer.state.get(value, {})}
            named |= {f"lora/{name}/{key}": tensor for key, tensor in own.items()}
        return named

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        self.optimizer.state.clear()
        for name, value in self.params.items():
            own = part(tensors, f"lora/{name}/")
            value.copy_(own.pop("value"))
            load_moments(self.optimizer, value, own)


def make_learner(name: MethodName, teacher: GuidedTeacher, stage: StageConfig, *, seed: int) -> Lora | None:
    """Returns the learner of the method, or None for most methods. seed: for its initial weights.

    Raises UserError as `check_learner` does.
    """
    return Lora(teacher, stage.vsd, seed=seed) if name in LEARNING else None


def check_learner(name: MethodName, teacher: GuidedTeacher, argument: str) -> None:
    """Raises UserError if the method has a learner that the teacher does not support.

    argument: argument that selected the teacher, for the error message.
    """
    if name in LEARNING:
        unet_of(teacher, argument)
