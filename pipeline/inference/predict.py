"""From similarities to the prediction for an image: its cluster, how sure that is, and how unusual the image is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Array = np.ndarray[Any, Any]
ReadBlocks = Callable[[], Iterable[tuple[Array, Array]]]
"""Reads cluster and similarity, each (n,), of all images block by block; each call starts from the beginning."""
OUTLIER = 3.5
"""An image with a larger outlier score is unusual for its cluster: the limit of Iglewicz and Hoaglin, How to Detect and
Handle Outliers (1993)."""
MAD_TO_STD = 1.4826  # of a normal distribution
LEAST_DEVIATION = 1e-3  # of similarities: in tighter clusters differences are rounding


class Prediction(NamedTuple):
    """A model's predictions for images, each a Tensor (n,).

    `cluster` int64 is the nearest centre, `similarity` the cosine to it, `runner_up` int64 the second nearest centre,
    and `margin`, in [0, 2], how much smaller the cosine to that one is.
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
    """Statistics of the clusters' training images, which other images are compared with.

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


def measure_clusters(read: ReadBlocks, num_clusters: int) -> TrainingClusters:
    """The clusters of the training images, in three passes over their predictions.

    Exact medians need all similarities, so they are held as float32, sorted by cluster: 4 bytes an image, and 4 more
    for each image of the cluster that is being measured.
    """
    sizes = np.zeros(num_clusters, dtype=np.int64)
    for cluster, _ in read():
        sizes += np.bincount(cluster, minlength=num_clusters)
    values = _by_cluster(read, sizes)
    by_cluster = np.split(values, np.cumsum(sizes)[:-1])
    spread = {number: _median_and_deviation(own) for number, own in enumerate(by_cluster) if len(own)}
    if len(spread) < num_clusters:
        of_all = _median_and_deviation(values)  # last, because it reorders values across clusters
        spread = {number: spread.get(number, of_all) for number in range(num_clusters)}
    median, deviation = zip(*(spread[number] for number in range(num_clusters)), strict=True)
    measured = TrainingClusters(
        sizes=tuple(sizes.tolist()),
        median=median,
        deviation=deviation,
        similarity=float(values.mean(dtype=np.float64)),
        outliers=0.0,
    )
    outliers = sum(int((measured.outlier(*block) > OUTLIER).sum()) for block in read())
    return measured.model_copy(update={"outliers": outliers / len(values)})


def _by_cluster(read: ReadBlocks, sizes: Array) -> Array:
    """All similarities (N,) float32, those of cluster 0 first; `sizes` (K,) are the images of each cluster."""
    values = np.empty(sizes.sum(), dtype=np.float32)
    free = np.cumsum(sizes) - sizes  # where the next image of each cluster goes
    for cluster, similarity in read():
        order, counts = np.argsort(cluster, kind="stable"), np.bincount(cluster, minlength=len(sizes))
        shift = free - (np.cumsum(counts) - counts)
        values[np.arange(len(order)) + np.repeat(shift, counts)] = similarity[order]
        free += counts
    return values


def _median_and_deviation(values: Array) -> tuple[float, float]:
    """Median and deviation of values (n,), which are reordered in place."""
    median = float(np.median(values, overwrite_input=True))
    distances = values - median
    np.abs(distances, out=distances)
    return median, max(MAD_TO_STD * float(np.median(distances, overwrite_input=True)), LEAST_DEVIATION)
