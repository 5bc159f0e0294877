"""Scores of a preset over several seeds: each seed, mean, spread, worst; and what each term of the loss adds.

    python -m benchmarks.quality                       # digits, seeds 0-4; about 3 minutes a seed on 2 cores
    python -m benchmarks.quality --ablation            # the instance term alone, with groups, with prototypes, complete
    python -m benchmarks.quality --set resources.workers=1 --concurrent 2    # two seeds at a time, a core each

The runs are the trials of a search without early stopping. So they may share the machine, a finished one is not
repeated, and the same command resumes a benchmark that was killed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

import torch
from ray import tune
from torch import Tensor

from benchmarks.measure import conclude
from pipeline.clustering.label_free import assignment_agreement
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.training.checkpoint import newest_in
from pipeline.tuning.search import TRIALS, search
from pipeline.tuning.space import SearchPoint, Space

GROUPS, PROTOTYPES = "method.group_weight", "method.prototype_weight"
METRICS = ("acc", "nmi", "ari", "label_free")
Rows = list[dict[str, Any]]


def main() -> None:
    """Train every variant with every seed, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablation", action="store_true", help="also without groups, without prototypes, without both")
    parser.add_argument("--concurrent", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.preset, arguments.settings)
    by_name = variants(config, arguments.ablation)
    space = seeds_and_variants(list(by_name.values()), arguments.seeds)
    summary = search(
        config,
        space,
        label=Path(arguments.preset).stem,
        trials=len(space.first),
        scheduler="none",
        concurrent=arguments.concurrent,
    )
    check_finished(summary["trials"])
    results: dict[str, Any] = {"preset": arguments.preset, "settings": arguments.settings}
    for name, variant in by_name.items():
        rows = [row for row in summary["trials"] if row["point"].items() >= variant.items()]
        results[name] = seed_metrics(rows, [labels_of(summary, row) for row in rows])
        print(f"\n{name} ({arguments.preset} {' '.join(arguments.settings)})")
        print_table(results[name])
    conclude(results, arguments.out)


def check_finished(rows: Rows) -> None:
    """SystemExit, with the reason, for a run that failed: a mean must not silently leave it out."""
    if failed := [f"  {row['point']}: {row['reason']}" for row in rows if row["status"] != "finished"]:
        raise SystemExit("no table, because these runs did not finish:\n" + "\n".join(failed))


def variants(config: RunConfig, ablation: bool) -> dict[str, SearchPoint]:
    """Weights of the terms by the name of the variant, the complete method's first."""
    full, none = {GROUPS: config.method.group_weight, PROTOTYPES: config.method.prototype_weight}, 0.0
    if not ablation:
        return {"complete": full}
    return {
        "complete": full,
        "with prototypes": full | {GROUPS: none},
        "with groups": full | {PROTOTYPES: none},
        "instance term alone": {GROUPS: none, PROTOTYPES: none},
    }


def seeds_and_variants(weights: list[SearchPoint], seeds: int) -> Space:
    """A space whose first points are the only ones trained."""
    points = [point | {"seed": seed} for point, seed in itertools.product(weights, range(seeds))]
    domains = {key: tune.choice(list(dict.fromkeys(point[key] for point in points))) for key in points[0]}
    return Space("seeds" if len(weights) == 1 else "ablation", domains, first=points)


def labels_of(summary: dict[str, Any], row: dict[str, Any]) -> Tensor:
    """Clusters of all images at the end of a run."""
    values = newest_in(f"{summary['folder']}/{TRIALS}/{row['trial']}")
    assert values is not None
    return torch.as_tensor(values["labels"])


def seed_metrics(rows: Rows, labels: list[Tensor]) -> dict[str, Any]:
    """Metrics of each seed, and how far the seeds agree on the clusters: the mean ARI of their pairs."""
    pairs = [assignment_agreement(one, other) for one, other in itertools.combinations(labels, 2)]
    seeds = {row["point"]["seed"]: {name: row[name] for name in METRICS if name in row} for row in rows}
    return {"seeds": dict(sorted(seeds.items())), "agreement": statistics.mean(pairs) if pairs else None}


def print_table(metrics: dict[str, Any]) -> None:
    """A line for each seed; then mean, standard deviation and worst of each metric."""
    names = list(next(iter(metrics["seeds"].values())))  # without classes there are no scores among them
    print("seed  " + "  ".join(f"{name:>10}" for name in names))
    for seed, values in metrics["seeds"].items():
        print(f"{seed:<5} " + "  ".join(f"{values[name]:10.4f}" for name in names))
    columns = {name: [values[name] for values in metrics["seeds"].values()] for name in names}
    for title, statistic in (("mean", statistics.mean), ("std", statistics.pstdev), ("worst", min)):
        print(f"{title:<5} " + "  ".join(f"{statistic(columns[name]):10.4f}" for name in names))
    if metrics["agreement"] is not None:
        print(f"the seeds agree on the clusters with an ARI of {metrics['agreement']:.4f}")


if __name__ == "__main__":
    main()
