"""How many clusters? Criteria that judge a number of clusters K without classes, and what they recommend together.

Rows are unit vectors, clustered by spherical k-means in one process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from torch import Tensor
from torch.nn import functional as F

from pipeline.clustering.kmeans import KMeansResult, spherical_kmeans
from pipeline.clustering.label_free import assignment_agreement
from pipeline.clustering.nearest import nearest_center
from pipeline.collectives import Scope

Array = np.ndarray[Any, Any]
RESTARTS, ITERATIONS = 3, 50  # of a k-means: criteria compare many runs, and none has to be the best possible
CLUSTER_SHARE, LEAST_NEIGHBOURS = 2 / 3, 5  # neighbours of a row as a share of a mean cluster, and at least
DENSE = 300  # most rows of a graph whose eigenvalues are all computed at once
NEAR = 1  # picks that differ by one agree: criteria are noisy, and so are classes


def cluster(features: Tensor, num_clusters: int, seed: int, start: Tensor | None = None) -> KMeansResult:
    """Spherical k-means of rows (n, D) from the centres (K, D) of `start`, else by a few restarts of k-means++."""
    return spherical_kmeans(
        features,
        num_clusters,
        init="k-means++" if start is None else start,
        restarts=RESTARTS,
        max_iter=ITERATIONS,
        seed=seed,
        empty="reseed",
        scope=Scope.THIS_WORKER,
    )


def stability(features: Tensor, num_clusters: int, *, pairs: int, seed: int) -> float:
    """Whether two halves of the data give the same clusters (Lange et al. 2004, "Stability-based validation").

    Parameters
    ----------
    features : Tensor (n, D)
        Unit vectors.
    num_clusters : int
        K; 2 <= K <= n // 2.
    pairs : int
        Splits into halves, over which the result is averaged.
    seed : int

    Returns
    -------
    float
        In [-1/2, 1]. The adjusted Rand index, which corrects for chance, between the clusters of all rows under the
        centres of one half and under those of the other.
    """
    generator = torch.Generator().manual_seed(seed)
    agreement = []
    for pair in range(pairs):
        halves = torch.randperm(len(features), generator=generator).tensor_split(2)
        centers = [cluster(features[rows], num_clusters, seed + RESTARTS * pair).centers for rows in halves]
        agreement.append(assignment_agreement(*(nearest_center(features, c).labels for c in centers)))
    return float(np.mean(agreement))


def gap_statistic(features: Tensor, start: Tensor, *, references: int, seed: int) -> float:
    """By how much k-means does better than on rows without clusters (Tibshirani, Walther and Hastie 2001).

    Parameters
    ----------
    features : Tensor (n, D)
        Unit vectors.
    start : Tensor (K, D)
        Centres from which k-means starts. Those of nested clusterings give a curve over K without random jumps.
    references : int
        Sets without clusters: uniform in the box around the rows along their principal axes, and put on the sphere.
    seed : int

    Returns
    -------
    float
        Mean over the references of log W' - log W, with W the sum of cosine distances to the nearest centre.
    """
    mean = features.mean(dim=0)
    axes = torch.linalg.svd(features - mean, full_matrices=False).Vh
    rotated = features @ axes.T  # cosines stay as they are
    low, high = rotated.amin(dim=0), rotated.amax(dim=0)
    least = len(features) * torch.finfo(features.dtype).eps  # a smaller sum is rounding, and may be negative

    def log_inertia(rows: Tensor, at: Tensor | None = None) -> float:
        return math.log(max(least, cluster(rows, len(start), seed, at).inertia))

    others = []
    for reference in range(references):
        generator = torch.Generator().manual_seed(seed + reference)
        uniform = low + (high - low) * torch.rand(rotated.shape, generator=generator)
        others.append(log_inertia(F.normalize(uniform, dim=1)))
    return float(np.mean(others)) - log_inertia(features, start)


def neighbours_for(rows: int, num_clusters: int) -> int:
    """How many neighbours a row has in the graph that judges K: a share of a mean cluster.

    With few neighbours the graph shows each cluster's inner structure, such as the parts into which a model trained
    with too many clusters has cut a class; with more neighbours than a cluster has rows, clusters run into one another.
    """
    return max(LEAST_NEIGHBOURS, round(CLUSTER_SHARE * rows / num_clusters))


def neighbour_graph(features: Tensor, neighbours: int) -> sparse.csr_matrix:
    """The graph (n, n) that links each row to its `neighbours` nearest by cosine, in both directions, with weight 1.

    Parameters
    ----------
    features : Tensor (n, D)
        Unit vectors, n > neighbours.
    """
    from sklearn.neighbors import kneighbors_graph

    # unit vectors are in the same order by distance as by cosine
    graph = kneighbors_graph(features.numpy(), neighbours, metric="euclidean", include_self=False)
    return graph.maximum(graph.T)


def eigengap(graph: sparse.csr_matrix, num_clusters: int) -> float:
    """Eigenvalue K + 1 of the graph's normalised Laplacian minus eigenvalue K (von Luxburg 2007, section 8.3).

    K clusters that hardly touch give K eigenvalues near 0, and a gap between the K-th and the next.
    """
    _, part_of = connected_components(graph, directed=False)
    parts = [np.flatnonzero(part_of == part) for part in range(part_of.max() + 1)]
    values = np.sort(np.concatenate([_connected_eigenvalues(graph[rows][:, rows], num_clusters + 1) for rows in parts]))
    return float(values[num_clusters] - values[num_clusters - 1])


def _connected_eigenvalues(graph: sparse.csr_matrix, most: int) -> Array:
    """The lowest eigenvalues of a connected graph: it has 0 only once, and Lanczos finds no eigenvalue twice."""
    scale = sparse.diags(np.asarray(graph.sum(axis=1)).ravel() ** -0.5)
    links, count = scale @ graph @ scale, graph.shape[0]
    if count <= max(DENSE, most):
        return 1 - np.linalg.eigvalsh(links.toarray())[::-1][:most]
    start = np.random.default_rng(0).random(count)  # ARPACK's own start differs in every call
    return 1 - eigsh(links, k=most, which="LA", return_eigenvectors=False, v0=start, tol=1e-5)


def modularity(graph: sparse.csr_matrix, labels: Array) -> float:
    """Share of the graph's links within clusters, less that of a random graph of the same degrees (Newman 2004).

    Parameters
    ----------
    graph : csr_matrix (n, n)
        Symmetric.
    labels : ndarray (n,) int
        Clusters.

    Returns
    -------
    float
        In [-1/2, 1). Splitting a cluster cuts links within it, and merging two that share none gains none, so the
        curve over K has a peak.
    """
    links = cluster_links(graph, labels)
    links = links / links.sum()
    return float(np.trace(links) - (links.sum(axis=1) ** 2).sum())


def cluster_links(graph: sparse.csr_matrix, labels: Array) -> Array:
    """Weight of the graph's links between clusters (K, K), those within one on the diagonal."""
    members = sparse.csr_matrix((np.ones(len(labels)), (np.arange(len(labels)), labels)))
    return (members.T @ graph @ members).toarray()


class Recommendation(NamedTuple):
    """A number of clusters, and the share of the criteria that pick it or a neighbouring one."""

    num_clusters: int
    confidence: float


def highest(numbers: Sequence[int], curve: Sequence[float]) -> int:
    """The K where a curve is highest; the lowest such K."""
    return numbers[int(np.argmax(curve))]


def sharpest_bend(numbers: Sequence[int], curve: Sequence[float]) -> int:
    """The K after which the rise of a curve slows down the most: where 2 c(K) - c(K-1) - c(K+1) is highest.

    For the gap statistic this is the rule of Yan and Ye (2007), DDGap. The original rule of Tibshirani et al. (2001)
    takes a K that the next does not beat by its standard error: on features whose clusters have inner structure, such
    as those of images, the gap keeps rising slowly, and so does the K of that rule. Neither end of the curve can be
    picked.
    """
    return numbers[1 + int(np.argmax(-np.diff(np.asarray(curve), n=2)))]


def recommend(picks: Mapping[str, int]) -> Recommendation:
    """The pick with the most criteria within one of it; on ties the one nearest to the median, then the lowest.

    Parameters
    ----------
    picks : mapping
        The K of each criterion, one vote each.
    """
    votes = np.array(sorted(picks.values()))
    support = {int(k): int((abs(votes - k) <= NEAR).sum()) for k in votes}
    middle = float(np.median(votes))
    best = min(support, key=lambda k: (-support[k], abs(k - middle), k))
    return Recommendation(best, support[best] / len(votes))
