"""Small reads from shards, without Ray: labels of all images, a sample of them, and chosen ones."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.shards import Manifest, Shard, read_manifest
from pipeline.errors import DataError
from pipeline.storage import filesystem


def read_labels(folder: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any] | None:
    """Classes int64 of the images `start` to `stop - 1`, or of all, -1 where unknown; None when no image has one.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """

    def labels_of(shard: Shard) -> np.ndarray[Any, Any]:
        with _opened(folder, shard) as file:
            return file.read(columns=["label"]).column("label").to_numpy()

    manifest = read_manifest(folder)
    stop = manifest.num_images if stop is None else stop
    shards = [shard for shard in manifest.shards if shard.first_index < stop and start < shard.first_index + shard.rows]
    with ThreadPoolExecutor(8) as pool:  # remote reads this small are latency, not work
        labels = np.concatenate(list(pool.map(labels_of, shards)))
    labels = labels[start - shards[0].first_index :][: stop - start]
    return labels if (labels >= 0).any() else None


def has_labels(folder: str) -> bool:
    """Whether any image has a class, from the statistics in the shards' footers.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """

    def is_labelled(shard: Shard) -> bool:
        with _opened(folder, shard) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            columns = [group.column(i) for group in groups for i in range(group.num_columns)]
            found = [column.statistics for column in columns if column.path_in_schema == "label"]
            return any(statistics is None or statistics.max >= 0 for statistics in found)

    with ThreadPoolExecutor(8) as pool:
        return any(pool.map(is_labelled, read_manifest(folder).shards))


def read_paths(folder: str) -> Iterator[pa.ChunkedArray]:
    """Paths of the images in their source, shard by shard, in the order of the index.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """
    for shard in read_manifest(folder).shards:
        with _opened(folder, shard) as file:
            yield pc.struct_field(file.read(columns=["image.path"]).column("image"), "path")


def read_sample(folder: str, manifest: Manifest, count: int) -> pa.Table:
    """The first `count` rows {"image", "index"}, or all: a fair sample, because ingest shuffles.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """
    batches: list[pa.RecordBatch] = []
    missing = count
    for shard in manifest.shards:
        with _opened(folder, shard) as file:
            for batch in file.iter_batches(missing, columns=["image", "index"]):
                batches.append(batch.slice(0, missing))
                missing -= len(batches[-1])
                if missing == 0:
                    return pa.Table.from_batches(batches)
    return pa.Table.from_batches(batches)


def read_rows(folder: str, manifest: Manifest, start: int, stop: int) -> pa.Table:
    """The rows {"image", "index"} with the indices from `start` to `stop - 1`; only their row groups are read.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """
    tables: list[pa.Table] = []
    for shard in manifest.shards:
        if shard.first_index < stop and start < shard.first_index + shard.rows:
            tables += read_shard_rows(folder, shard, start, stop, ["image", "index"])
    return pa.concat_tables(tables)


def read_shard_rows(folder: str, shard: Shard, start: int, stop: int, columns: list[str]) -> Iterator[pa.Table]:
    """The rows of a shard with the indices from `start` to `stop - 1`, from each row group that has some.

    Raises
    ------
    DataError
        When the shard cannot be read.
    """
    first = shard.first_index
    with _opened(folder, shard) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < stop and start < first + rows:
                low = max(start - first, 0)
                yield file.read_row_group(group, columns=columns).slice(low, stop - first - low)
            first += rows


def read_chosen(folder: str, manifest: Manifest, chosen: np.ndarray[Any, Any]) -> Iterator[pa.Table]:
    """Rows {"image", "index"} of the chosen indices, in order of index; a table for each row group that has some.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """
    chosen = np.unique(chosen)
    for shard in manifest.shards:
        own = chosen[(chosen >= shard.first_index) & (chosen < shard.first_index + shard.rows)] - shard.first_index
        if len(own):
            with _opened(folder, shard) as file:
                yield from _chosen_of_groups(file, own)


def _chosen_of_groups(file: pq.ParquetFile, own: np.ndarray[Any, Any]) -> Iterator[pa.Table]:
    """The rows at the sorted places `own` of a shard, from each row group that has some."""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        here = own[(own >= first) & (own < first + rows)] - first
        if len(here):
            yield file.read_row_group(group, columns=["image", "index"]).take(here)
        first += rows


@contextmanager
def _opened(folder: str, shard: Shard) -> Iterator[pq.ParquetFile]:
    """The shard's file; what is wrong with it, now or while it is read, becomes a DataError."""
    files, root = filesystem(folder)
    try:
        with files.open_input_file(f"{root}/{shard.file}") as handle:
            yield pq.ParquetFile(handle, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{folder}/{shard.file} cannot be read: {error}; ingest the source again") from error
