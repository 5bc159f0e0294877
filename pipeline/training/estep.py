"""The E-step: features of every image, and from them pseudo-labels (DigPro section 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.collectives import gather_rows, route_rows_to_owner
from pipeline.config.models import EStepConfig
from pipeline.data.loader import Inputs
from pipeline.inference.encode import encode_blocks
from pipeline.method.digpro import DigPro
from pipeline.training.health import feature_spread, label_churn, size_metrics


@dataclass(frozen=True)
class PseudoLabels:
    """Result of an E-step, equal on every worker.

    Attributes
    ----------
    labels : Tensor (N,) int64
        Cluster of every image, by its index.
    centers : Tensor (K, D)
    others : Tensor (R-1, K, D) or None
        Centres of the other starts of k-means; None after a resume, since only the E-step itself looks at them.
    """

    labels: Tensor
    centers: Tensor
    others: Tensor | None = None


def encode_all(model: DigPro, inputs: Inputs, preprocess: Callable[[Tensor], Tensor], total: int) -> Tensor:
    """Target features (own rows, D) of this worker's contiguous part of the N = `total` images, un-augmented."""
    empty = model.groups.features.new_empty((0, model.groups.features.shape[1]))
    features, index = encode_blocks(lambda block: model.encode(preprocess(block)), inputs.blocks(), empty=empty)
    return route_rows_to_owner(features, index, total)


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
    health |= size_metrics(torch.bincount(found.labels, minlength=num_clusters))
    if previous is not None:
        health["label_churn"] = label_churn(previous.labels, found.labels)
    return found, health | {"feature_spread": feature_spread(features)}
