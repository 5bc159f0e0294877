"""The E-step: features of every image, and from them pseudo-labels (DigPro section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.clustering.hierarchical import hierarchical_kmeans
from pipeline.clustering.kmeans import KMeansResult, spherical_kmeans
from pipeline.clustering.nearest import nearest_center
from pipeline.collectives import from_rank_zero, gather_rows, rank, route_rows_to_owner
from pipeline.config.models import EStepConfig
from pipeline.data.loader import Inputs
from pipeline.features.inputs import FeatureSource
from pipeline.inference.encode import encode_blocks
from pipeline.method.digpro import DigPro
from pipeline.method.losses import unit
from pipeline.training.health import feature_spread, label_churn, size_metrics

MANY_CLUSTERS = 10_000  # from here on comparing each image with all centres takes longer than encoding it


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
    return route_rows_to_owner(*_encode(model, inputs.blocks(), preprocess), total)


def _encode(
    model: DigPro, blocks: Iterable[tuple[Tensor, Tensor]], preprocess: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Target features (n, D) and index (n,) of the blocks of this worker's inputs."""
    empty = model.groups.features.new_empty((0, model.groups.features.shape[1]))
    return encode_blocks(lambda block: model.encode(preprocess(block)), blocks, empty=empty)


def mean_over_views(
    model: DigPro, inputs: FeatureSource, preprocess: Callable[[Tensor], Tensor], features: Tensor
) -> Tensor:
    """Mean of each image's un-augmented features (own rows, D) and those of its cached views, on the unit sphere.

    What a crop or a colour adds to a feature differs from view to view, and what the image shows does not.
    """
    mean = features.clone()
    for view in range(1, inputs.features.shape[1]):
        mean += _encode(model, inputs.blocks(view), preprocess)[0]  # cached features lie on their owners, in order
    return unit(mean)


def _cluster(
    features: Tensor, num_clusters: int, settings: EStepConfig, seed: int, restarts: int, last: Tensor | None
) -> KMeansResult:
    """K-means as configured; coarse clusters, divided, where there are very many: these start anew each time."""
    options: dict[str, Any] = {
        "restarts": restarts,
        "max_iter": settings.max_iter,
        "tol": settings.tol,
        "seed": seed,
        "empty": "reseed",
        "fit_rows": settings.fit_rows,
    }
    if num_clusters >= MANY_CLUSTERS:
        return hierarchical_kmeans(features, num_clusters, **options)
    return spherical_kmeans(features, num_clusters, extra_start=last, **options)


def have_settled(
    history: Sequence[Mapping[str, float]], settings: EStepConfig, warmup_epochs: int, device: torch.device
) -> bool:
    """Whether the last E-step of a run's history changed so few labels that fewer starts will do; never in the warm-up.

    Rank 0's answer, which alone has counted them.
    """
    if settings.settled_restarts is None:
        return False
    counted = [metrics for metrics in history if "label_churn" in metrics and metrics["epoch"] > warmup_epochs]
    churn = counted[-1]["label_churn"] if counted else math.inf
    return bool(from_rank_zero(torch.tensor(churn <= settings.settled_churn, device=device)))


def estimate(
    features: Tensor,
    num_clusters: int,
    settings: EStepConfig,
    seed: int,
    previous: PseudoLabels | None,
    *,
    settled: bool = False,
    fitted: Tensor | None = None,
) -> tuple[PseudoLabels, dict[str, float]]:
    """Cluster the workers' features (own rows, D); pseudo-labels of all images, and the health of both.

    `settled` labels take the fewer starts of `settled_restarts`. Centres are fitted on `fitted` (own rows, D) where it
    is given; the labels are those of the features all the same, as a model that sees each image once would say. The
    churn, the costly part of health, is rank 0's.
    """
    fewer = settings.settled_restarts if settled else None
    warm = previous is not None and (settings.warm_start or fewer is not None)
    last = previous.centers if previous is not None and warm else None
    rows = features if fitted is None else fitted
    result = _cluster(rows, num_clusters, settings, seed, fewer or settings.restarts, last)
    labels = result.labels if fitted is None else nearest_center(features, result.centers).labels
    found = PseudoLabels(gather_rows(labels), result.centers, result.others)
    health = {"inertia": result.inertia / len(found.labels), "kmeans_iterations": float(result.n_iter)}
    health |= size_metrics(torch.bincount(found.labels, minlength=num_clusters))
    if previous is not None and rank() == 0:
        health["label_churn"] = label_churn(previous.labels, found.labels)
    return found, health | {"feature_spread": feature_spread(features)}
