"""Images/s of the streaming feed alone, over a plain loop and over torch's DataLoader, all with our decoder.

    python -m benchmarks.feed                              # 4,000 JPEG images of 256 to 300 pixels, fed at 224
    python -m benchmarks.feed --images 20000 --rounds 5

`feed` is `digpro train` with profile.only=data, which makes no steps: the time of its epochs without E-steps and
checkpoints, the wait for the first batch included. `plain` reads row groups with pyarrow and decodes them, in as many
processes as the feed has workers; `loader` is a DataLoader with as many. Their processes are started beforehand. The
three alternate. The claims: feed / plain >= 0.85, feed / loader >= 1. Exit status 1 when one does not hold.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.jpegs import write_jpegs
from benchmarks.measure import Seconds, alternate, conclude, rate, ratios
from pipeline.build import settle_images
from pipeline.config.loading import load_config
from pipeline.data.decode import decode_table
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
    """Of `digpro train`, but for the name of the run."""
    return [
        *SETTINGS,
        f"storage={folder / 'runs'}",
        f"data.path={folder / 'shards'}",
        f"data.image_size={args.size}",
        f"views.size={args.size}",
        f"optim.epochs={args.epochs}",
        f"optim.batch_size={args.batch}",
        f"resources.workers={args.workers}",
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


def tables(files: Sequence[Path], start: int, stop: int) -> Iterator[pa.Table]:
    """Rows `start` to `stop` of Parquet files, row group by row group."""
    first = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                begin, end = max(start - first, 0), min(stop - first, rows)
                if begin < end:
                    yield file.read_row_group(group, columns=["image", "index"]).slice(begin, end - begin)
                first += rows


def batches(files: Sequence[Path], share: range, batch: int, decoding: dict[str, Any]) -> Iterator[Tensor]:
    """Decoded images uint8 (b, S, S, 3) of a share of the rows."""
    for table in tables(files, share.start, share.stop):
        for start in range(0, table.num_rows, batch):
            yield torch.from_numpy(decode_table(table.slice(start, batch), **decoding)["image"])


def share_of(rank: int, workers: int, images: int) -> range:
    """The rows of one of several processes."""
    return range(images * rank // workers, images * (rank + 1) // workers)


def decode_share(share: range, files: Sequence[Path], batch: int, decoding: dict[str, Any]) -> int:
    """Decode a share and forget it; the number of its images."""
    return sum(len(images) for images in batches(files, share, batch, decoding))


class PlainLoop:
    """Processes that each decode their share; with a call, all of them do it once."""

    def __init__(self, files: Sequence[Path], images: int, workers: int, batch: int, decoding: dict[str, Any]) -> None:
        self.pool = ProcessPoolExecutor(workers, get_context("spawn"), partial(torch.set_num_threads, 1))
        self.decode = partial(decode_share, files=files, batch=batch, decoding=decoding)
        self.shares = [share_of(rank, workers, images) for rank in range(workers)]
        self.images = images

    def __call__(self) -> None:
        """Decode all images."""
        assert sum(self.pool.map(self.decode, self.shares)) == self.images

    def close(self) -> None:
        """End the processes."""
        self.pool.shutdown()


class Shards(IterableDataset[Tensor]):
    """Batches of a share of the rows in each process of a DataLoader."""

    def __init__(self, files: Sequence[Path], images: int, batch: int, decoding: dict[str, Any]) -> None:
        self.files, self.images, self.batch, self.decoding = files, images, batch, decoding

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        rank, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        return batches(self.files, share_of(rank, workers, self.images), self.batch, self.decoding)


def make_loader(shards: Shards, workers: int) -> DataLoader[Tensor]:
    """A DataLoader whose processes stay alive between epochs."""
    return DataLoader(
        shards, batch_size=None, num_workers=workers, persistent_workers=True, multiprocessing_context="spawn"
    )


def load_all(loader: DataLoader[Tensor], images: int) -> None:
    """An epoch of a DataLoader."""
    assert sum(len(batch) for batch in loader) == images


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
