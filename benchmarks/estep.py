"""How much of the demo's time its E-steps take, with scores and label-free metrics: whole runs, by their own ledgers.

    python -m benchmarks.estep                            # three demos: eight minutes on two cores
    python -m benchmarks.estep --set estep.every=2        # an E-step after every second epoch
    python -m benchmarks.estep --set optim.epochs=30 --set optim.warmup_epochs=9

A shorter run says less, because k-means needs more iterations while the labels have not settled. The ledger of the
first epoch, in which memory is allocated, is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import conclude, speedup
from pipeline.config.loading import load_config
from pipeline.runs.train import train
from pipeline.training.checkpoint import newest_in

CLAIM = 10.0  # an E-step takes a tenth of the time, or less


def main() -> int:
    """Train, and compare the ledger's entries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds = [seconds_of_a_run(arguments.settings) for _ in range(arguments.rounds)]
    seconds = {name: [entry[name] for entry in rounds] for name in rounds[0]}
    ratio = speedup(seconds, of="estep", over="epoch")
    print(f"a run takes {ratio:.1f} times as long as its E-steps with scores (claim: >= {CLAIM:g})")
    conclude({"ratio": ratio, "claim_holds": ratio >= CLAIM, "seconds": seconds}, arguments.out)
    return 0 if ratio >= CLAIM else 1


def seconds_of_a_run(settings: list[str]) -> dict[str, float]:
    """Seconds of the epochs after the first, and of their E-steps with all that is computed from them."""
    with tempfile.TemporaryDirectory() as folder:
        places = [f"storage={folder}/runs", f"data.path={folder}/digits", "tracking.enabled=false"]
        config = load_config("digits", [*places, *settings])
        values = newest_in(train(config, label="digits", echo=lambda line: None)["folder"])
    assert values is not None
    epochs = values["history"][2:]  # the very first entry is the E-step before epoch 1
    return {
        "epoch": sum(epoch["seconds_epoch"] for epoch in epochs),
        "estep": sum(epoch["seconds_estep"] + epoch["seconds_evaluate"] for epoch in epochs),
    }


if __name__ == "__main__":
    sys.exit(main())
