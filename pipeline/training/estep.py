"""The E-step: features of every image, and from them pseudo-labels (DigPro section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.clustering.hierarchical import hierarchical_kmeans
from pipeline.clustering.kmeans import KMeansResult, spherical_kmeans
from pipeline.clustering.nearest import nearest_center
from pipeline.clustering.scores import contingency_table
from pipeline.collectives import RowRange, all_sum
from pipeline.config.models import EStepConfig
from pipeline.data.loader import Inputs
from pipeline.features.inputs import FeatureSource
from pipeline.inference.encode import encode_blocks
from pipeline.method.digpro import DigPro
from pipeline.method.losses import unit
from pipeline.training.health import change_metrics, feature_spread, size_metrics

MANY_CLUSTERS = 10_000  # from here on comparing each image with all centres takes longer than encoding it


@dataclass(frozen=True)
class PseudoLabels:
    """Result of an E-step. The centres are equal on every worker; each keeps the labels of its own images only.

    Attributes
    ----------
    labels : Tensor (own rows,) int32
        Clusters of the images that this worker owns.
    centers : Tensor (K, D)
    own : RowRange
        Their rows.
    others : Tensor (R-1, K, D) or None
        Centres of the other starts of k-means; None after a resume, since only the E-step itself looks at them.
    """

    labels: Tensor
    centers: Tensor
    own: RowRange
    others: Tensor | None = None

    def of(self, index: Tensor) -> Tensor:
        """Clusters (n,) int64 of own images, by their index (n,) in the whole set; without waiting for the device.

        IndexError on a CPU, and a failed assertion of the device on a GPU, when an image is another worker's.
        """
        return self.labels.index_select(0, index - self.own.start).long()

    def sizes(self) -> Tensor:
        """Images (K,) int64 of each cluster on all workers, which all call it."""
        return all_sum(torch.bincount(self.labels, minlength=len(self.centers)))


def encode_all(model: DigPro, inputs: Inputs, preprocess: Callable[[Tensor], Tensor]) -> Tensor:
    """Target features (own rows, D) of this worker's images, un-augmented, in the order of their index.

    Raises
    ------
    ValueError
        When the blocks of the inputs are not one row for each of its images.
    """
    features, own = _encode(model, inputs.blocks(), preprocess), inputs.own
    if len(features) != own.size:
        raise ValueError(
            f"{len(features)} images were read for rows {own.start} to {own.stop - 1} of {own.total}, which are "
            f"{own.size}; ingest the source again"
        )
    return features


def _encode(model: DigPro, blocks: Iterable[tuple[Tensor, Tensor]], preprocess: Callable[[Tensor], Tensor]) -> Tensor:
    """Target features (n, D) of the blocks of this worker's inputs."""
    empty = model.groups.features.new_empty((0, model.groups.features.shape[1]))
    features, _ = encode_blocks(lambda block: model.encode(preprocess(block)), blocks, empty=empty)
    return features


def mean_over_views(
    model: DigPro, inputs: FeatureSource, preprocess: Callable[[Tensor], Tensor], features: Tensor
) -> Tensor:
    """Mean of each image's un-augmented features (own rows, D) and those of its cached views, on the unit sphere.

    What a crop or a colour adds to a feature differs from view to view, and what the image shows does not.
    """
    mean = features.clone()
    for view in range(1, inputs.features.shape[1]):
        mean += _encode(model, inputs.blocks(view), preprocess)
    return unit(mean)


def _cluster(features: Tensor, num_clusters: int, settings: EStepConfig, seed: int) -> KMeansResult:
    """K-means as configured; coarse clusters, divided, where there are very many."""
    options: dict[str, Any] = {
        "restarts": settings.restarts,
        "max_iter": settings.max_iter,
        "tol": settings.tol,
        "seed": seed,
        "empty": "reseed",
        "fit_rows": settings.fit_rows,
    }
    method = hierarchical_kmeans if num_clusters >= MANY_CLUSTERS else spherical_kmeans
    return method(features, num_clusters, **options)


def estimate(
    features: Tensor,
    own: RowRange,
    num_clusters: int,
    settings: EStepConfig,
    seed: int,
    previous: PseudoLabels | None,
    *,
    fitted: Tensor | None = None,
) -> tuple[PseudoLabels, dict[str, float]]:
    """Cluster the workers' features (own rows, D); their pseudo-labels, and the health of both.

    Centres are fitted on `fitted` (own rows, D) where it is given. The labels are those of the features all the same,
    as a model that sees each image once would say.
    """
    result = _cluster(features if fitted is None else fitted, num_clusters, settings, seed)
    labels = result.labels if fitted is None else nearest_center(features, result.centers).labels
    found = PseudoLabels(labels.int(), result.centers, own, result.others)
    health = {"inertia": result.inertia / own.total, "kmeans_iterations": float(result.n_iter)}
    return found, health | label_health(found, previous) | {"feature_spread": feature_spread(features)}


def label_health(found: PseudoLabels, previous: PseudoLabels | None) -> dict[str, float]:
    """Metrics of the clusters' sizes and, after the first E-step, of the change since the one before.

    Only rank 0 has the change, whose matching is costly.
    """
    sizes = size_metrics(found.sizes())
    if previous is None:
        return sizes
    moves = contingency_table(previous.labels, found.labels, (len(previous.centers), len(found.centers)))
    return sizes if moves is None else sizes | change_metrics(moves)
