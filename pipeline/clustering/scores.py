"""How well clusters agree with known classes; and, without classes, how separate and how stable they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


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
    table = contingency_matrix(classes, clusters)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return {
        "acc": float(table[rows, columns].sum() / len(classes)),
        "nmi": float(normalized_mutual_info_score(classes, clusters)),
        "ari": float(adjusted_rand_score(classes, clusters)),
    }
