"""How much of a run its E-steps take, scores and label-free metrics included: a short demo, by its own ledger.

    python -m benchmarks.estep                         # about a minute on two cores
    python -m benchmarks.estep --set estep.every=2     # an E-step after every second epoch

The ledger of the first epoch, in which memory is allocated, is left out.
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
BLOCK = 8  # epochs of a round


def main() -> int:
    """Train, and compare the ledger's entries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help=f"of {BLOCK} epochs each")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    seconds = by_rounds(epochs_of_a_run(1 + BLOCK * arguments.rounds, arguments.settings))
    ratio = speedup(seconds, of="estep", over="epoch")
    print(f"an epoch takes {ratio:.1f} times as long as its E-step with scores (claim: >= {CLAIM:g})")
    conclude({"ratio": ratio, "claim_holds": ratio >= CLAIM, "seconds": seconds}, arguments.out)
    return 0 if ratio >= CLAIM else 1


def epochs_of_a_run(epochs: int, settings: list[str]) -> list[dict[str, float]]:
    """The ledger of each epoch after the first, in which memory is allocated."""
    with tempfile.TemporaryDirectory() as folder:
        shorter = [f"optim.epochs={epochs}", f"optim.warmup_epochs={epochs // 3}", f"checkpoint.every_epochs={epochs}"]
        places = [f"storage={folder}/runs", f"data.path={folder}/digits", "tracking.enabled=false"]
        config = load_config("digits", [*shorter, *places, *settings])
        values = newest_in(train(config, label="digits", echo=lambda line: None)["folder"])
    assert values is not None
    return list(values["history"][2:])  # the very first entry is the E-step before epoch 1


def by_rounds(epochs: list[dict[str, float]]) -> dict[str, list[float]]:
    """Seconds of whole epochs, and of their E-steps with all that is computed from them, in each round."""
    rounds = [epochs[start : start + BLOCK] for start in range(0, len(epochs), BLOCK)]
    return {
        "epoch": [sum(epoch["seconds_epoch"] for epoch in block) for block in rounds],
        "estep": [sum(epoch["seconds_estep"] + epoch["seconds_evaluate"] for epoch in block) for block in rounds],
    }


if __name__ == "__main__":
    sys.exit(main())
