"""What --guidance vsd trains: the teacher's own network with low-rank changes (LoRA, Hu et al. 2021), which learns what
the renders look like (Wang et al. 2023, ProlificDreamer)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from gscfd.config import VsdConfig
from gscfd.deferred import moved
from gscfd.distil.state import load_moments, part
from gscfd.errors import UserError
from gscfd.teachers.denoisers import MultiviewDenoiser, UNetDenoiser
from gscfd.teachers.guided import GuidedTeacher
from gscfd.teachers.ldm import CAMERA_NUMBERS
from gscfd.types import Cameras

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
"""The layers that are changed: all projections of attention, as ProlificDreamer's; the last two are DeepFloyd IF's."""


def unet_of(teacher: GuidedTeacher, name: str) -> UNetDenoiser | MultiviewDenoiser:
    """The network that a LoRA is made for. name: of the argument that chose the teacher. Raises UserError for a
    transformer."""
    if not isinstance(teacher.denoiser, (UNetDenoiser, MultiviewDenoiser)):
        raise UserError(
            f"{name}: expected a teacher with a UNet, which vsd trains a LoRA on, got a transformer (Stable Diffusion "
            "3, FLUX); choose Stable Diffusion, SDXL, MVDream, DeepFloyd IF or the toybox, or another method"
        )
    return teacher.denoiser


def twin(denoiser: UNetDenoiser | MultiviewDenoiser) -> UNetDenoiser | MultiviewDenoiser:
    """A copy with modules of its own, which holds the same weights, not copies of them."""
    weights = [*denoiser.unet.parameters(), *denoiser.unet.buffers()]
    return copy.deepcopy(denoiser, {id(weight): weight for weight in weights})


def camera_embedding(unet: UNet2DConditionModel) -> nn.Module:
    """A camera as a term of the time embedding, as in ProlificDreamer; 0 for every camera at the start."""
    embedding = TimestepEmbedding(CAMERA_NUMBERS, unet.time_embedding.linear_2.out_features)
    nn.init.zeros_(embedding.linear_2.weight)
    nn.init.zeros_(embedding.linear_2.bias)
    return embedding.to(unet.device)


class Lora:
    """A `Learner`. At the start it predicts what the teacher predicts for the text alone, without guidance.

    The teacher is asked for its prompt and schedule, and its weights are read; nothing of it changes. A teacher that
    reads no camera, such as Stable Diffusion, gets an embedding for it here. What is trained is in float32.
    """

    name = "lora"
    remedy = "vsd.lr"

    def __init__(self, teacher: GuidedTeacher, config: VsdConfig, *, seed: int):
        """seed: of the first weights. Raises UserError as `unet_of`."""
        self.teacher = teacher
        self.denoiser = twin(unet_of(teacher, "teacher"))
        unet = self.denoiser.unet
        low_rank = LoraConfig(
            r=config.rank, lora_alpha=config.rank, init_lora_weights="gaussian", target_modules=TARGETS
        )
        # Both draw from the global generator, which is left as it was.
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
        """[V, C, h, w] what the network puts out, in the teacher's own terms (epsilon or v)."""
        return self.denoiser(x_t, t, self.teacher.texts(cameras), cameras).to(x_t.dtype)

    @torch.no_grad()
    def predict_eps(self, x_t: Tensor, t: int, cameras: Cameras) -> Tensor:
        return self.teacher.schedule.to_eps(x_t, self.output(x_t, t, cameras), t)

    def loss(self, z: Tensor, noise: Tensor, t: int, cameras: Cameras) -> Tensor:
        """Mean squared error of the network's output for x_t = alpha z + sigma noise (ProlificDreamer section 3.2)."""
        alpha, sigma = self.teacher.alpha_sigma(t)
        target = self.teacher.schedule.target(z, noise, t)
        return F.mse_loss(self.output(alpha * z + sigma * noise, t, cameras), target)

    def learn(self, z: Tensor, cameras: Cameras, generator: torch.Generator) -> None:
        """One step of AdamW, at a time drawn from all of the teacher's (ProlificDreamer Algorithm 1)."""
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
