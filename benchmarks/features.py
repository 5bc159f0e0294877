"""Training on cached features that do not fit in memory: the memory it takes, and its speed against features in memory.

    python -m benchmarks.features --images 111112      # a million rows of nine views, 2.6 GB

A cache of random features is written as Parquet, copied to a mapped file, and trained on for an epoch with an E-step.
Only the process's anonymous memory counts: the operating system takes pages of a mapped file back when it needs room.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.measure import conclude, speedup, time_interleaved
from pipeline.backbone_features.cache import CacheKey, CachePart, FeatureCache, part_table
from pipeline.backbone_features.inputs import CachedFeatures, as_input, split_pair
from pipeline.backbone_features.load import load_backbone_features
from pipeline.clustering.kmeans import spherical_kmeans
from pipeline.collectives import RowRange
from pipeline.data.loader import Batch, Inputs
from pipeline.data.order import Order
from pipeline.method.digpro import DigPro, DigProSettings
from pipeline.method.encoder import Standardize, build_head, build_predictor
from pipeline.method.optimizer import build_optimizer
from pipeline.storage import Folder

VIEWS, SIZE, CLUSTERS, BATCH, BLOCK = 9, 1280, 100, 256, 256
PART_IMAGES = 1024
CLAIM_GIB = 1.25  # for a million rows; the E-step's features, which grow with the images, are 0.2 of it
CPU = torch.device("cpu")


def write_cache(folder: Path, images: int) -> FeatureCache:
    """A cache of random features, part by part."""
    parts = tuple(
        CachePart(file=f"part-{start:07d}.parquet", first_index=start, rows=min(PART_IMAGES, images - start))
        for start in range(0, images, PART_IMAGES)
    )
    rng = np.random.default_rng(0)
    for part in parts:
        features = rng.random((part.rows, VIEWS, SIZE), dtype=np.float32).astype(np.float16)
        pq.write_table(part_table(part.first_index, features), folder / part.file, compression="none")
    key = CacheKey(images="", encoder="", weights="", preprocessing={}, views={}, precision="")
    return FeatureCache(key=key, num_images=images, views=VIEWS, feature_size=SIZE, parts=parts, seconds=0)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Record, inside the block, the largest anonymous and file-backed memory of this process, in GiB."""
    peak, ended = {"RssAnon": 0.0, "RssFile": 0.0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in peak:
                    peak[name] = max(peak[name], int(rest.split()[0]) / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peak
    ended.set()
    thread.join()


def build() -> DigPro:
    """The heads of the preset `photos`."""
    head, predictor = build_head(SIZE, 1024, 256), build_predictor(256, 1024)
    return DigPro(Standardize(SIZE), head, predictor, 256, DigProSettings(CLUSTERS))


class Trainer:
    """Steps on batches of an inputs object, as the worker makes them."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.model = inputs, build()
        self.labels = torch.arange(inputs.own.total) % CLUSTERS
        self.optimizer = build_optimizer(self.model, lr=0.01, momentum=0.9, weight_decay=5e-4)

    def steps(self, count: int | None = None) -> None:
        """That many steps of an epoch, or all of it."""
        for done, batch in enumerate(self.inputs.epoch(0)):
            if done == count:
                return
            self.step(batch)

    def step(self, batch: Batch) -> None:
        """Losses, gradients, one move."""
        views = split_pair(batch.inputs, batch.index, 0)
        losses = self.model(*views, self.labels[batch.index], target_momentum=0.99, rows=batch.rows)
        self.optimizer.zero_grad()
        losses.total.backward()
        self.optimizer.step()

    def estep(self) -> None:
        """Features of all images, and k-means of one start."""
        encoded = torch.cat([self.model.encode(as_input(block)) for block, _ in self.inputs.blocks()])
        spherical_kmeans(encoded, CLUSTERS, restarts=1, max_iter=5)


def open_inputs(folder: Path, cache: FeatureCache, *, limit_gb: float) -> Inputs:
    """Inputs in memory up to the limit, or from a mapped file."""
    features = load_backbone_features(Folder(str(folder)), cache, CPU, limit_gb=limit_gb, first_on_node=True)
    count = len(features)
    source = CachedFeatures(features, CPU, own=RowRange(0, count, count), seed=0, block_size=BLOCK)
    return Inputs(Order(count, BATCH, 0, count, (count,)), source, CPU)


def measure(images: int, rounds: int) -> dict[str, Any]:
    """Memory of an epoch from a mapped file, and the speed of its steps against those from memory."""
    with tempfile.TemporaryDirectory() as place:
        cache = write_cache(Path(place), images)
        with peak_memory() as peak:
            mapped = Trainer(open_inputs(Path(place), cache, limit_gb=0))
            mapped.steps()
            mapped.estep()
        resident = Trainer(open_inputs(Path(place), cache, limit_gb=1e9))
        blocks = {"mapped": lambda: mapped.steps(50), "resident": lambda: resident.steps(50)}
        seconds = time_interleaved(blocks, rounds)
    return {
        "rows": images * VIEWS,
        "cache_gib": cache.bytes / 2**30,
        "peak_anonymous_gib": peak["RssAnon"],
        "peak_file_backed_gib": peak["RssFile"],
        "mapped_over_resident": speedup(seconds, of="mapped", over="resident"),
    }


def main() -> int:
    """Measure, print, and judge the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=111_112, help="images of nine rows each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the results here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(args.images, args.rounds)
    for name, value in results.items():
        print(f"{name:>22} {value:,.2f}")
    results["claim_holds"] = results["peak_anonymous_gib"] < CLAIM_GIB
    print(f"anonymous memory < {CLAIM_GIB} GiB: {'PASS' if results['claim_holds'] else 'FAIL'}")
    conclude(results, args.out)
    return 0 if results["claim_holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
