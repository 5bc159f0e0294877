"""Merging clusters of which there are too many: a tree over their centres, cut where the wanted number is left."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray[Any, Any]


def center_tree(centers: Tensor) -> Array:
    """The dendrogram of centres (K, D): average linkage of their cosine distances (Sokal and Michener 1958).

    Returns
    -------
    ndarray (K - 1, 4)
        As scipy's `linkage` has it.

    Raises
    ------
    ValueError
        When there are fewer than two centres.
    """
    if len(centers) < 2:
        raise ValueError(f"centers has {len(centers)} row; give at least 2: a tree joins pairs")
    directions = F.normalize(centers.double().cpu(), dim=1)
    distances = (1 - directions @ directions.T).clamp(min=0).numpy()  # 1 from the zero centre of an empty cluster
    return linkage(squareform(distances, checks=False), method="average")


def cut(tree: Array, groups: int) -> Array:
    """The group (K,) of each cluster when the tree is cut into `groups`, numbered by their first clusters."""
    found = fcluster(tree, groups, criterion="maxclust")
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def group_names(groups: Array) -> dict[int, str]:
    """A name for each cluster that its group shares: the numbers of the group's clusters, as in "3+17"."""
    members = [np.flatnonzero(groups == group) for group in groups]
    return {cluster: "+".join(map(str, found)) for cluster, found in enumerate(members)}
