"""A small cluster model without training, and its card."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.pixel_options import AS_THEY_ARE
from pipeline.inference.card import ModelCard
from pipeline.inference.predict import TrainingClusters

CLUSTERS, SIZE = 4, 16
DECODING = {"size": SIZE, "fit": "stretch", "interpolation": "bilinear"}


class SmallModel(nn.Module):
    """uint8 images (B, S, S, 3) to similarities (B, K) and features (B, 8), with layers that differ in training."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.register_buffer("centers", F.normalize(torch.randn(CLUSTERS, 8), dim=1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = F.normalize(self.network(images.permute(0, 3, 1, 2).float() / 255 - 0.5).mean((2, 3)), dim=1)
        return features @ self.centers.T, features


def cluster_model(device: torch.device | str = "cpu") -> nn.Module:
    """The same weights each time."""
    torch.manual_seed(0)
    return SmallModel().eval().requires_grad_(False).to(device)


def card(names: dict[int, str] | None = None) -> ModelCard:
    """Of the small model."""
    even = (0.5,) * CLUSTERS
    clusters = TrainingClusters(sizes=(10,) * CLUSTERS, median=even, deviation=even, similarity=0.5, outliers=0.0)
    return ModelCard(run="small", decoding=DECODING, pixels=AS_THEY_ARE, clusters=clusters, names=names or {})


class BranchingModel(nn.Module):
    """Branches on values, so that torch.export cannot convert it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = cluster_model()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(images if images.sum() > 0 else images + 1)  # type: ignore[no-any-return]
