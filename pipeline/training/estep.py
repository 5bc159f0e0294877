"""The E-step: features of every image, from them pseudo-labels, and how healthy both look (DigPro section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.clustering.scores import clustering_scores
from pipeline.collectives import all_stack, all_sum, gather_rows, route_rows_to_owner
from pipeline.config.models import EStepConfig
from pipeline.data.loader import Images
from pipeline.data.views import TwoViews
from pipeline.method.digpro import DigPro


@dataclass(frozen=True)
class PseudoLabels:
    """Result of an E-step, equal on every worker.

    Attributes
    ----------
    labels : Tensor (N,) int64
        Cluster of every image, by its index.
    centers : Tensor (K, D)
    others : Tensor (R-1, K, D) or None
        What the other starts of k-means came to; None after a resume, since only the E-step itself looks at them.
    """

    labels: Tensor
    centers: Tensor
    others: Tensor | None = None


def all_features(model: DigPro, images: Images, views: TwoViews, total: int) -> Tensor:
    """Target features (own rows, D) of this worker's contiguous part of the N = `total` images, un-augmented."""
    parts, index = [], []
    for block, numbers in images.blocks():
        parts.append(model.encode(views.plain(block)))
        index.append(numbers)
    device, size = model.groups.features.device, model.groups.features.shape[1]
    features = torch.cat(parts) if parts else torch.empty((0, size), device=device)
    numbers = torch.cat(index) if index else torch.empty(0, dtype=torch.int64, device=device)
    return route_rows_to_owner(features, numbers, total)


def estimate(
    features: Tensor, num_clusters: int, settings: EStepConfig, seed: int, previous: PseudoLabels | None
) -> tuple[PseudoLabels, dict[str, float]]:
    """Cluster the workers' features (own rows, D); pseudo-labels of all images, and the health of both."""
    result = spherical_kmeans(
        features,
        num_clusters,
        restarts=settings.restarts,
        max_iter=settings.max_iter,
        tol=settings.tol,
        seed=seed,
        empty="reseed",
        extra_start=previous.centers if previous is not None and settings.warm_start else None,
    )
    found = PseudoLabels(gather_rows(result.labels), result.centers, result.others)
    health = {"inertia": result.inertia / len(found.labels), "kmeans_iterations": float(result.n_iter)}
    return found, health | size_health(found.labels, num_clusters) | _change(found, previous) | _spread(features)


def size_health(labels: Tensor, num_clusters: int) -> dict[str, float]:
    """Smallest and largest cluster, empty ones, and the entropy of sizes over ln K (1 when all are equal)."""
    sizes = torch.bincount(labels, minlength=num_clusters).double()
    part = sizes / sizes.sum()
    entropy = -torch.special.xlogy(part, part).sum() / torch.log(torch.tensor(float(num_clusters)))
    return {
        "cluster_smallest": float(sizes.min()),
        "cluster_largest": float(sizes.max()),
        "clusters_empty": float((sizes == 0).sum()),
        "size_entropy": float(entropy),
    }


def _change(found: PseudoLabels, previous: PseudoLabels | None) -> dict[str, float]:
    """Label churn: the share of images that left their cluster, under the best matching of old and new clusters."""
    if previous is None:
        return {}
    return {"label_churn": 1 - clustering_scores(previous.labels.cpu(), found.labels.cpu())["acc"]}


def _spread(features: Tensor) -> dict[str, float]:
    """Mean standard deviation of the features' columns times sqrt(D): 1 on an even sphere, 0 when all collapsed."""
    ones = torch.ones_like(features[:, :1])
    sums = all_sum(torch.cat([features, features**2, ones], dim=1).sum(dim=0, dtype=torch.float64))
    size = features.shape[1]
    mean, square = sums[:size] / sums[-1], sums[size:-1] / sums[-1]
    return {"feature_spread": float((square - mean**2).clamp(min=0).sqrt().mean() * size**0.5)}


def rank_spread(x: Tensor) -> float:
    """Largest difference of any element of `x` between workers: 0 for what must be equal everywhere."""
    stacked = all_stack(x)
    return float((stacked.amax(dim=0) - stacked.amin(dim=0)).max())
