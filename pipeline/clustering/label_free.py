"""How well separated and how stable clusters are, without classes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional as F

from pipeline.clustering.nearest import center_margin
from pipeline.clustering.scores import adjusted_rand_index, without_empty
from pipeline.collectives import all_sum

SAME = 1e-4  # rows at a lower cosine distance differ by rounding only: bfloat16's is about 1e-5
LABEL_FREE_WEIGHTS = {"size_entropy": 1 / 2, "view_agreement": 1 / 6, "silhouette": 1 / 6, "estep_agreement": 1 / 6}


def cosine_silhouette(features: Tensor, labels: Tensor) -> float:
    """Mean silhouette in cosine distance (Rousseeuw 1987): how much nearer rows are to their cluster than to others.

    Parameters
    ----------
    features : Tensor (n, D)
    labels : Tensor (n,)
        Clusters. Memory and time grow with n squared.

    Returns
    -------
    float
        In [-1, 1]. The mean of (b - a) / max(a, b), with a, b a row's mean distances to its own and to the nearest
        other cluster; 0 for a row alone in its cluster. -1, the worst, when one cluster has all rows, so that b does
        not exist.
    """
    from sklearn.metrics import silhouette_score

    clusters = len(labels.unique())
    if clusters == 1:
        return -1.0
    if clusters == len(labels):
        return 0.0
    directions = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
    distances = 1 - directions @ directions.T
    distances[distances < SAME] = 0  # else the ratio would mistake the rounding of equal rows for clusters
    return float(silhouette_score(distances.cpu().numpy(), labels.cpu().numpy(), metric="precomputed"))


def assignment_agreement(first: ArrayLike, second: ArrayLike) -> float:
    """Whether two clusterings put the same images together, corrected for chance: the adjusted Rand index.

    Agreement of clusterings that should not differ (two views, two E-steps) is the stability that Ben-Hur et al. (2002)
    and Lange et al. (2004) use to choose models. Cluster numbers carry no meaning, so one measure serves all such
    pairs. It is corrected for chance (Hubert and Arabie 1985) because lopsided clusterings agree by accident.

    Parameters
    ----------
    first, second : array_like (n,)
        Clusters of the same images.

    Returns
    -------
    float
        In [-1/2, 1]: 1 for the same clusters, about 0 for unrelated ones. Also 0 when either has a single cluster,
        which carries no information (scikit-learn gives 1 when both have).
    """
    from sklearn.metrics.cluster import contingency_matrix

    return contingency_agreement(csr_array(contingency_matrix(first, second, sparse=True)))


def contingency_agreement(table: csr_array) -> float:
    """The same agreement from the counts (A, B) of images in each pair of clusters; clusters may be empty."""
    table = without_empty(table)
    return 0.0 if 1 in table.shape else adjusted_rand_index(table)


def prototype_margin(features: Tensor, centers: Tensor) -> float:
    """Mean over the rows of all workers of cosine to the nearest centre minus cosine to the second nearest.

    That is b - a of the simplified silhouette (Hruschka et al. 2004), which measures distances to centres, without its
    division by max(a, b): unlike the ratio, the difference goes to 0 as features collapse.

    Parameters
    ----------
    features : Tensor (n_local, D)
        This worker's rows.
    centers : Tensor (K, D)
        Equal on every worker; K >= 2.

    Returns
    -------
    float
        In [0, 2].
    """
    margin = center_margin(features, centers).double()
    total, count = all_sum(torch.stack([margin.sum(), torch.ones_like(margin).sum()])).tolist()
    return total / count


def label_free_score(parts: Mapping[str, float]) -> float:
    """A score in [0, 1] to compare runs when there are no classes; higher is better.

    The weighted geometric mean of the parts in LABEL_FREE_WEIGHTS, each clamped at 0. It is a product, not a sum,
    because each part is easy to raise at the expense of another: a run that fails on one cannot make up for it
    elsewhere, and scores 0 where one part is 0. Merging clusters improves every part but their balance, which
    therefore weighs as much as the others together.

    Parameters
    ----------
    parts : mapping
        `size_entropy`, `view_agreement`, `silhouette` and `estep_agreement`, each 1 at best; others are ignored.
    """
    return math.prod(max(parts[name], 0.0) ** weight for name, weight in LABEL_FREE_WEIGHTS.items())
