"""How long a streamed run waits for the first batch of an epoch, as a share of the epoch.

    python -m benchmarks.first_batch

A usual run of two workers with `tiny`, an E-step after every epoch. The worker reads the first images itself; in the
last epochs, which count, all come from Ray Data's processes, which read the first windows during the E-step. The claim:
the wait is at most 5 % of an epoch of about ten seconds. Exit status 1 when it is not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import conclude
from benchmarks.pipeline import make_config
from pipeline.config.loading import override
from pipeline.data.streaming import FEW_BYTES
from pipeline.plan import image_bytes
from pipeline.runs.train import train
from pipeline.training.checkpoint import newest_in

CLAIM = 0.05
COUNTED = 3  # epochs at the end


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of the last epochs, and of the waits for their first batches."""
    config, manifest = make_config(args, folder)
    by_itself = FEW_BYTES // image_bytes(config) * args.workers  # an epoch and its E-step read every image once each
    epochs = by_itself // (2 * manifest.num_images) + 1 + COUNTED
    settings = ["data.mode=streaming", "estep.every=1", f"optim.epochs={epochs}", "tracking.enabled=false"]
    config = override(config, settings, "benchmarks.first_batch")
    values = newest_in(train(config)["folder"])
    assert values is not None
    counted = values["history"][-COUNTED:]
    seconds = {name: [page[f"seconds_{name}"] for page in counted] for name in ("first_batch", "epoch")}
    share = statistics.median(wait / epoch for wait, epoch in zip(*seconds.values(), strict=True))
    return {"images": manifest.num_images, "seconds": seconds, "share": share, "claim_holds": share <= CLAIM}


def main() -> int:
    """Measure, print, and judge the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args(namespace=argparse.Namespace(encoder="tiny", data=None))
    with tempfile.TemporaryDirectory() as folder:
        results = measure(args, Path(folder))
    waits, epochs = (", ".join(f"{value:.2f}" for value in values) for values in results["seconds"].values())
    verdict = "PASS" if results["claim_holds"] else "FAIL"
    print(f"first batch after {waits} s of epochs of {epochs} s: {results['share']:.1%}")
    print(f"{verdict} (claim: <= {CLAIM:.0%} of the epoch)")
    conclude(results, args.out)
    return 0 if results["claim_holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
