"""Memory of the driver at the end of a run: how much it grows with the number of images.

    python -m benchmarks.leaving --images 100000 1000000

A finished run is made up for each number of images: shards of tiny pictures with classes and paths, and the features
that workers write. A fresh process then writes the outputs of a run (assignments, pictures, atlas, embedding), and its
largest anonymous memory is measured. The bytes per image are the growth of this memory from the smallest run to the
largest, over the difference in images. The map and the neighbours use at most 100,000 images; here they are made for
the first 2,000, so that their memory and minutes do not hide the growth. The checkpoint is not read here: its
pseudo-labels are dropped before the first of these steps.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from benchmarks.features import peak_memory
from benchmarks.measure import conclude
from pipeline.config.loading import load_config
from pipeline.data.shards import ROW_GROUP_ROWS as SHARD_ROW_GROUP_ROWS
from pipeline.data.shards import WRITE_OPTIONS, ImageStatistics, Manifest, Shard, SourceInfo, shard_schema
from pipeline.inference.predict import predict
from pipeline.inference.run_features import FEATURES, ROW_GROUP_ROWS, prediction_table
from pipeline.method.losses import unit
from pipeline.plan import make_plan
from pipeline.runs import report
from pipeline.runs.artifacts import draw, write_assignments
from pipeline.runs.train import resolve
from pipeline.tracking import RunRef
from pipeline.training.job import Job

SIZE, CLASSES, PARTS, SHARD_ROWS = 64, 10, 4, 50_000  # length of a feature, classes, workers of the run
MAPPED = 2_000  # images with a place on the map and neighbours
CLAIM = 16  # bytes an image


def made_up_job(place: Path, images: int, clusters: int) -> Job:
    """A run that has just trained on so many images, with data and features in a folder."""
    manifest = write_shards(place / "data", images)
    settings = [f"data.path={place}/data", f"storage={place}", "name=run", f"method.num_clusters={clusters}"]
    config = resolve(load_config("digits", settings), "run")
    job = Job(
        config, manifest, make_plan(config, manifest), RunRef("sqlite:///none", "none", "digpro", "small", {}, {})
    )
    write_features(place / "run", images, centers(clusters))
    return job


def centers(clusters: int) -> Tensor:
    """Unit centres (clusters, SIZE), the same each time."""
    return unit(torch.randn(clusters, SIZE, generator=torch.Generator().manual_seed(0)))


def write_shards(folder: Path, images: int) -> Manifest:
    """Shards of pictures of 8 x 8 pixels, with paths as long as ImageNet's on disk."""
    folder.mkdir()
    shards: list[Shard] = []
    for first in range(0, images, SHARD_ROWS):
        rows = range(first, min(first + SHARD_ROWS, images))
        file = folder / f"shard-{len(shards):05d}.parquet"
        pq.write_table(shard_table(rows), file, row_group_size=SHARD_ROW_GROUP_ROWS, **WRITE_OPTIONS)
        shards.append(Shard(file=file.name, rows=len(rows), bytes=file.stat().st_size, first_index=first))
    statistics = ImageStatistics(
        mean=(0.5,) * 3, std=(0.2,) * 3, sampled=1, min_width=8, max_width=8, min_height=8, max_height=8
    )
    manifest = Manifest(
        num_images=images,
        class_names=[f"class-{number}" for number in range(CLASSES)],
        statistics=statistics,
        source=SourceInfo(source="made up", kind="made up", digest="made up"),
        shards=shards,
        quarantined_count=0,
        quarantined=[],
    )
    manifest.write(str(folder))
    return manifest


def shard_table(rows: range) -> pa.Table:
    """Rows of a shard: image number i has one colour and the class i % CLASSES."""
    files = [_picture(colour) for colour in range(256)]
    paths = [f"imagenet/train/n{10**7 + row % CLASSES:08}/n{row:010}.JPEG" for row in rows]
    pictures = [{"bytes": files[row % 256], "path": path} for row, path in zip(rows, paths, strict=True)]
    columns = {"image": pictures, "label": [row % CLASSES for row in rows], "index": list(rows)}
    return pa.table(columns, schema=shard_schema([f"class-{number}" for number in range(CLASSES)]))


def _picture(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 255 - colour, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def write_features(run: Path, images: int, clusters: Tensor) -> None:
    """Features around centres (K, SIZE), in the parts of `PARTS` workers."""
    (run / FEATURES).mkdir(parents=True)
    bounds = np.linspace(0, images, PARTS + 1).astype(int).tolist()
    generator = torch.Generator().manual_seed(0)
    for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
        file = run / FEATURES / f"part-{part:05d}-of-{PARTS:05d}.parquet"
        row_groups = torch.arange(start, stop).split(ROW_GROUP_ROWS)
        tables = (feature_table(index, clusters, generator) for index in row_groups)
        first = next(tables)
        with pq.ParquetWriter(file, first.schema, write_page_checksum=True) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)


def feature_table(index: Tensor, clusters: Tensor, generator: torch.Generator) -> pa.Table:
    """Rows of the images `index` (n,), as a worker writes them."""
    own = torch.randint(len(clusters), (len(index),), generator=generator)
    features = unit(clusters[own] + 0.1 * torch.randn(len(index), SIZE, generator=generator))
    return prediction_table(predict(features @ clusters.T), index=index, features=features)


def leave(job: Job, answer: Any) -> None:
    """Write the outputs of the run; answers with the peak of this process in bytes, and the seconds it took."""
    values = {"centers": centers(job.plan.num_clusters), "history": [{"epoch": 0, "loss": 1.0}]}
    started, report.EXACT_IMAGES = time.monotonic(), MAPPED
    with peak_memory() as peak, TemporaryDirectory() as local:
        write_assignments(job.folder, job.config.data.path, job.manifest.num_images, job.plan.num_clusters)
        draw(job.folder, job.config, job.manifest, values, Path(local))
        report.write_report(Path(local), job.folder, job.config, job.manifest, values, [])
    answer.send({"bytes": peak["RssAnon"] * 2**30, "seconds": time.monotonic() - started})


def measure(images: int, clusters: int) -> dict[str, float]:
    """Peak memory and seconds of a fresh process that ends a run of so many images."""
    with TemporaryDirectory() as place:
        job = made_up_job(Path(place), images, clusters)
        context = get_context("spawn")
        answer, question = context.Pipe(duplex=False)
        process = context.Process(target=leave, args=(job, question))
        process.start()
        question.close()
        try:
            found: dict[str, float] = answer.recv()
        except EOFError:
            raise SystemExit(f"the end of a run of {images:,} images failed; its error is above") from None
        finally:
            process.join()
    print(f"{images:>12,} images  {found['bytes'] / 2**20:8.1f} MiB  {found['seconds']:6.1f} s", flush=True)
    return found | {"images": images}


def main() -> int:
    """Measure, print, and judge the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000], help="two numbers or more")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--out", type=Path, help="also write the results here, as JSON")
    arguments = parser.parse_args()
    if len(set(arguments.images)) < 2:
        parser.error(f"--images {arguments.images}: give two different numbers, growth is what lies between them")
    points = [measure(images, arguments.clusters) for images in sorted(set(arguments.images))]
    smallest, largest = points[0], points[-1]
    growth = (largest["bytes"] - smallest["bytes"]) / (largest["images"] - smallest["images"])
    holds = growth <= CLAIM
    print(f"bytes an image: {growth:.1f}, at most {CLAIM}: {'PASS' if holds else 'FAIL'}")
    conclude({"points": points, "bytes_an_image": growth, "claim_holds": holds}, arguments.out)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
