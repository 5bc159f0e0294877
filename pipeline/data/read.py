"""Small reads from shards, without Ray: labels, a sample of the images, and chosen images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.footers import column_statistics, row_group_rows
from pipeline.data.shards import REINGEST, Manifest, Shard, open_labels, read_manifest
from pipeline.errors import DataError
from pipeline.storage import filesystem, join, remedy_for

T = TypeVar("T")


def read_labels(folder: str, start: int = 0, stop: int | None = None) -> np.ndarray[Any, Any] | None:
    """Classes (stop - start,) int64 of the rows from `start` to `stop - 1`, -1 where unknown; all rows by default.

    Only the row groups that hold these rows are read: from the file of labels or, if an earlier version ingested the
    data set without such a file, from the shards.

    Returns
    -------
    ndarray or None
        None when no image of the whole data set has a class.

    Raises
    ------
    ValueError
        For rows that the data set does not have.
    DataError
        Naming the first file that cannot be read.
    """
    manifest = read_manifest(folder)
    stop = manifest.num_images if stop is None else stop
    if not 0 <= start <= stop <= manifest.num_images:
        raise ValueError(f"rows {start} to {stop - 1} of {folder}: it has rows 0 to {manifest.num_images - 1}")
    if not _any_labelled(folder, manifest):
        return None
    read = _labels_of_file if manifest.labelled else _labels_of_shards
    labels, filled = np.empty(stop - start, np.int64), 0
    for table in read(folder, manifest, start, stop):
        labels[filled : filled + len(table)] = table.column("label").to_numpy()
        filled += len(table)
    if filled != len(labels):
        raise DataError(
            f"the shards in {folder} have {filled} labels for rows {start} to {stop - 1}, not {len(labels)}; {REINGEST}"
        )
    return labels


def _labels_of_file(folder: str, manifest: Manifest, start: int, stop: int) -> Iterator[pa.Table]:
    with open_labels(folder, manifest) as file:
        yield from _rows_of_row_groups(file, start, stop, ["label"])


def _labels_of_shards(folder: str, manifest: Manifest, start: int, stop: int) -> Iterator[pa.Table]:
    def labels_of(shard: Shard) -> list[pa.Table]:
        return list(read_shard_rows(folder, shard, start, stop, ["label"]))

    with ThreadPoolExecutor(8) as pool:  # remote reads this small are latency, not work
        for tables in pool.map(labels_of, _overlapping(manifest, start, stop)):
            yield from tables


def has_labels(folder: str) -> bool:
    """Whether any image has a class: from the manifest, or else from the statistics in the shards' footers.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """
    return _any_labelled(folder, read_manifest(folder))


def _any_labelled(folder: str, manifest: Manifest) -> bool:
    if manifest.labelled is not None:
        return manifest.labelled

    def is_labelled(shard: Shard) -> bool:
        with _opened(folder, shard) as file:
            found = [column_statistics(file, group, "label") for group in range(file.num_row_groups)]
            return any(statistics is None or statistics.max >= 0 for statistics in found)

    with ThreadPoolExecutor(8) as pool:
        return any(pool.map(is_labelled, manifest.shards))


def with_row_groups(folder: str, manifest: Manifest) -> Manifest:
    """The manifest with the row groups of every shard; if an earlier version left them out, from the footers.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read, or has another number of rows than the manifest says.
    """

    def completed(shard: Shard) -> Shard:
        if shard.groups:
            return shard
        with _opened(folder, shard) as file:
            groups = row_group_rows(file)
        if sum(groups) != shard.rows:
            found = f"has {sum(groups)} rows but the manifest says {shard.rows}"
            raise DataError(f"{join(folder, shard.file)} {found}; {REINGEST}")
        return shard.model_copy(update={"groups": groups})

    if all(shard.groups for shard in manifest.shards):
        return manifest
    with ThreadPoolExecutor(8) as pool:  # remote footers are latency, not work
        return manifest.model_copy(update={"shards": list(pool.map(completed, manifest.shards))})


def read_origins(folder: str) -> Iterator[pa.Table]:
    """The path of each image in its source and its class {"path", "label"}, shard by shard, in order of the index.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """
    for shard in read_manifest(folder).shards:
        with _opened(folder, shard) as file:
            rows = file.read(columns=["image.path", "label"])
            yield pa.table({"path": pc.struct_field(rows.column("image"), "path"), "label": rows.column("label")})


def read_sample(folder: str, manifest: Manifest, count: int) -> pa.Table:
    """The first `count` rows {"image", "index"}, or all: a fair sample, because ingest shuffles.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """
    return read_rows(folder, manifest, 0, min(count, manifest.num_images))


def read_rows(folder: str, manifest: Manifest, start: int, stop: int) -> pa.Table:
    """The rows {"image", "index"} with the indices from `start` to `stop - 1`; only their row groups are read.

    Raises
    ------
    DataError
        Naming the first shard that cannot be read.
    """
    tables: list[pa.Table] = []
    for shard in _overlapping(manifest, start, stop):
        tables += read_shard_rows(folder, shard, start, stop, ["image", "index"])
    return pa.concat_tables(tables)


def _overlapping(manifest: Manifest, start: int, stop: int) -> list[Shard]:
    return [s for s in manifest.shards if s.first_index < stop and start < s.first_index + s.rows]


def read_shard_rows(folder: str, shard: Shard, start: int, stop: int, columns: list[str]) -> Iterator[pa.Table]:
    """The rows of a shard with the indices from `start` to `stop - 1`, from each row group that has some.

    Raises
    ------
    DataError
        When the shard cannot be read.
    """
    with _opened(folder, shard) as file:
        yield from _rows_of_row_groups(file, start - shard.first_index, stop - shard.first_index, columns)


def _rows_of_row_groups(file: pq.ParquetFile, start: int, stop: int, columns: list[str]) -> Iterator[pa.Table]:
    """The rows of a file from `start` to `stop - 1`, from each row group that has some."""
    first = 0
    for group, rows in enumerate(row_group_rows(file)):
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
                yield from _chosen_of_row_groups(file, own)


def _chosen_of_row_groups(file: pq.ParquetFile, own: np.ndarray[Any, Any]) -> Iterator[pa.Table]:
    """The rows at the sorted places `own` of a shard, from each row group that has some."""
    first = 0
    for group, rows in enumerate(row_group_rows(file)):
        here = own[(own >= first) & (own < first + rows)] - first
        if len(here):
            yield file.read_row_group(group, columns=["image", "index"]).take(here)
        first += rows


def regroup(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The rows of consecutive tables in tables of `rows`, the last one shorter."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= rows:
            together = pa.concat_tables(held)
            whole = len(together) // rows * rows
            yield from (together.slice(first, rows) for first in range(0, whole, rows))
            held = [together.slice(whole)]
    if sum(map(len, held)):
        yield pa.concat_tables(held)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items; while one is used, another thread makes the next."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


@contextmanager
def _opened(folder: str, shard: Shard) -> Iterator[pq.ParquetFile]:
    """The shard's file; errors in opening or reading it become a DataError."""
    files, root = filesystem(folder)
    with shard_errors(folder, shard), files.open_input_file(f"{root}/{shard.file}") as handle:
        yield pq.ParquetFile(handle, page_checksum_verification=True)


@contextmanager
def shard_errors(folder: str, shard: Shard) -> Iterator[None]:
    """Turn errors in reading a shard, inside the block, into a DataError that names the shard."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        remedy = remedy_for(error, "ingest the source again")
        raise DataError(f"{join(folder, shard.file)} cannot be read: {error}; {remedy}") from error
