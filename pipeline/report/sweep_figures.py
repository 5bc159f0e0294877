"""Pictures of a search for the number of clusters: the curve of each criterion, and how clusters merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a cluster
import matplotlib.pyplot as plt
import numpy as np
from scipy.cluster.hierarchy import dendrogram

Array = np.ndarray[Any, Any]


def draw_sweep(
    path: Path,
    numbers: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    picks: Mapping[str, int],
    recommended: int,
    title: str,
) -> None:
    """The curve of each criterion over the number of clusters, with its pick as a dot and the recommendation as a line.

    Parameters
    ----------
    path : Path
        PNG file to write.
    numbers : sequence of int
        The K of each point of each of the `curves`.
    picks : mapping
        The K that each criterion picks.
    """
    figure, axes = plt.subplots(len(curves), 1, figsize=(8, 1.7 * len(curves) + 0.6), sharex=True, squeeze=False)
    for axis, (name, curve) in zip(axes.flat, curves.items(), strict=True):
        axis.plot(numbers, curve, marker=".", markersize=3, linewidth=1)
        axis.axvline(recommended, color="0.7", linewidth=4, zorder=0)
        axis.plot([picks[name]], [curve[list(numbers).index(picks[name])]], "o", color="tab:red")
        axis.set_title(f"{name}: {picks[name]}", loc="left", fontsize=9)
    axes[-1, 0].set_xlabel("number of clusters")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_dendrogram(path: Path, tree: Array, sizes: Array, groups: int) -> None:
    """How clusters merge, with the number of images at each leaf, and where the tree is cut for `groups` groups.

    Parameters
    ----------
    path : Path
        PNG file to write.
    tree : ndarray (K - 1, 4)
        As scipy's `linkage` returns it.
    sizes : ndarray (K,)
        Images of each cluster.
    """
    labels = [f"{cluster} ({size:,})" for cluster, size in enumerate(sizes)]
    heights = np.concatenate([[0.0], tree[:, 2], [tree[-1, 2] * 1.05]])
    threshold = heights[len(sizes) - groups : len(sizes) - groups + 2].mean()  # between the last merge and the next
    figure, axis = plt.subplots(figsize=(7, 0.22 * len(sizes) + 1.2))
    dendrogram(tree, labels=labels, orientation="right", color_threshold=threshold, ax=axis)
    axis.axvline(threshold, color="0.5", linestyle="--", linewidth=1)
    axis.set(xlabel="cosine distance of centres", title=f"cut into {groups} groups; leaves: cluster (images)")
    axis.tick_params(axis="y", labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
