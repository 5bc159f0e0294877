"""Assigning images with a trained model: its speed against a plain loop over the same model, and its memory.

    python -m benchmarks.assign RUN SHARDS               # RUN is a finished run's folder, SHARDS those of an ingest
    python -m benchmarks.assign RUN SHARDS --rounds 3 --out assign.json

The plain loop is what a person would write: decode a batch, run the model, on all cores, in one process. Both are timed
from their start to the last row, and also without the start of their processes. Memory is the largest anonymous memory
of the driver and of an actor, for all shards and for a tenth of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset as pads
import torch

from benchmarks.measure import conclude
from pipeline.cluster import connect
from pipeline.data.decode import decode_table
from pipeline.data.read import read_shard_rows
from pipeline.data.shards import Manifest, read_manifest
from pipeline.inference.assign import PARTS, AssignJob, assign
from pipeline.inference.image_parts import ImageParts, shard_parts
from pipeline.runs.models import TrainedModel, open_model
from pipeline.storage import Folder

BATCH = 256


def plain_loop(model: TrainedModel, shards: str, manifest: Manifest) -> tuple[float, list[int]]:
    """Seconds, and the cluster of every image."""
    clusters: list[int] = []
    started = time.perf_counter()
    with torch.inference_mode():
        for shard in manifest.shards:
            stop = shard.first_index + shard.rows
            for table in read_shard_rows(shards, shard, shard.first_index, stop, ["image", "index"]):
                for start in range(0, table.num_rows, BATCH):
                    images = decode_table(table.slice(start, BATCH), **model.card.decoding)["image"]
                    clusters += model.module(torch.from_numpy(images))[0].argmax(dim=1).tolist()
    return time.perf_counter() - started, clusters


class Stopwatch:
    """Takes the lines of progress; notes when the first image and the last were done."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first: tuple[float, int] | None = None

    def __call__(self, line: str) -> None:
        """A line such as "assign: 960/1,797 images ..."."""
        done = int(line.split()[1].split("/")[0].replace(",", ""))
        self.first = self.first or (time.perf_counter(), done)
        self.last = (time.perf_counter(), done)


def by_actors(model: TrainedModel, images: ImageParts) -> tuple[float, float, list[int]]:
    """Seconds, images/s between the first report and the last, and the cluster of every image."""
    with tempfile.TemporaryDirectory() as out:
        watch = Stopwatch()
        load = model.loader(Folder(out))
        for _ in assign(images, AssignJob(load, model.card, model.batch_size, out), watch):
            pass
        seconds = time.perf_counter() - watch.started
        rows = pads.dataset(f"{out}/{PARTS}").to_table(columns=["index", "cluster"]).sort_by("index")
    assert watch.first is not None
    (start, before), (end, after) = watch.first, watch.last
    return seconds, (after - before) / (end - start), rows.column("cluster").to_pylist()


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Record, inside the block, the largest anonymous memory of this process and of any of its actors, in MiB."""
    peak, ended = {"driver": 0.0, "actor": 0.0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            peak["driver"] = max(peak["driver"], _anonymous(psutil.Process()))
            for process in psutil.process_iter(["name"]):
                if (process.info["name"] or "").startswith("ray::MapWorker"):
                    peak["actor"] = max(peak["actor"], _anonymous(process))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peak
    ended.set()
    thread.join()


def _anonymous(process: psutil.Process) -> float:
    try:
        info = process.memory_info()
    except psutil.NoSuchProcess:
        return 0.0
    return float(info.rss - info.shared) / 2**20


def _args(part: Any) -> tuple[Any, ...]:
    """(..., first index, index behind the last) of a part of shards."""
    return tuple(part.args)


def measure(run: str, shards: str, rounds: int) -> dict[str, Any]:
    """Speeds, their ratio in each round, and memory."""
    model, manifest = open_model(run), read_manifest(shards)
    images = shard_parts(str(Path(shards).absolute()), manifest)
    connect()
    memory = {}
    for name, parts in (("a tenth", images.parts[: len(images.parts) // 10]), ("all", images.parts)):
        with peak_memory() as peak:
            by_actors(
                model, replace(images, parts=parts, total=sum(stop - start for *_, start, stop in map(_args, parts)))
            )
        memory[name] = {"parts": len(parts)} | {who: round(mib) for who, mib in peak.items()}
    ratios, steady, rates = [], [], []
    for _ in range(rounds):
        plain, expected = plain_loop(model, shards, manifest)
        seconds, rate, found = by_actors(model, images)
        assert found == expected, "the clusters differ"
        rates.append(manifest.num_images / plain)
        ratios.append(plain / seconds)
        steady.append(rate / rates[-1])
        print(f"plain loop {rates[-1]:.0f} images/s; actors {ratios[-1]:.2f} of it, {steady[-1]:.2f} once started")
    return {
        "images": manifest.num_images,
        "plain_images_per_second": statistics.median(rates),
        "ratio_with_start": statistics.median(ratios),
        "ratio_once_started": statistics.median(steady),
        "memory_mib": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("shards", help="folder of shards")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the results here, as JSON")
    arguments = parser.parse_args()
    results = measure(arguments.run, arguments.shards, arguments.rounds)
    for name, value in results.items():
        print(f"{name:24}{value}")
    conclude(results, arguments.out)


if __name__ == "__main__":
    main()
