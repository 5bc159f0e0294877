"""The second pass of an ingest: mixes the verified parts into shards with a dense index, and writes the file of labels.

Streaming training takes each batch from windows of consecutive rows, so a source sorted by class would give it batches
of few classes. Therefore the parts' row groups, each about a hundredth of a shard long, are dealt out in a fixed
random order. Each run of 1,024 rows in a shard is then shuffled once more and written as several row groups, so that a
reader of few rows reads little.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from pipeline.data.shards import (
    LABELS,
    LABELS_SCHEMA,
    ROW_GROUP_BYTES,
    ROW_GROUP_ROWS,
    WRITE_OPTIONS,
    Shard,
    shard_schema,
)
from pipeline.data.sources.base import cut, pack, shuffled
from pipeline.data.tasks import run_each
from pipeline.data.verify import HELD_BYTES, VerifyReport, part_file
from pipeline.storage import filesystem

ROW_GROUPS_PER_SHARD = 128
SHUFFLED_ROWS = 1024  # rows of a shard that are shuffled together, or fewer if they reach HELD_BYTES
LABEL_ROWS = 1 << 18  # least rows in a row group of the file of labels: two megabytes
OPEN_PARTS = 64  # part files that a task keeps open, each with its footer


class RowGroupSlice(NamedTuple):
    """Rows `start` to `stop` of a row group of a part's file."""

    part: int
    group: int
    start: int
    stop: int


def row_group_length(rows_per_shard: int) -> int:
    """Length of the parts' row groups, whose rows stay together when the parts are mixed."""
    return -(-rows_per_shard // ROW_GROUPS_PER_SHARD)


def write_shards(
    reports: list[VerifyReport], out: str, work: str, rows_per_shard: int, class_names: tuple[str, ...]
) -> list[Shard]:
    """Mix the files of all parts into shards of `rows_per_shard` rows; the last one may be shorter."""
    fs, root = filesystem(out)
    for info in fs.get_file_info(pafs.FileSelector(root)):
        if (
            info.base_name.startswith("shard-") or info.base_name == LABELS
        ):  # left by an ingest that was killed here before its source changed
            fs.delete_file(info.path)
    calls = (
        (out, work, i, i * rows_per_shard, slices, class_names)
        for i, slices in enumerate(_deal(reports, rows_per_shard))
    )
    return sorted(run_each(_write_shard, calls), key=lambda shard: shard.first_index)


def _deal(reports: list[VerifyReport], rows_per_shard: int) -> Iterator[list[RowGroupSlice]]:
    """The slices of each shard: the row groups of all parts in a random order, cut where a shard is full."""
    groups = shuffled([(k, i, rows) for k, report in enumerate(reports) for i, rows in enumerate(report.groups)])
    for spans in pack((rows for _, _, rows in groups), rows_per_shard):
        yield [RowGroupSlice(*groups[run][:2], start, stop) for run, start, stop in spans]


def _write_shard(
    out: str, work: str, number: int, first: int, slices: list[RowGroupSlice], class_names: tuple[str, ...]
) -> Shard:
    """Write the rows of `slices` as a shard, with indices from `first` on, and its labels into a file in `work`."""
    fs, root = filesystem(out)
    name, schema = f"shard-{number:05d}.parquet", shard_schema(class_names)
    groups: list[int] = []
    labels: list[pa.Table] = []
    index = first
    with pq.ParquetWriter(f"{root}/{name}", schema, filesystem=fs, **WRITE_OPTIONS) as writer:
        for rows in _joined(_read(fs, work, slices), SHUFFLED_ROWS, HELD_BYTES):
            table = rows.take(shuffled(range(len(rows)), index))
            indices = pa.array(np.arange(index, index + len(table)))
            for group in _row_groups(pa.table([table["image"], table["label"], indices], schema=schema)):
                writer.write_table(group)
                groups.append(len(group))
            labels.append(table.select(["label"]))
            index += len(table)
    pq.write_table(pa.concat_tables(labels), _labels_path(work, number), filesystem=fs)
    size = fs.get_file_info(f"{root}/{name}").size
    return Shard(file=name, rows=index - first, bytes=size, first_index=first, groups=tuple(groups))


def _labels_path(work: str, number: int) -> str:
    return f"{work}/labels-{number:05d}.parquet"


def _read(fs: pafs.FileSystem, work: str, slices: list[RowGroupSlice]) -> Iterator[pa.Table]:
    @lru_cache(OPEN_PARTS)
    def opened(part: int) -> pq.ParquetFile:
        return pq.ParquetFile(part_file(work, part), filesystem=fs)

    for part, group, start, stop in slices:
        yield opened(part).read_row_group(group).slice(start, stop - start)


def _joined(tables: Iterable[pa.Table], rows: int, size: float) -> Iterator[pa.Table]:
    """Join small tables until they have `rows` rows or `size` bytes."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(part.num_rows for part in held) >= rows or sum(part.nbytes for part in held) >= size:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _row_groups(table: pa.Table) -> list[pa.Table]:
    """Cut a table into row groups of nearly equal length, bounded in rows and, on average, in bytes."""
    count = max(-(-len(table) // ROW_GROUP_ROWS), min(-(-table.nbytes // ROW_GROUP_BYTES), len(table)))
    bounds = [len(table) * i // count for i in range(count + 1)]
    return [table.slice(start, stop - start) for start, stop in itertools.pairwise(bounds)]


def write_labels(shards: int, out: str, work: str) -> None:
    """Join the labels of all shards into one file, with the labels of only a few shards in memory at a time."""
    fs, root = filesystem(out)
    tables = _read_labels(fs, work, shards)
    with pq.ParquetWriter(f"{root}/{LABELS}", LABELS_SCHEMA, filesystem=fs, write_page_checksum=True) as writer:
        for table in _joined(tables, LABEL_ROWS, HELD_BYTES):
            writer.write_table(table)


def _read_labels(fs: pafs.FileSystem, work: str, shards: int) -> Iterator[pa.Table]:
    with ThreadPoolExecutor(8) as pool:  # remote reads this small are latency, not work
        for numbers in cut(range(shards), 8):
            yield from pool.map(lambda number: pq.read_table(_labels_path(work, number), filesystem=fs), numbers)
