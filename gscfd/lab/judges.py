"""Networks that judge pictures for `gscfd.evaluate`, from local folders, and the toybox's own scorer."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from gscfd.errors import UserError
from gscfd.teachers.texts import read_text_model, read_tokenizer
from gscfd.teachers.weights import read_json, read_state
from gscfd.toybox.kinds import COLORS
from gscfd.toybox.objects import KINDS
from gscfd.toybox.words import Caption, write_caption

SCORER = Path(str(resources.files("gscfd.toybox"))) / "weights" / "scorer"
BATCH = 32
TOYBOX = "the toybox scorer"
FEATURE_METRICS = ("fid", "is", "clip", "r_precision", "similarity", "diversity", "janus")
"""Metrics that depend on the choice of a feature network."""


class Scorer:
    """A CLIP model that scores how well pictures fit captions. folder: model and tokenizer in transformers' layout.

    Pictures are scaled to the model's size and normalized according to preprocessor_config.json, or to [-1, 1] without
    one. PickScore has the same layout. option: names the folder in errors. Raises UserError if the folder cannot be
    read.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", option: str = "clip"):
        try:
            self.tokenizer = read_tokenizer(folder)
            model = read_text_model(CLIPModel, folder, torch.float32)
        except UserError as error:
            raise UserError(
                f"{option}: expected a folder with a CLIP model and its tokenizer in transformers' layout. {error}"
            ) from error
        self.model: CLIPModel = model.eval().to(device)
        self.read: dict[str, Tensor] = {}
        self.device = device
        self.size: int = self.model.config.vision_config.image_size
        self.name = TOYBOX if folder == SCORER else folder.resolve().name
        self.scale: float = self.model.logit_scale.exp().item()
        self.mean, self.std = (self._preprocessing(folder, key) for key in ("image_mean", "image_std"))

    def _preprocessing(self, folder: Path, key: str) -> Tensor:
        path = folder / "preprocessor_config.json"
        values = read_json(path).get(key) if path.is_file() else None
        return torch.tensor(values or [0.5] * 3, device=self.device)[:, None, None]

    @torch.no_grad()
    def similarity(self, images: Tensor, captions: list[str]) -> Tensor:
        """Returns the cosine similarities [V, P] of images [V, 3, H, W] in [0, 1] and P captions."""
        return self.image_features(images) @ self.text_features(captions).T

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Returns unit-length features [V, D] of images [V, 3, H, W] in [0, 1]."""
        return torch.cat([self._embedded(batch) for batch in images.split(BATCH)])

    @torch.no_grad()
    def text_features(self, captions: list[str]) -> Tensor:
        """Returns unit-length features [P, D] of captions. Each caption is encoded once."""
        if new := [caption for caption in dict.fromkeys(captions) if caption not in self.read]:
            tokens = self.tokenizer(new, padding="max_length", truncation=True, return_tensors="pt")
            pooled = self.model.text_model(input_ids=tokens.input_ids.to(self.device)).pooler_output
            features = F.normalize(self.model.text_projection(pooled), dim=-1).cpu()
            self.read |= dict(zip(new, features, strict=True))
        return torch.stack([self.read[caption] for caption in captions])

    def _embedded(self, images: Tensor) -> Tensor:
        images = images.to(self.device)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        pooled = self.model.vision_model(pixel_values=(images - self.mean) / self.std).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1).cpu()


class Inception:
    """The Inception network of FID and IS, as used by torchmetrics.

    file: its weights, pt_inception-2015-12-05-6726825d.pth.

    Raises UserError if torch-fidelity is not installed or the file does not fit the network.
    """

    name = "Inception v3"

    def __init__(self, file: Path, device: torch.device | str = "cpu"):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise UserError(
                "inception: expected torch-fidelity, which is not installed: pip install 'gscfd[eval]'"
            ) from error
        self.device = device
        read_state(file)  # raises UserError for anything but tensors: torch-fidelity would run code in the file
        try:
            self.network: nn.Module = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"inception: expected the weights pt_inception-2015-12-05-6726825d.pth, got {file}; download them again"
            ) from error
        self.network.eval().to(device)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features [V, 2048] and class probabilities [V, 1008] of images [V, 3, H, W] in [0, 1]."""
        features, logits = [], []
        with torch.no_grad():
            for batch in images.split(BATCH):
                seen = self.network((batch * 255).round().to(torch.uint8).to(self.device))
                features.append(seen[0].cpu())
                logits.append(seen[1].cpu())
        return torch.cat(features), torch.cat(logits).softmax(1)


class Aesthetic:
    """LAION's aesthetic predictor, a stack of linear layers on CLIP's image features (about 1 to 10).

    file: sac+logos+ava1-l14-linearMSE.pth. scorers: CLIP models, which must include the ViT-L/14 that it was trained
    on. Raises UserError for another file or if that model is missing.
    """

    def __init__(self, file: Path, scorers: list[Scorer]):
        try:
            saved = read_state(file)
            numbers = sorted(int(name.split(".")[1]) for name in saved if name.endswith(".weight"))
            self.layers = [(saved[f"layers.{n}.weight"].float(), saved[f"layers.{n}.bias"].float()) for n in numbers]
            width = self.layers[0][0].shape[1]
        except (ValueError, LookupError) as error:
            raise UserError(
                f"aesthetic: expected sac+logos+ava1-l14-linearMSE.pth, got {file}; download it again"
            ) from error
        fitting = [s for s in scorers if s.model.config.projection_dim == width]
        if not fitting:
            raise UserError(
                f"aesthetic: expected a CLIP model of width {width} among --clip, as used to train {file.name}; "
                "add the folder of openai/clip-vit-large-patch14"
            )
        self.scorer = fitting[0]

    def scores(self, images: Tensor) -> Tensor:
        """Returns the scores [V] of images [V, 3, H, W] in [0, 1]."""
        x = self.scorer.image_features(images)
        for weight, bias in self.layers:
            x = F.linear(x, weight, bias)
        return x[:, 0]


def toybox_captions() -> list[str]:
    """Returns captions of every color of every kind: the classes of the toybox's inception score."""
    return [write_caption(Caption(kind=kind, color=color)) for kind in KINDS for color in COLORS]


@dataclass(kw_only=True)
class Judges:
    """The networks of one evaluation."""

    scorers: list[Scorer] = field(default_factory=list)
    """CLIP backbones. The first one retrieves prompts and compares objects and views."""
    inception: Inception | None = None
    aesthetic: Aesthetic | None = None
    pickscore: Scorer | None = None

    @property
    def features_of(self) -> str:
        """Name of the network whose features FID compares."""
        return self.inception.name if self.inception else self.scorers[0].name

    def networks_of(self, metric: str) -> str:
        """Returns the names of the networks whose features the metric compares; "" if it needs none."""
        if not self.scorers or metric not in FEATURE_METRICS:
            return ""
        if metric in ("fid", "is"):
            names = [self.features_of]
        else:
            names = [scorer.name for scorer in (self.scorers if metric == "clip" else self.scorers[:1])]
        return " and ".join("toybox" if name == TOYBOX else name for name in names)

    @property
    def toybox(self) -> bool:
        """Whether the toybox scorer is the first judge."""
        return bool(self.scorers) and self.scorers[0].name == TOYBOX

    def features(self, images: Tensor) -> Tensor:
        """Returns the features [V, D] that FID compares: Inception's if available, else the first scorer's."""
        return self.inception.look(images)[0] if self.inception else self.scorers[0].image_features(images)

    def classes(self, images: Tensor) -> Tensor:
        """Returns class probabilities [V, classes]: Inception's 1008 classes, or the toybox scorer's 432 captions."""
        if self.inception:
            return self.inception.look(images)[1]
        scorer = self.scorers[0]
        return (scorer.scale * scorer.similarity(images, toybox_captions())).softmax(1)
