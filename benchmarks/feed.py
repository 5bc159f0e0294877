"""Images/s of the streaming feed alone, over a plain loop and over torch's DataLoader, all with our decoder.

    python -m benchmarks.feed                              # 4,000 JPEG images of 256 to 300 pixels, fed at 224
    python -m benchmarks.feed --images 20000 --rounds 5

`feed` is `digpro train` with profile.only=data, which makes no steps. Its time is that of the epochs without E-steps
and checkpoints, including the wait for the first batch. `plain` reads row groups with pyarrow and decodes them, in as
many processes as the feed has workers; `loader` is a DataLoader with as many. Their processes are started beforehand.
The three alternate. The claims: feed / plain >= 0.85, feed / loader >= 1. Exit status 1 when one does not hold.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.jpegs import write_jpegs
from benchmarks.measure import Seconds, alternate, conclude, rate, ratios
from benchmarks.plain_feeds import PlainLoop, Shards, load_all, make_loader
from pipeline.build import settle_images
from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.shards import read_manifest
from pipeline.training.checkpoint import newest_in

ROOT = Path(__file__).parent.parent
CLAIMS = {"plain": 0.85, "loader": 1.0}
WITHOUT = ("estep", "evaluate", "monitor", "checkpoint")  # entries of an epoch's ledger that are not the feed
SETTINGS = [  # a network that takes little time in the two E-steps, before the first epoch and after the last
    *("model.encoder=python:benchmarks.small_encoder:build", "model.projector_hidden=64", "model.predictor_hidden=64"),
    *("method.num_clusters=10", "estep.every=1000", "estep.restarts=1", "estep.probe=0"),
    *("optim.warmup_epochs=0", "checkpoint.every_epochs=1000", "tracking.enabled=false"),
    *("data.mode=streaming", "profile.only=data"),
]


def settings(args: argparse.Namespace, folder: Path) -> list[str]:
    """Settings of `digpro train`, except the name of the run."""
    return [
        *SETTINGS,
        f"storage={folder / 'runs'}",
        f"data.path={folder / 'shards'}",
        f"data.image_size={args.size}",
        f"views.size={args.size}",
        f"optim.epochs={args.epochs}",
        f"optim.batch_size={args.batch}",
        f"resources.workers={args.workers}",
        f"data.shuffle_window={args.images // 3}",  # so that little is read before it is counted
        *args.set,
    ]


def feed_seconds(settings: list[str], name: str, runs: Path, images: int, batch: int) -> float:
    """Seconds in which `digpro train` feeds so many images, by the ledger of a run of its own."""
    options = [argument for value in (f"name={name}", *settings) for argument in ("--set", value)]
    environment = {**os.environ, "RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.cli", "train", "--preset", "cifar10", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    values = newest_in(str(runs / name))
    assert values is not None
    return seconds_by_ledger(values["history"], images, batch)


def seconds_by_ledger(history: Sequence[dict[str, float]], images: int, batch: int) -> float:
    """Seconds that feeding so many images takes, from epochs that leave out the remainder of the last batch."""
    epochs = [metrics for metrics in history if metrics["epoch"] > 0]
    seconds = sum(
        metrics["seconds_epoch"] - sum(metrics[f"seconds_{entry}"] for entry in WITHOUT) for metrics in epochs
    )
    return seconds * images / (len(epochs) * (images // batch * batch))


def compare(args: argparse.Namespace, folder: Path) -> Seconds:
    """Seconds of each way for all images, in each round."""
    ingest(write_jpegs(folder / "images", args.images), str(folder / "shards"))
    given = settings(args, folder)
    decoding = settle_images(load_config("cifar10", given)).data.decoding
    files = [folder / "shards" / shard.file for shard in read_manifest(str(folder / "shards")).shards]
    plain = PlainLoop(files, args.images, args.workers, args.batch, decoding)
    loader = make_loader(Shards(files, args.images, args.batch, decoding), args.workers)
    ways: dict[str, Callable[[], None]] = {"plain": plain, "loader": partial(load_all, loader, args.images)}
    for way in ways.values():  # starts its processes
        way()
    seconds: Seconds = {"feed": [], **{name: [] for name in ways}}
    for name in alternate(seconds, args.rounds):
        if name == "feed":
            run = f"feed-{len(seconds[name])}"
            seconds[name].append(feed_seconds(given, run, folder / "runs", args.images, args.batch))
        else:
            started = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - started)
        print(f"{name:8s}{args.images / seconds[name][-1]:,.0f} images/s", flush=True)
    plain.close()
    return seconds


def main() -> int:
    """Measure, print, and judge the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--size", type=int, default=224, help="pixels that images are decoded to")
    parser.add_argument("--workers", type=int, default=2, help="of the feed, and processes of the others")
    parser.add_argument("--batch", type=int, default=64, help="images per step over all workers")
    parser.add_argument("--epochs", type=int, default=2, help="of the feed in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a further setting of `digpro train`")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = compare(args, Path(folder))
    results: dict[str, Any] = {"images": args.images, "seconds": seconds, "ratios": {}, "claims_hold": {}}
    for over, claim in CLAIMS.items():
        rounds = ratios(seconds, "feed", over)
        ratio = statistics.median(rounds)
        results["ratios"][over], results["claims_hold"][over] = ratio, ratio >= claim
        print(
            f"feed {rate(args.images, seconds['feed']):,.0f} / {over} {rate(args.images, seconds[over]):,.0f} images/s "
            f"= {ratio:.2f} ({min(rounds):.2f} to {max(rounds):.2f})  {'PASS' if ratio >= claim else 'FAIL'} "
            f"(claim: >= {claim:g})"
        )
    conclude(results, args.out)
    return 0 if all(results["claims_hold"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
