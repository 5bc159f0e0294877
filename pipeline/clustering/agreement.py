"""How far two clusterings of the same rows agree, cluster by cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


def match_clusters(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cluster of A (B,) that each of B is, under the best one-to-one matching; -1 for one that is left over.

    Parameters
    ----------
    table : ndarray (A, B) int
        Rows in each pair of clusters.
    """
    rows, columns = linear_sum_assignment(table, maximize=True)
    found = np.full(table.shape[1], -1)
    found[columns] = rows
    return found


def jaccard_of_best(table: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each cluster of A (A,) the Jaccard index with the cluster of B that is most like it; 0 for an empty one.

    The mean of it over other clusterings is the stability of Hennig (2007), "Cluster-wise assessment of cluster
    stability", who takes values below 0.6 for unstable and above 0.85 for very stable.

    Parameters
    ----------
    table : ndarray (A, B) int
        Rows in each pair of clusters.
    """
    sizes, others = table.sum(axis=1), table.sum(axis=0)
    union = sizes[:, None] + others[None, :] - table
    found: NDArray[np.float64] = (table / np.maximum(union, 1)).max(axis=1)
    return found
