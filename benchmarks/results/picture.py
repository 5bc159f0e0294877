"""Curves of several rows over epochs, in one picture."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.results.records import Curves, Record

PANELS = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "loss": "loss"}
Points = list[tuple[float, float]]


def draw_rows(path: Path, records: list[Record]) -> None:
    """Scores and loss over the epochs, as one PNG: a colour for each row, thin lines for seeds, dashes for floors."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5))
    for axis, (metric, title) in zip(axes.flat, PANELS.items(), strict=True):
        for number, record in enumerate(records):
            _draw_row(axis, record, metric, f"C{number}")
        _draw_floors(axis, records, metric)
        axis.set(title=title, xlabel="epoch")
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_row(axis: Axes, record: Record, metric: str, colour: str) -> None:
    seeds = [points(result.curves, metric) for result in record.seeds.values()]
    if len(seeds) > 1:
        for line in seeds:
            axis.plot(*zip(*line, strict=True), color=colour, linewidth=0.5, alpha=0.5)
    if average := mean_curve(seeds):
        axis.plot(*zip(*average, strict=True), color=colour, label=record.row)


def _draw_floors(axis: Axes, records: list[Record], metric: str) -> None:
    """A dashed line for each floor; rows on the same images share theirs."""
    floors = {record.floor.what: record.floor.scores for record in records if record.floor}
    for what, scores in floors.items():
        if metric in scores:
            axis.axhline(scores[metric][0], color="0.5", linestyle="--", linewidth=1, label=what)


def points(curves: Curves, metric: str) -> Points:
    """(epoch, value) wherever there is a value."""
    pairs = zip(curves.get("epoch", []), curves.get(metric, []), strict=False)
    return [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None]


def mean_curve(seeds: list[Points]) -> Points:
    """The mean over the seeds, at the epochs that all have: elsewhere it would jump where one ends."""
    by_seed = [dict(line) for line in seeds if line]
    shared = set.intersection(*map(set, by_seed)) if by_seed else set[float]()
    return [(epoch, statistics.mean(line[epoch] for line in by_seed)) for epoch in sorted(shared)]
