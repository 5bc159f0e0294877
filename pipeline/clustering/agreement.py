"""How far two clusterings of the same rows agree, cluster by cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipeline.clustering.scores import match


def count_pairs(first: NDArray[np.integer], second: NDArray[np.integer]) -> csr_array:
    """How many rows have each pair of clusters: (A, B) int, from the clusters (N,) of two clusterings of the rows."""
    shape = int(first.max()) + 1, int(second.max()) + 1
    return csr_array((np.ones(len(first), np.int64), (first, second)), shape=shape)  # which adds up equal pairs


def match_clusters(table: csr_array) -> NDArray[np.int64]:
    """The cluster of A (B,) that each of B is matched to, one to one (`pipeline.clustering.scores.match`); -1 for none.

    Parameters
    ----------
    table : csr_array (A, B) int
        Rows in each pair of clusters.
    """
    rows, columns = match(table)
    found = np.full(table.shape[1], -1)
    found[columns] = rows
    return found


def matched_to_first(clusters: NDArray[np.integer]) -> NDArray[np.integer]:
    """The same clusterings (R, N), numbered as in the first; -1 where a cluster has no counterpart (`match_clusters`).

    Parameters
    ----------
    clusters : array (R, N) int
        The clusters of each row in each of R clusterings.
    """
    first, *others = clusters
    matches = (match_clusters(count_pairs(first, other)).astype(first.dtype) for other in others)
    return np.stack([first, *(match[other] for match, other in zip(matches, others, strict=True))])


def majority(clusters: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """The cluster (N,) that most clusterings give to a row, the first on ties, and the share of them (N,) that do.

    Parameters
    ----------
    clusters : array (R, N) int
        Numbered as in the first clustering (`match_clusters`), which has no -1; -1 in another agrees with nothing.
    """
    votes = np.stack([(clusters == found).sum(axis=0) * (found >= 0) for found in clusters])
    return clusters[votes.argmax(axis=0), np.arange(clusters.shape[1])], votes.max(axis=0) / len(clusters)


def shared_with_match(table: csr_array, match: NDArray[np.integer]) -> NDArray[np.int64]:
    """Rows (B,) that are in a cluster of B and in the one of A that it is matched to (`match_clusters`); 0 for none."""
    (matched,) = np.nonzero(match >= 0)
    found = np.zeros(len(match), np.int64)
    found[matched] = table[match[matched], matched]
    return found


def flows(table: csr_array, match: NDArray[np.integer]) -> NDArray[np.int64]:
    """Pairs of clusters that share rows though they are not matched: (F, 3) of A, of B, and rows; the largest first.

    Parameters
    ----------
    table : csr_array (A, B) int
        Rows in each pair of clusters.
    match : array (B,) int
        The cluster of A that each of B is matched to; -1 for none.
    """
    counts = table.tocoo()
    row, column = counts.coords
    found = np.stack([row, column, counts.data], axis=1).astype(np.int64)[match[column] != row]
    return found[np.argsort(-found[:, 2], kind="stable")]


def jaccard_of_best(table: csr_array) -> NDArray[np.float64]:
    """For each cluster of A (A,) the Jaccard index with the most similar cluster of B; 0 for an empty one.

    Its mean over other clusterings is the stability of Hennig (2007), "Cluster-wise assessment of cluster stability",
    who calls values below 0.6 unstable and values above 0.85 very stable.

    Parameters
    ----------
    table : csr_array (A, B) int
        Rows in each pair of clusters.
    """
    counts = table.tocoo()
    row, column = counts.coords
    union = table.sum(axis=1)[row] + table.sum(axis=0)[column] - counts.data
    found = np.zeros(table.shape[0])
    np.maximum.at(found, row, counts.data / union)
    return found
