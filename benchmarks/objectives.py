"""Whether label-free metrics rank runs as ACC does: rank correlations over the trials of a finished search.

    python -m benchmarks.objectives runs/digits-digpro-1f0c6a52 --picture docs/images/digits-objectives.png

The curves are read from MLflow. Epochs of the warm-up count too; the first E-step, which has no `label_free`, does not.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run
from scipy.stats import spearmanr

from benchmarks.measure import conclude

METRICS = (
    "label_free",
    "size_entropy",
    "view_agreement",
    "silhouette",
    "estep_agreement",
    "seed_agreement",
    "prototype_margin",
    "loss",
)
Epochs = list[dict[str, float]]  # metrics of each epoch, with its number and the trial's


def main() -> None:
    """Print the correlations of each metric, and draw the scatter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", type=Path, help="folder of a finished search")
    parser.add_argument("--picture", type=Path, help="PNG to draw the scatter into")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    summary = json.loads((arguments.search / "summary.json").read_text())
    epochs = read_epochs(summary)
    results = {name: correlations(epochs, name) for name in METRICS if all(name in values for values in epochs)}
    print_table(results, epochs)
    if arguments.picture:
        draw(epochs, arguments.picture, summary["search"])
    conclude({"search": summary["search"], "figures": results}, arguments.out)


def read_epochs(summary: dict[str, Any]) -> Epochs:
    """All epochs of all trials that have a `label_free`, from MLflow."""
    client = MlflowClient(summary["mlflow"]["uri"])
    parent = client.get_run(summary["mlflow"]["run_id"])
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([parent.info.experiment_id], query, max_results=50_000)
    return [
        values for child in children for values in epochs_of(client, child) if values.keys() >= {"label_free", "acc"}
    ]


def epochs_of(client: MlflowClient, trial: Run) -> Epochs:
    """The epochs of one trial."""
    by_epoch: dict[int, dict[str, float]] = defaultdict(dict)
    for name in (*METRICS, "acc"):
        for point in client.get_metric_history(trial.info.run_id, name):
            by_epoch[point.step][name] = point.value
    number = float(trial.data.tags["digpro.number"])
    return [{"trial": number, "epoch": epoch, **values} for epoch, values in sorted(by_epoch.items())]


def correlations(epochs: Epochs, name: str) -> dict[str, float]:
    """Spearman's rank correlation of a metric with ACC.

    `everything`: over all trials and epochs; `last`: over trials at the last epoch; `epoch`: over trials at one epoch,
    the median of all epochs, which early stopping depends on; `chosen`: ACC of the trial that is best by the metric at
    the end; `best`: the highest ACC at the end.
    """
    table = {
        epoch: [values for values in epochs if values["epoch"] == epoch]
        for epoch in {values["epoch"] for values in epochs}
    }
    last = table[max(table)]
    lower = name == "loss"
    chosen = min(last, key=lambda values: values[name]) if lower else max(last, key=lambda values: values[name])
    return {
        "everything": rank_correlation(epochs, name),
        "last": rank_correlation(last, name),
        "epoch": float(np.median([rank_correlation(part, name) for part in table.values() if len(part) > 3])),
        "chosen": chosen["acc"],
        "best": max(values["acc"] for values in last),
    }


def rank_correlation(epochs: Epochs, name: str) -> float:
    """Spearman's, of a metric with ACC."""
    return float(spearmanr([values[name] for values in epochs], [values["acc"] for values in epochs]).statistic)


def print_table(results: dict[str, dict[str, float]], epochs: Epochs) -> None:
    """A line for each metric."""
    trials = {values["trial"] for values in epochs}
    print(f"{len(epochs):,} epochs of {len(trials)} trials; Spearman's correlation with ACC")
    columns = ("everything", "last", "epoch", "chosen", "best")
    print(f"{'metric':<17}" + "".join(f"{column:>12}" for column in columns))
    for name, values in results.items():
        print(f"{name:<17}" + "".join(f"{values[column]:12.3f}" for column in columns))


def draw(epochs: Epochs, path: Path, title: str) -> None:
    """`label_free` against ACC: a point for each epoch, coloured by its number; a ring around each trial's last."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    x, y, numbers = (np.array([values[key] for values in epochs]) for key in ("label_free", "acc", "epoch"))
    points = axes.scatter(x, y, c=numbers, s=8, cmap="viridis")
    end = numbers == numbers.max()
    axes.scatter(x[end], y[end], s=60, facecolors="none", edgecolors="crimson", label="a trial's last epoch")
    axes.set(xlabel="label_free (uses no class)", ylabel="ACC", title=title)
    axes.legend(loc="lower right")
    figure.colorbar(points, label="epoch")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
