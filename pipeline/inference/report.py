"""Pictures of a finished run: what the clusters hold, and how it got there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a cluster
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

ROWS, TYPICAL, BORDERLINE = 20, 10, 3
Array = np.ndarray[Any, Any]


def draw_clusters(
    path: Path, images: Array, clusters: Array, similarity: Array, sizes: Array, labels: Array | None, names: Sequence[str]
) -> None:
    """A sheet with a row for each of the largest clusters: its most typical images, then its least typical ones.

    Parameters
    ----------
    path : Path
        PNG file to write.
    images : uint8 ndarray (n, H, W, 3)
        A sample of the data set, with `clusters` (n,), `similarity` (n,) to the own centre, and `labels` (n,) or None.
    sizes : ndarray (K,)
        Of the clusters, in the whole data set.
    names : sequence of str
        Of the classes that `labels` number; may be empty.
    """
    shown = np.argsort(-sizes, kind="stable")[:ROWS]
    columns = TYPICAL + BORDERLINE
    figure, axes = plt.subplots(len(shown), columns, figsize=(columns * 0.75, len(shown) * 0.85), squeeze=False)
    for row, cluster in zip(axes, shown, strict=True):
        members = np.flatnonzero(clusters == cluster)
        members = members[np.argsort(-similarity[members], kind="stable")]
        least = members[TYPICAL:][-BORDERLINE:]
        for axis in row:
            axis.axis("off")
        for axis, member in zip(row, members[:TYPICAL], strict=False):
            axis.imshow(images[member])
        for axis, member in zip(row[TYPICAL:], least, strict=False):
            axis.imshow(images[member], alpha=0.6)
        caption = f"{sizes[cluster]:,} images" + _majority(labels, members, names)
        row[0].set_title(f"cluster {cluster}: {caption}", loc="left", fontsize=8, pad=3)
    figure.suptitle(f"each cluster's {TYPICAL} most typical images, and faded its {BORDERLINE} least typical", fontsize=9)
    figure.tight_layout(pad=0.3, rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _majority(labels: Array | None, members: Array, names: Sequence[str]) -> str:
    """The commonest class of the members and its share, as text."""
    if labels is None or not len(members) or (labels[members] < 0).all():
        return ""
    values, counts = np.unique(labels[members][labels[members] >= 0], return_counts=True)
    best = int(values[counts.argmax()])
    return f", {counts.max() / counts.sum():.0%} {names[best] if best < len(names) else best}"


def draw_curves(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Losses, scores, health and the time ledger over the epochs, as one PNG."""
    panels = {
        "losses": ("loss", "loss_instance", "loss_prototype", "loss_group"),
        "scores against classes": ("acc", "nmi", "ari"),
        "health": ("label_churn", "size_entropy", "feature_spread"),
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 6))
    for axis, (title, keys) in zip(axes.flat, panels.items(), strict=False):
        _lines(axis, title, keys, history)
    _ledger(axes.flat[3], history)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(axis: Axes, title: str, keys: Sequence[str], history: Sequence[dict[str, float]]) -> None:
    for key in keys:
        points = [(metrics["epoch"], metrics[key]) for metrics in history if key in metrics]
        if points:
            axis.plot(*zip(*points, strict=True), label=key)
    axis.set(title=title, xlabel="epoch")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    else:
        axis.text(0.5, 0.5, "no labels", ha="center", transform=axis.transAxes)


def _ledger(axis: Axes, history: Sequence[dict[str, float]]) -> None:
    pages = [metrics for metrics in history if metrics["epoch"] > 0]
    keys = [key for key in pages[0] if key.startswith("seconds_") and key != "seconds_epoch"] if pages else []
    axis.stackplot(
        [page["epoch"] for page in pages],
        [[page[key] for page in pages] for key in keys],
        labels=[key.removeprefix("seconds_") for key in keys],
    )
    axis.set(title="seconds of an epoch", xlabel="epoch")
    if keys:
        axis.legend(fontsize=8)
