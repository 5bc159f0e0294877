"""Which images a worker reads, in the order in which it needs them, and how shards are read into decoded blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.collectives import RowRange
from pipeline.data.decode import decode_table
from pipeline.data.order import Order
from pipeline.data.read import one_ahead, regroup, shard_errors
from pipeline.data.shards import Manifest, Shard
from pipeline.storage import filesystem

SWEEP = -1  # in place of the epoch in a piece that is read for an E-step
SWEPT_ROWS = 1024  # most in a piece of an E-step
MOST_TASK_BYTES = 64 << 20  # decoded bytes of a task; each reader may hold so many until earlier tasks are done
BLOCK_BYTES = 8 << 20  # decoded bytes that a reader sends to its worker at a time
BLOCK_IMAGES, MOST_BLOCK_BYTES = 200, 32 << 20  # so many, if the images are large: a block waits 0.1 s for Ray Data
OPEN_SHARDS = 64  # files that a reader keeps open, each with its footer
KEPT_ROW_GROUPS = 2  # row groups that a reader keeps, for lanes that are shorter than one


class Piece(NamedTuple):
    """What is read at a time: positions `start` to `stop` in a window's order or, for an E-step, in the index."""

    epoch: int
    lane: int
    window: int
    start: int
    stop: int


def epoch_pieces(order: Order, lanes: RowRange, epoch: int, steps: range, *, whole: bool) -> list[Piece]:
    """The pieces that steps of an epoch need, in the order in which `Inputs.epoch` asks for them.

    With `whole`, whole windows are read, because the draws from them are not known yet.
    """
    found = []
    for lane in range(*lanes[:2]):
        rows = order.lane_rows(lane)
        for number, window, start, stop in order.taken(epoch, lane, steps.start):
            span = (0, len(window)) if whole else (start, stop)
            needed = max(window.first // rows, steps.start)
            if needed in steps:
                found.append((needed, lane, Piece(epoch, lane, number, *span)))
    return [piece for *_, piece in sorted(found)]


def swept_pieces(own: RowRange, image_bytes: int) -> list[Piece]:
    """The pieces of an E-step on decoded images of `image_bytes`."""
    rows = max(min(SWEPT_ROWS, MOST_TASK_BYTES // image_bytes), 1)
    starts = range(own.start, own.stop, rows)
    return [Piece(SWEEP, 0, 0, start, min(start + rows, own.stop)) for start in starts]


def block_rows(image_bytes: int) -> int:
    """Images of `image_bytes` that a reader sends to its worker at a time."""
    return max(BLOCK_BYTES // image_bytes, min(BLOCK_IMAGES, MOST_BLOCK_BYTES // image_bytes), 1)


class PieceReader:
    """Reads pieces: a callable class for Ray Data, which creates an instance in each reading process.

    Parameters
    ----------
    order : Order
    path : str
        The folder of the shards.
    manifest : Manifest
        With the rows of each row group.
    decoding : dict
        Arguments of `decode_table`.
    """

    def __init__(self, order: Order, path: str, manifest: Manifest, decoding: dict[str, Any]) -> None:
        self.order, self.path, self.manifest, self.decoding = order, path, manifest, decoding
        self.starts = order.row_group_starts.numpy()
        self.shard_of = np.repeat(np.arange(len(manifest.shards)), [len(shard.groups) for shard in manifest.shards])
        self.first_row_group = np.searchsorted(self.shard_of, np.arange(len(manifest.shards)))
        self.windows = lru_cache(2 * order.lanes)(order.windows)
        self.opened = lru_cache(OPEN_SHARDS)(self._open)
        self.read_row_group = lru_cache(KEPT_ROW_GROUPS)(self._read_row_group)

    def __call__(self, pieces: pa.Table) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """The blocks of the pieces in a table's rows."""
        return self.blocks(Piece(**piece) for piece in pieces.to_pylist())

    def blocks(self, pieces: Iterable[Piece]) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Blocks {"image": uint8 (n, S, S, 3), "index": int64 (n,)} of the pieces, in their order.

        Raises
        ------
        DataError, DecodeError
            Naming the shard that cannot be read, or the image that cannot be decoded.
        """
        encoded = one_ahead(itertools.chain.from_iterable(map(self.rows_of, pieces)))
        for table in regroup(encoded, block_rows(3 * self.decoding["size"] ** 2)):
            yield decode_table(table, **self.decoding)

    def images_of(self, piece: Piece) -> Tensor:
        """The images (n,) of a piece, ascending."""
        if piece.epoch == SWEEP:
            return torch.arange(piece.start, piece.stop)
        window = self.windows(piece.epoch, piece.lane)[piece.window]
        return self.order.draw(piece.epoch, window)[piece.start : piece.stop].sort().values

    def rows_of(self, piece: Piece) -> Iterator[pa.Table]:
        """The rows {"image", "index"} of a piece's images, ascending, from each row group that has some."""
        images = self.images_of(piece).numpy()
        groups = np.searchsorted(self.starts, images, side="right") - 1
        for group in np.unique(groups):
            yield self.read_row_group(int(group)).take(images[groups == group] - self.starts[group])

    def _read_row_group(self, group: int) -> pa.Table:
        number = int(self.shard_of[group])
        shard, place = self.manifest.shards[number], group - int(self.first_row_group[number])
        with shard_errors(self.path, shard):
            handle, footer = self.opened(shard)
            # One request to an object store: all columns in a read, and the footer is known. A `ParquetFile` keeps what
            # it has buffered, so each row group has its own.
            file = pq.ParquetFile(handle, metadata=footer, pre_buffer=True, page_checksum_verification=True)
            return file.read_row_group(place, columns=["image", "index"])

    def _open(self, shard: Shard) -> tuple[pa.NativeFile, pq.FileMetaData]:
        files, root = filesystem(self.path)
        handle = files.open_input_file(f"{root}/{shard.file}")
        return handle, pq.read_metadata(handle)
