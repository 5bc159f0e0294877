"""The trained model as a module: uint8 images in, similarities with the clusters out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.build import build_model, build_preprocess, open_encoder, without_weights
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.method.losses import unit

TARGET = "networks.target."  # prefix of the target network's names in a checkpoint


class ClusterModel(nn.Module):
    """uint8 images (B, H, W, 3) to cosine similarities (B, K) with the cluster centres, and to features (B, D).

    With a frozen backbone, `backbone` computes features of images and `network` takes them; otherwise `backbone` is
    the identity.

    Parameters
    ----------
    config : RunConfig
    manifest : Manifest
        Of the images that it was trained on: their statistics normalise all others.
    values : dict
        Of one of the run's checkpoints.
    """

    centers: Tensor

    def __init__(self, config: RunConfig, manifest: Manifest, values: dict[str, Any]) -> None:
        super().__init__()
        self.backbone: nn.Module = nn.Identity()
        size = None
        if config.model.freeze:
            self.backbone, size = open_encoder(without_weights(config))
            self.backbone.eval().load_state_dict(values["backbone"])
        model = build_model(config, len(values["centers"]), torch.device("cpu"), cached_size=size)
        network = model.networks.target.float().to(memory_format=torch.contiguous_format)  # as exporters expect them
        weights = {name: value for name, value in values["model"].items() if name.startswith(TARGET)}
        network.load_state_dict({name.removeprefix(TARGET): value for name, value in weights.items()})
        self.network = network.eval()
        self.preprocess = build_preprocess(config, manifest)
        self.register_buffer("centers", unit(values["centers"].float()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities (B, K) in [-1, 1], and unit features (B, D)."""
        features = unit(self.network(self.backbone(self.preprocess(images))))
        return features @ self.centers.T, features
