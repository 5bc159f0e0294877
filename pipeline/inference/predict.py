"""From similarities to what is said of an image: its cluster, how sure that is, and how unusual the image is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Array = np.ndarray[Any, Any]
OUTLIER = 3.5
"""An image with a larger outlier score is unusual for its cluster: the limit of Iglewicz and Hoaglin, How to Detect and
Handle Outliers (1993)."""
MAD_TO_STD = 1.4826  # of a normal distribution
LEAST_DEVIATION = 1e-3  # of similarities: in tighter clusters differences are rounding


class Prediction(NamedTuple):
    """What a model says of images, each a Tensor (n,).

    `cluster` int64 is the nearest centre, `similarity` the cosine to it, `runner_up` int64 the second nearest centre,
    and `margin`, in [0, 2], by how much it is less similar.
    """

    cluster: Tensor
    similarity: Tensor
    runner_up: Tensor
    margin: Tensor


def predict(similarities: Tensor) -> Prediction:
    """The prediction from the cosines (n, K) with all centres, K >= 2; the lowest number wins ties."""
    similarity, cluster = similarities.max(dim=1)
    others = similarities.scatter(1, cluster[:, None], -torch.inf)
    second, runner_up = others.max(dim=1)
    return Prediction(cluster, similarity, runner_up, similarity - second)


class TrainingClusters(BaseModel):
    """The clusters as the training images fill them: what other images are compared with.

    Attributes
    ----------
    sizes : tuple of int
        Training images of each cluster.
    median, deviation : tuple of float
        Of the similarities of a cluster's training images with its centre: their median, and their median absolute
        deviation scaled to a standard deviation. An empty cluster has those of all images.
    similarity : float
        Mean over all training images.
    outliers : float
        Share of the training images whose outlier score is above `OUTLIER`.
    """

    model_config = ConfigDict(frozen=True)

    sizes: tuple[int, ...]
    median: tuple[float, ...]
    deviation: tuple[float, ...]
    similarity: float
    outliers: float

    def outlier(self, cluster: Array, similarity: Array) -> Array:
        """Outlier scores (n,) float32: by how many deviations the similarity is below the median of the cluster."""
        median, deviation = np.asarray(self.median)[cluster], np.asarray(self.deviation)[cluster]
        return ((median - similarity) / deviation).astype(np.float32)


def measure_clusters(cluster: Array, similarity: Array, num_clusters: int) -> TrainingClusters:
    """The clusters of the training images, from the prediction of each (N,)."""
    sizes = np.bincount(cluster, minlength=num_clusters)
    groups = np.split(similarity[np.argsort(cluster, kind="stable")], np.cumsum(sizes)[:-1])
    spread = [_median_and_deviation(group if len(group) else similarity) for group in groups]
    median, deviation = zip(*spread, strict=True)
    measured = TrainingClusters(
        sizes=tuple(sizes.tolist()),
        median=median,
        deviation=deviation,
        similarity=float(similarity.mean()),
        outliers=0.0,
    )
    share = float((measured.outlier(cluster, similarity) > OUTLIER).mean())
    return measured.model_copy(update={"outliers": share})


def _median_and_deviation(values: Array) -> tuple[float, float]:
    median = float(np.median(values))
    deviation = MAD_TO_STD * float(np.median(np.abs(values - median)))
    return median, max(deviation, LEAST_DEVIATION)
