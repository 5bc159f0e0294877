"""The second pass of an ingest: the verified parts mixed into shards, with a dense index.

Training that streams reads shards one after the other, and its shuffle reaches no further than a buffer. A source in
the order of its classes would give it batches of one class, so the parts' row groups, each about a
hundredth of a shard long, are dealt out in a fixed random order, and within each row group of a shard the rows are
shuffled once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from pipeline.data.shards import GROUP_BYTES, GROUP_ROWS, WRITE_OPTIONS, Shard, shard_schema
from pipeline.data.sources.base import pack, shuffled
from pipeline.data.tasks import run_each
from pipeline.data.verify import PartReport, part_file
from pipeline.storage import filesystem

PIECES_PER_SHARD = 128
OPEN_PARTS = 64  # part files that a task keeps open, each with its footer


class Piece(NamedTuple):
    """Rows `start` to `stop` of a row group of a part's file."""

    part: int
    group: int
    start: int
    stop: int


def rows_per_piece(rows_per_shard: int) -> int:
    """Length of the parts' row groups: what stays together when the parts are mixed."""
    return -(-rows_per_shard // PIECES_PER_SHARD)


def write_shards(
    reports: list[PartReport], out: str, work: str, rows_per_shard: int, class_names: tuple[str, ...]
) -> list[Shard]:
    """Mix the files of all parts into shards of `rows_per_shard` rows; the last one may be shorter."""
    fs, root = filesystem(out)
    for info in fs.get_file_info(pafs.FileSelector(root)):
        if info.base_name.startswith("shard-"):  # of an ingest that was killed here before its source changed
            fs.delete_file(info.path)
    calls = [
        (out, work, i, i * rows_per_shard, pieces, class_names)
        for i, pieces in enumerate(_deal(reports, rows_per_shard))
    ]
    return sorted(run_each(_write_shard, calls), key=lambda shard: shard.first_index)


def _deal(reports: list[PartReport], rows_per_shard: int) -> list[list[Piece]]:
    """The pieces of each shard: the row groups of all parts in a random order, cut where a shard is full."""
    groups = shuffled([(k, i, rows) for k, report in enumerate(reports) for i, rows in enumerate(report.groups)])
    shards = pack([rows for _, _, rows in groups], rows_per_shard)
    return [[Piece(*groups[run][:2], start, stop) for run, start, stop in spans] for spans in shards]


def _write_shard(
    out: str, work: str, number: int, first: int, pieces: list[Piece], class_names: tuple[str, ...]
) -> Shard:
    """Write the rows of `pieces` as a shard, with the indices from `first` on."""
    fs, root = filesystem(out)
    name, schema = f"shard-{number:05d}.parquet", shard_schema(class_names)
    index = first
    with pq.ParquetWriter(f"{root}/{name}", schema, filesystem=fs, **WRITE_OPTIONS) as writer:
        for group in _row_groups(_read(fs, work, pieces)):
            table = group.take(shuffled(range(len(group)), index))
            indices = pa.array(np.arange(index, index + len(table)))
            writer.write_table(pa.table([table["image"], table["label"], indices], schema=schema))
            index += len(table)
    size = fs.get_file_info(f"{root}/{name}").size
    return Shard(file=name, rows=index - first, bytes=size, first_index=first)


def _read(fs: pafs.FileSystem, work: str, pieces: list[Piece]) -> Iterator[pa.Table]:
    @lru_cache(OPEN_PARTS)
    def opened(part: int) -> pq.ParquetFile:
        return pq.ParquetFile(part_file(work, part), filesystem=fs)

    for piece in pieces:
        yield opened(piece.part).read_row_group(piece.group).slice(piece.start, piece.stop - piece.start)


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables to row groups, bounded in rows and in bytes."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(part.num_rows for part in held) >= GROUP_ROWS or sum(part.nbytes for part in held) >= GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)
