"""Pictures of a finished run: the images of each cluster, and the metrics over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a cluster
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from pipeline.report.choice import ClusterTotals

SCORES = ("acc", "nmi", "ari", "label_free", "knn_acc", "linear_acc")
HEALTH = ("label_churn", "size_entropy", "feature_spread", "silhouette", "view_agreement")
ROWS, TYPICAL, BORDERLINE = 20, 10, 3  # clusters on a sheet, and images of each
GAP = 0.3  # width of the column between typical and borderline images, relative to an image's
Array = np.ndarray[Any, Any]


def draw_clusters(
    path: Path,
    images: Array,
    clusters: Array,
    similarity: Array,
    totals: ClusterTotals,
    names: Sequence[str],
) -> None:
    """A sheet with a row for each of the largest clusters: its most typical images, then its least typical ones.

    Parameters
    ----------
    path : Path
        PNG file to write.
    images : uint8 ndarray (n, H, W, 3)
        A sample of the data set, with `clusters` (n,), and `similarity` (n,) to the own centre.
    totals : ClusterTotals
        Of the whole data set: sizes and classes of the clusters.
    names : sequence of str
        Of the classes; may be empty.
    """
    shown = np.argsort(-totals.sizes, kind="stable")[:ROWS]
    widths = [1.0] * TYPICAL + [GAP] + [1.0] * BORDERLINE
    height = len(shown) * 0.95 + 0.4
    figure, axes = plt.subplots(
        len(shown),
        len(widths),
        figsize=(sum(widths) * 0.75, height),
        squeeze=False,
        gridspec_kw={"width_ratios": widths, "hspace": 0.4, "wspace": 0.1},
    )
    for row, cluster in zip(axes, shown, strict=True):
        members = np.flatnonzero(clusters == cluster)
        members = members[np.argsort(-similarity[members], kind="stable")]
        _draw_row(row, images, members)
        caption = f"cluster {cluster}: {totals.sizes[cluster]:,} images{_majority(totals.majority(cluster), names)}"
        row[0].set_title(caption, loc="left", fontsize=8, pad=3)
    figure.suptitle(f"the {TYPICAL} most typical images of each cluster | its {BORDERLINE} least typical", fontsize=9)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.05 / height, top=1 - 0.5 / height)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_row(row: Array, images: Array, members: Array) -> None:
    """A cluster's members, most typical first: the first ones, a line, and the last ones of the rest."""
    for axis in row:
        axis.axis("off")
    for axis, member in zip(row[:TYPICAL], members[:TYPICAL], strict=False):
        axis.imshow(images[member])
    if len(least := members[TYPICAL:][-BORDERLINE:]):
        row[TYPICAL].axvline(0.5, color="0.6", linewidth=1)
        for axis, member in zip(row[TYPICAL + 1 :], least, strict=False):
            axis.imshow(images[member])


def _majority(found: tuple[int, float] | None, names: Sequence[str]) -> str:
    """The most frequent class and its share, as text."""
    if found is None:
        return ""
    best, share = found
    return f", {share:.0%} are {names[best] if best < len(names) else best}"


def draw_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Losses, scores, health and times over the epochs, as one PNG.

    Parameters
    ----------
    path : Path
        PNG file to write.
    history : sequence of dict
        Metrics of each epoch. All that begin with "loss" are drawn as losses, and "seconds_..." as times.
    """
    losses = dict.fromkeys(key for metrics in history for key in metrics if key.startswith("loss"))
    figure, axes = plt.subplots(2, 2, figsize=(9, 6))
    _draw_lines(axes.flat[0], "losses", list(losses), history)
    _draw_lines(axes.flat[1], "scores", SCORES, history)
    _draw_lines(axes.flat[2], "health", HEALTH, history)
    _draw_times(axes.flat[3], history)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_lines(axis: Axes, title: str, keys: Sequence[str], history: Sequence[Mapping[str, float]]) -> None:
    for key in keys:
        points = [(metrics["epoch"], metrics[key]) for metrics in history if key in metrics]
        if points:
            axis.plot(*zip(*points, strict=True), label=key)
    axis.set(title=title, xlabel="epoch")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    else:
        axis.text(0.5, 0.5, "none recorded", ha="center", transform=axis.transAxes)


def _draw_times(axis: Axes, history: Sequence[Mapping[str, float]]) -> None:
    """Where the time of each trained epoch went, stacked; without the total, and without the E-step before training."""
    trained = [metrics for metrics in history if metrics["epoch"] > 0]
    keys = [key for key in trained[0] if key.startswith("seconds_") and key != "seconds_epoch"] if trained else []
    axis.stackplot(
        [metrics["epoch"] for metrics in trained],
        [[metrics[key] for metrics in trained] for key in keys],
        labels=[key.removeprefix("seconds_") for key in keys],
    )
    axis.set(title="seconds per epoch", xlabel="epoch")
    if keys:
        axis.legend(fontsize=8)
