"""How well clusters agree with known classes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from pipeline.collectives import all_stack, all_sum


def clustering_scores(true: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """ACC, NMI and ARI of a clustering, for any two numbers of classes and clusters and any label values.

    Parameters
    ----------
    true : array_like (n,) int
        Classes; rows with -1 (unknown) are left out.
    predicted : array_like (n,) int
        Clusters.

    Returns
    -------
    dict
        `acc`: share of rows on the best one-to-one matching of clusters and classes (Hungarian, on the rectangular
        contingency table); `nmi`: mutual information over the arithmetic mean of entropies; `ari`: adjusted Rand index.

    Raises
    ------
    ValueError
        When the lengths differ or no row has a class.
    """
    classes, clusters = np.asarray(true), np.asarray(predicted)
    if classes.shape != clusters.shape or classes.ndim != 1:
        raise ValueError(f"true is {classes.shape} and predicted {clusters.shape}; give two arrays of one length")
    known = classes != -1
    if not known.any():
        raise ValueError("every class is -1 (unknown); scores need at least one labelled row")
    classes, clusters = classes[known], clusters[known]
    return contingency_scores(contingency_matrix(classes, clusters))


def contingency_table(first: Tensor, second: Tensor, shape: tuple[int, int]) -> Tensor:
    """How many rows of all workers have each pair of labels: (A, B) int64, the same on every worker.

    Parameters
    ----------
    first, second : Tensor (n_local,) int
        Labels of this worker's rows, in 0..A-1 and 0..B-1.
    shape : (A, B)
        The same on every worker.
    """
    rows, columns = shape
    pairs = first.long() * columns + second
    return all_sum(torch.bincount(pairs, minlength=rows * columns)).view(shape)


def class_table(classes: Tensor, clusters: Tensor, num_clusters: int) -> Tensor:
    """Rows of all workers in each class and cluster: (C, K) int64, the same on every worker.

    Parameters
    ----------
    classes : Tensor (n_local,) int64
        Of this worker's rows; those with -1 (unknown) are left out. C is one more than the largest on any worker.
    clusters : Tensor (n_local,) int
        In 0..K-1.
    """
    largest = torch.cat([classes, classes.new_full((1,), -1)]).max()  # a worker may have no rows
    known = classes >= 0
    return contingency_table(classes[known], clusters[known], (int(all_stack(largest).max()) + 1, num_clusters))


def contingency_scores(table: NDArray[np.int64]) -> dict[str, float]:
    """The same scores from counts, for clusterings too large to hold the labels of all rows.

    Parameters
    ----------
    table : ndarray (classes, clusters) int
        Rows of each class in each cluster; at least one.

    Returns
    -------
    dict
        `acc`, `nmi` and `ari`, as scikit-learn's functions give the last two for labels.
    """
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    return {
        "acc": matching_accuracy(table),
        "nmi": _nmi(table),
        "ari": adjusted_rand_index(table),
    }


def matching_accuracy(table: NDArray[np.int64]) -> float:
    """Share of the rows counted (A, B) that lie in clusters matched one to one, under the best matching."""
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def _nmi(table: NDArray[np.int64]) -> float:
    """Mutual information over the arithmetic mean of both entropies; 1 for one class in one cluster."""
    if table.shape == (1, 1):
        return 1.0
    of_clusters, of_classes = entropy(table.sum(axis=0)), entropy(table.sum(axis=1))
    information = of_clusters + of_classes - entropy(table.ravel())
    return float(max(information, 0.0) / ((of_clusters + of_classes) / 2))  # rounding can take 0 below it


def adjusted_rand_index(table: NDArray[np.int64]) -> float:
    """From the counts (A, B) of rows in each pair of clusters (Hubert and Arabie 1985).

    Pairs of rows are counted in whole numbers, which cannot overflow.
    """

    def pairs(counts: NDArray[np.int64]) -> int:
        return sum(n * (n - 1) // 2 for n in counts.ravel().tolist())

    together, in_class, in_cluster = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    total = pairs(table.sum(keepdims=True))
    if in_class == in_cluster == together:  # the same partition, also when it is trivial
        return 1.0
    expected = in_class * in_cluster / total
    return (together - expected) / ((in_class + in_cluster) / 2 - expected)
