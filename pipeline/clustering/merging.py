"""Merges clusters if there are too many: a tree over their centres, cut where the wanted number is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray[Any, Any]


def center_tree(centers: Tensor) -> Array:
    """The dendrogram of centres (K, D): average linkage of their cosine distances (Sokal and Michener 1958).

    Returns
    -------
    ndarray (K - 1, 4)
        As scipy's `linkage` returns it.

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
    found = cut_tree(tree, groups)[:, 0]  # fcluster leaves fewer groups where merges have equal heights
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def merged_centers(centers: Tensor, sizes: Tensor, groups: Array) -> Tensor:
    """Centres (G, D) of groups (K,) of clusters with centres (K, D) and sizes (K,): the means of their rows."""
    index = torch.from_numpy(groups).to(centers.device)
    weighted = torch.cat([centers * sizes[:, None], sizes[:, None]], dim=1).double()
    sums = weighted.new_zeros((int(groups.max()) + 1, weighted.shape[1])).index_add_(0, index, weighted)
    return (sums[:, :-1] / sums[:, -1:].clamp(min=1)).to(centers)


def merge_jumps(tree: Array) -> Array:
    """How much higher the merge after each number of groups is than the one before (K - 1,).

    Entry G - 1 is the height at which G groups become G - 1, minus the height of the merge that left G; 0 for G = 1,
    which no merge follows. Parts of one cluster merge low, clusters high: the jump shows where only clusters are left.
    """
    heights = tree[::-1, 2]  # of the merges that leave 1, 2, ... groups
    return np.concatenate([[0.0], -np.diff(heights)])


def group_names(groups: Array) -> dict[int, str]:
    """A name for each cluster, shared by its group: the numbers of the group's clusters, as in "3+17"."""
    members = [np.flatnonzero(groups == group) for group in groups]
    return {cluster: "+".join(map(str, found)) for cluster, found in enumerate(members)}
