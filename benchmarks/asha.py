"""What early stopping saves: the same trials once to their end, and once with ASHA.

    python -m benchmarks.asha --space tune_spaces/digpro.py --trials 24 --set resources.workers=1 --concurrent 2

The first search runs every trial to its end; the second uses ASHA on the same points, in the same order. The same
command resumes both.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import conclude
from pipeline.config.loading import load_config
from pipeline.tuning.search import search
from pipeline.tuning.space import load_space


def main() -> None:
    """Run both searches and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", required=True)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--concurrent", type=int)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    config, space = load_config(arguments.preset, arguments.settings), load_space(arguments.space)
    call: dict[str, Any] = {
        "label": Path(arguments.preset).stem,
        "trials": arguments.trials,
        "concurrent": arguments.concurrent,
    }
    full = search(config, space, scheduler="none", **call)
    again = replace(space, name=f"{space.name}-again", first=[row["point"] for row in full["trials"]])
    early = search(config, again, scheduler="asha", **call)
    results = compare(full, early)
    print_comparison(results)
    conclude(results, arguments.out)


def compare(full: dict[str, Any], early: dict[str, Any]) -> dict[str, Any]:
    """Epochs of both searches, their best trials, and what ASHA did with the best one of all."""
    metric = full["objectives"][0][0]
    results: dict[str, Any] = {"metric": metric, "saved": 1 - early["epochs_trained"] / full["epochs_trained"]}
    for name, summary in (("full", full), ("asha", early)):
        best = summary["best"]
        results[name] = {
            "epochs": summary["epochs_trained"],
            "best": {key: best[key] for key in (metric, "acc") if key in best},
            "point": best["point"],
            "finished": sum(row["status"] == "finished" for row in summary["trials"]),
        }
    fate = next(row for row in early["trials"] if row["point"] == full["best"]["point"])
    results["fate_of_the_best"] = {"status": fate["status"], "epochs": fate["epochs"]}
    return results


def print_comparison(results: dict[str, Any]) -> None:
    """A line for each search, and what ASHA saved."""
    for name in ("full", "asha"):
        part = results[name]
        best = "  ".join(f"{key} {value:.4f}" for key, value in part["best"].items())
        print(f"{name:<5} {part['epochs']:>6,} epochs, {part['finished']} trials to their end; best: {best}")
    fate = results["fate_of_the_best"]
    print(f"ASHA saved {results['saved']:.0%} of the epochs; the best of all was {fate['status']}", end="")
    print(f" after epoch {fate['epochs']}")


if __name__ == "__main__":
    main()
