"""Splats and run folders without a run: true objects of the toybox."""

import json
from pathlib import Path

import numpy as np
import torch

from gscfd.config import Config, MethodName, to_yaml
from gscfd.gaussians import Gaussians
from gscfd.lab.assets import as_gaussians
from gscfd.runs.names import FINISHED_FILE
from gscfd.toybox.objects import sample_object


def two_faced(splat: Gaussians) -> Gaussians:
    """The front half of a splat twice, back to back: the Janus problem."""
    front = splat.means[:, 0] > 0
    tensors = {name: value[front] for name, value in splat.tensors().items()}
    w, x, y, z = tensors["quats"].unbind(1)
    turned = {
        **tensors,
        "means": tensors["means"] * torch.tensor([-1.0, -1.0, 1.0]),
        "quats": torch.stack([-z, -y, x, w], 1),
    }
    return Gaussians(**{name: torch.cat([tensors[name], turned[name]]) for name in tensors})


def write_run(
    folder: Path, *, prompt: str, seed: int, guidance: MethodName = "cfd", kind: str, color: str, variance: float = 0.5
) -> Path:
    """A finished run that has made a true object."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(Config(prompt=prompt, seed=seed, guidance=guidance)))
    as_gaussians(sample_object(seed, kind=kind, color=color, spacing=0.08, allow_withheld=True)).save_ply(
        folder / "splat.ply"
    )
    (folder / FINISHED_FILE).write_bytes(b"")
    rows = [
        {"stage": "coarse", "step": 0, "memory": 2**20, "seconds": {"render": 1.0, "teacher": 2.0}},
        {
            "stage": "coarse",
            "step": 1,
            "memory": 3 * 2**20,
            "seconds": {"render": 1.0, "teacher": 2.0},
            "gradient_variance": {"means": variance, "sh0": np.sqrt(variance)},
        },
        {"stage": "coarse", "step": 2, "trouble": "fog", "back_to": 0, "rollbacks": 1},
    ]
    (folder / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
