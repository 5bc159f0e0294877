"""Whether `optim.balance` helps on a long-tailed set: digits whose classes shrink exponentially, with and without it.

    python -m benchmarks.imbalance                     # ratio 10, seeds 0-2, balance 0 and 1; about half an hour
    python -m benchmarks.imbalance --ratio 20 --seeds 5 --balance 0 0.5 1

Each seed has a subset of its own, in which other classes are rare, and all balances are trained on it, one run at a
time with one worker. A finished run is not repeated, so the same command resumes a benchmark that was killed.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from sklearn.metrics.cluster import contingency_matrix

from benchmarks.measure import conclude
from pipeline.clustering.scores import clustering_scores
from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.read import read_labels
from pipeline.runs.train import train
from pipeline.training.checkpoint import newest_in

STEPS = 1120  # of the preset on all digits; a subset gets as many, in more epochs
RARE = 3  # classes whose recall is reported separately
METRICS = ("acc", "nmi", "ari", "recall", "recall_rare")
Labels = NDArray[np.int64]
Scores = dict[str, float]


def main() -> None:
    """Train every balance with every seed, and print mean and spread of each, and of the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=10, help="size of the largest class over that of the smallest")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--balance", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--folder", type=Path, default=Path("runs/imbalance"), help="subsets and runs")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    table: dict[float, list[Scores]] = {balance: [] for balance in arguments.balance}
    for seed in range(arguments.seeds):
        data = arguments.folder / f"data-{arguments.ratio:g}-{seed}"
        sizes = make_subset(data, arguments.ratio, seed)
        for balance, rows in table.items():
            rows.append(train_on(data, arguments.folder, seed, balance, arguments.settings))
            print(f"seed {seed}, classes of {sizes}, balance {balance:g}: {rows[-1]}", flush=True)
    print_table(table)
    conclude({"ratio": arguments.ratio, "settings": arguments.settings, "seeds": table}, arguments.out)


def make_subset(folder: Path, ratio: float, seed: int) -> list[int]:
    """Ingest a long-tailed part of digits into `folder`/shards, as a folder of images; sizes of its classes."""
    digits = load_digits()
    chosen = long_tail(digits.target, ratio, seed)
    for row in chosen.tolist():
        path = folder / "images" / str(digits.target[row]) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[row] * 255 / 16).round().astype(np.uint8)).save(path)
    ingest(f"imagefolder:{folder}/images", f"{folder}/shards")
    return sorted(np.bincount(digits.target[chosen]).tolist(), reverse=True)


def long_tail(classes: Labels, ratio: float, seed: int) -> Labels:
    """Rows of a subset whose class sizes fall from n to n / ratio by equal factors; the rare classes are random."""
    random = np.random.default_rng(seed)
    counts = np.bincount(classes)
    sizes = counts.min() * ratio ** -np.linspace(0, 1, len(counts))
    return np.concatenate(
        [
            random.permutation(np.flatnonzero(classes == one))[: round(size)]
            for one, size in zip(random.permutation(len(counts)), sizes, strict=True)
        ]
    )


def train_on(data: Path, folder: Path, seed: int, balance: float, settings: list[str]) -> Scores:
    """Scores at the end of a run."""
    truth = read_labels(f"{data}/shards")
    assert truth is not None
    epochs = round(STEPS / (len(truth) // 128))
    base = [
        f"data.path={data}/shards",
        "data.source=null",
        f"storage={folder}",
        f"seed={seed}",
        f"optim.epochs={epochs}",
        f"optim.warmup_epochs={round(0.3 * epochs)}",  # as in the preset
        "checkpoint.every_epochs=50",
        "resources.workers=1",
        "tracking.enabled=false",
        f"optim.balance={balance:g}",
    ]
    summary = train(load_config("digits", [*base, *settings]), label="digits", echo=lambda line: None)
    values = newest_in(summary["folder"])
    assert values is not None
    return scores(truth, torch.as_tensor(values["labels"]).numpy())


def scores(truth: Labels, clusters: Labels) -> Scores:
    """ACC, NMI and ARI; mean recall of all classes, and of the RARE smallest, by the matching behind the ACC."""
    table = contingency_matrix(truth, clusters)
    classes, matched = linear_sum_assignment(table, maximize=True)
    hits = np.zeros(len(table))
    hits[classes] = table[classes, matched]
    recall = hits / table.sum(axis=1)
    rare = np.argsort(table.sum(axis=1), kind="stable")[:RARE]
    found = clustering_scores(truth, clusters) | {"recall": recall.mean(), "recall_rare": recall[rare].mean()}
    return {name: round(float(found[name]), 4) for name in METRICS}


def print_table(table: dict[float, list[Scores]]) -> None:
    """Mean and standard deviation over the seeds; then those of the difference to the first balance, seed by seed."""
    print(f"{'balance':<12}" + "".join(f"{name:>18}" for name in METRICS))
    for balance, rows in table.items():
        print(f"{balance:<12g}" + "".join(f"{spread([row[name] for row in rows]):>18}" for name in METRICS))
    first, *others = table
    for balance in others:
        pairs = list(zip(table[balance], table[first], strict=True))
        cells = [spread([row[name] - base[name] for row, base in pairs]) for name in METRICS]
        print(f"{f'{balance:g} - {first:g}':<12}" + "".join(f"{cell:>18}" for cell in cells))


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.3f} +- {statistics.pstdev(values):.3f}"


if __name__ == "__main__":
    main()
