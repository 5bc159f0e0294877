"""The nearest_center centre."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def nearest_center(features: Tensor, centers: Tensor) -> Tensor:
    """Cluster (n,) of each of the features (n, D): the one of centers (K, D) with the largest cosine."""
    return (features @ F.normalize(centers, dim=1).T).argmax(dim=1)
