"""What a slow MLflow costs training: seconds that the loop spends in its writer while each answer takes 5 s.

    python -m benchmarks.slow_tracking --epochs 5

An epoch is matrix products for some seconds, and then what rank 0 logs: 40 metrics and a tag. The store is SQLite; its
client answers each request after the delay. The benchmark measures the seconds inside the writer's methods, as a share
of the epochs; and, for comparison, those of one send that is waited for. The end of a run waits for the store once.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measure import conclude
from pipeline.config.loading import load_config
from pipeline.storage import Folder
from pipeline.tracking import RunWriter, delivery, open_run, spool_path

METRICS = 40
CLAIM = 0.01  # of an epoch


class SlowClient:
    """A client whose every request takes `delay` seconds longer."""

    def __init__(self, client: Any, delay: float) -> None:
        self._client, self._delay = client, delay

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def slow(*args: Any, **options: Any) -> Any:
            time.sleep(self._delay)
            return method(*args, **options)

        return slow


def train_epoch(seconds: float) -> None:
    """Compute for so long."""
    x, until = torch.randn(256, 256), time.perf_counter() + seconds
    while time.perf_counter() < until:
        x = torch.tanh(x @ x)


def log_epoch(writer: RunWriter, epoch: int) -> float:
    """Log what an epoch has; returns the seconds that it took."""
    start = time.perf_counter()
    writer.log({f"metric_{number}": float(epoch) for number in range(METRICS)}, epoch)
    writer.tag("alarms", f"epoch {epoch}")
    return time.perf_counter() - start


def measure(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Seconds in the writer in each epoch, of a send that is waited for, and of the end."""
    config = load_config("digits", [f"storage={place}"])
    ref = open_run(config, folder := Folder(f"{place}/run").make())
    fast = delivery.client_for
    delivery.client_for = lambda uri: SlowClient(fast(uri), args.delay)
    writer, logged = RunWriter(ref, spool_path(folder)), []
    for epoch in range(args.epochs):
        train_epoch(args.epoch_seconds)
        logged.append(log_epoch(writer, epoch))
    start = time.perf_counter()
    writer.flush()
    flushed = time.perf_counter()
    writer.finish("FINISHED")
    return {"logged": logged, "waited_for": flushed - start, "end": time.perf_counter() - flushed}


def main() -> int:
    """Measure, print, and judge the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=5.0, help="seconds until an answer")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--epoch-seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    with TemporaryDirectory() as place:
        results = measure(args, Path(place))
    shares = [seconds / args.epoch_seconds for seconds in results["logged"]]
    holds = sum(shares) / len(shares) <= CLAIM
    results |= {"share": sum(shares) / len(shares), "largest_share": max(shares), "claim_holds": holds}
    print(f"in the writer: {results['share']:.2%} of an epoch of {args.epoch_seconds:g} s, {max(shares):.2%} at most")
    print(f"a send that is waited for: {results['waited_for']:.1f} s; the end of the run: {results['end']:.1f} s")
    conclude(results, args.out)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
