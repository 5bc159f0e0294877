"""Reading and decoding shards without Ray: by plain processes, and by torch's DataLoader; both with our decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

from pipeline.data.decode import decode_table


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
    """Decode a share and forget it; returns the number of its images."""
    return sum(len(images) for images in batches(files, share, batch, decoding))


class PlainLoop:
    """Processes that each decode their share; a call makes all of them do it once."""

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
