"""How well clusters agree with known classes.

Tables of counts are sparse: no more of the K x K pairs of clusters occur than there are rows. Only rank 0 has them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.special import entr
from torch import Tensor

from pipeline.collectives import all_stack, gather_to_rank_zero

BLOCK_PAIRS = 1 << 17  # pairs of clusters that are processed together
Numbers = NDArray[np.int64]
EXACT_MATCHING = 10_000  # classes or clusters, the fewer of the two, up to which the best matching takes seconds


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
        `acc`: share of rows on the best one-to-one matching of clusters and classes (on the rectangular
        contingency table); `nmi`: mutual information over the arithmetic mean of entropies; `ari`: adjusted Rand index.

    Raises
    ------
    ValueError
        When the lengths differ or no row has a class.
    """
    from sklearn.metrics.cluster import contingency_matrix

    classes, clusters = np.asarray(true), np.asarray(predicted)
    if classes.shape != clusters.shape or classes.ndim != 1:
        raise ValueError(f"true is {classes.shape} and predicted {clusters.shape}; give two arrays of one length")
    known = classes != -1
    if not known.any():
        raise ValueError("every class is -1 (unknown); scores need at least one labelled row")
    classes, clusters = classes[known], clusters[known]
    return contingency_scores(csr_array(contingency_matrix(classes, clusters, sparse=True)))


def contingency_table(first: Tensor, second: Tensor, shape: tuple[int, int]) -> csr_array | None:
    """How many rows of all workers have each pair of labels: (A, B) int64 on rank 0, None on the others.

    Parameters
    ----------
    first, second : Tensor (n_local,) int
        Labels of this worker's rows, in 0..A-1 and 0..B-1.
    shape : (A, B)
        The same on every worker.
    """
    pairs, counts = (first.long() * shape[1] + second).unique(return_counts=True)
    found = gather_to_rank_zero(torch.stack([pairs, counts], dim=1))
    if found is None:
        return None
    pair, count = found.cpu().numpy().T
    return csr_array((count, np.divmod(pair, shape[1])), shape=shape)  # which adds up the workers' counts


def class_table(classes: Tensor, clusters: Tensor, num_clusters: int) -> csr_array | None:
    """Rows of all workers in each class and cluster: (C, K) int64 on rank 0, None on the others.

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


def contingency_scores(table: csr_array) -> dict[str, float]:
    """The same scores from counts, for clusterings too large to hold the labels of all rows.

    Parameters
    ----------
    table : csr_array (classes, clusters) int
        Rows of each class in each cluster; at least one.

    Returns
    -------
    dict
        `acc`, `nmi` and `ari`, as scikit-learn's functions give the last two for labels.
    """
    table = without_empty(table)
    return {
        "acc": matching_accuracy(table),
        "nmi": _nmi(table),
        "ari": adjusted_rand_index(table),
    }


def without_empty(table: csr_array) -> csr_array:
    """The counts (A, B) without the rows and columns that are zero."""
    return table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]


def matching_accuracy(table: csr_array) -> float:
    """Share of the rows counted (A, B) in clusters matched one to one; a lower bound where `match` is greedy."""
    rows, columns = match(table)
    return float(table[rows, columns].sum() / table.sum())


def match(table: csr_array) -> tuple[Numbers, Numbers]:
    """Match rows and columns of the table (A, B) one to one, so that their counts have a large sum.

    It is the largest sum, except with more than `EXACT_MATCHING` clusters on both sides: then the matching is greedy,
    because the best one would take minutes.
    """
    return (greedy_matching if min(table.shape) > EXACT_MATCHING else best_matching)(table)


def best_matching(table: csr_array) -> tuple[Numbers, Numbers]:
    """Match rows and columns of the table (A, B) one to one, so that their counts have the largest sum.

    scipy matches all rows and columns, along nonzero counts only. So each row and column gets a dummy partner of its
    own with count 0; the dummies of a matched row and column are matched with each other.
    """
    rows, columns = table.shape
    counts = table.tocoo()
    row, column = counts.coords
    left = np.concatenate([row, np.arange(rows + columns), rows + column])
    right = np.concatenate([column, columns + np.arange(rows), np.arange(columns), columns + row])
    gains = np.concatenate([counts.data, np.zeros(len(left) - counts.nnz, np.int64)])
    costs = csr_array(((gains.max() + 1 - gains).astype(np.float64), (left, right)))  # a zero would be no edge
    left, right = min_weight_full_bipartite_matching(costs)
    matched = (left < rows) & (right < columns)
    return left[matched], right[matched]


def greedy_matching(table: csr_array) -> tuple[Numbers, Numbers]:
    """Match rows and columns of the table (A, B) by their counts, the largest first; on ties in any order."""
    counts = table.tocoo()
    order = np.argsort(-counts.data, kind="stable")
    free_rows, free_columns = (np.ones(size, bool) for size in counts.shape)
    matched: list[tuple[int, int]] = []
    for start in range(0, len(order), BLOCK_PAIRS):
        row, column = (numbers[order[start : start + BLOCK_PAIRS]] for numbers in counts.coords)
        free = free_rows[row] & free_columns[column]
        for pair in zip(row[free].tolist(), column[free].tolist(), strict=True):
            if free_rows[pair[0]] and free_columns[pair[1]]:
                free_rows[pair[0]] = free_columns[pair[1]] = False
                matched.append(pair)
    rows, columns = np.array(matched, np.int64).reshape(-1, 2).T
    return rows, columns


def _nmi(table: csr_array) -> float:
    """Mutual information over the arithmetic mean of both entropies; 1 for one class in one cluster."""
    if table.shape == (1, 1):
        return 1.0
    total = table.sum()
    of_clusters, of_classes, joint = (
        float(entr(counts / total).sum()) for counts in (table.sum(axis=0), table.sum(axis=1), table.data)
    )
    information = of_clusters + of_classes - joint
    return float(max(information, 0.0) / ((of_clusters + of_classes) / 2))  # rounding can make 0 negative


def adjusted_rand_index(table: csr_array) -> float:
    """The adjusted Rand index, from the counts (A, B) of rows in each pair of clusters (Hubert and Arabie 1985).

    Pairs of rows are counted in whole numbers, which cannot overflow.
    """

    def pairs(counts: Numbers) -> int:
        sizes, often = (values.tolist() for values in np.unique(counts, return_counts=True))
        return sum(n * (n - 1) // 2 * times for n, times in zip(sizes, often, strict=True))

    together, in_class, in_cluster = pairs(table.data), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    total = pairs(table.data.sum(keepdims=True))
    if in_class == in_cluster == together:  # the same partition, also when it is trivial
        return 1.0
    expected = in_class * in_cluster / total
    return (together - expected) / ((in_class + in_cluster) / 2 - expected)
