"""Scores of a preset over several seeds: mean, spread, worst, and the training time of each.

    python -m benchmarks.quality                       # digits, seeds 0-4; about 2 minutes a seed on 2 cores
    python -m benchmarks.quality --preset uc-merced --seeds 3

A run that is finished is not repeated: its summary is read. A killed benchmark goes on when started again.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from benchmarks.measure import hardware
from pipeline.config import load_config
from pipeline.training.trainer import train


def main() -> None:
    """Run the seeds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.seeds):
        config = load_config(arguments.preset, [*arguments.settings, f"seed={seed}"])
        runs.append(train(config, label=arguments.preset))
    print(f"\n{arguments.preset} {' '.join(arguments.settings)}\nhardware: {hardware()}")
    print_table(runs)


def print_table(runs: list[dict[str, Any]]) -> None:
    """A line a seed, then mean, standard deviation and worst of each score."""
    names = list(runs[0]["scores"])
    print("seed  " + "  ".join(f"{name.upper():>6}" for name in names) + "  seconds  images/s")
    for summary in runs:
        scores = "  ".join(f"{summary['scores'][name]:.4f}" for name in names)
        seconds, speed = summary["seconds"]["epoch"], summary["images_per_second"]
        print(f"{summary['config']['seed']:>4}  {scores}  {seconds:7.0f}  {speed:8.0f}")
    for title, figure in (("mean", statistics.mean), ("std", statistics.pstdev), ("worst", min)):
        print(f"{title:<5} " + "  ".join(f"{figure([run['scores'][name] for run in runs]):.4f}" for name in names))


if __name__ == "__main__":
    main()
