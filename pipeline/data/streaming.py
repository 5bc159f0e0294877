"""The images of a share, read and decoded by Ray Data in the order in which the worker needs them.

Each worker runs one pipeline, from the point where its run begins to the end of the schedule. Windows of epochs and
sweeps of E-steps follow each other in it, so reading continues while the worker computes, and no process is started in
between. Resident images are loaded through the same pipeline, which then ends.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from pipeline.collectives import RowRange
from pipeline.data.loader import to_device
from pipeline.data.reader import SWEPT_ROWS, Piece, PieceReader
from pipeline.errors import user_error_in

Block = dict[str, np.ndarray[Any, Any]]
BLOCK_BYTES = 8 << 20  # decoded bytes that a reader sends to its worker at a time
TASKS = 2000  # of a pipeline: all are made before it begins, at half a millisecond each
MOST_TASK_BYTES = 64 << 20  # decoded bytes of a task; each reader may hold so many until earlier tasks are done
FEW_BYTES = 24 << 20  # decoded bytes; they take about a second, less than other processes take to start


@dataclass(frozen=True)
class Readers:
    """The processes that read for one worker.

    Attributes
    ----------
    count : int
    cpus : float
        CPUs that each reserves.
    """

    count: int
    cpus: float

    @classmethod
    def of(cls, cpus: float) -> Readers:
        """One reader per whole CPU, or one with what is left: it starts even if workers have taken all CPUs."""
        count = max(int(cpus), 1)
        return cls(count, max(int(cpus / count * 100) / 100, 0.0))


class ReadPipeline:
    """Reads pieces with processes on this node, or on another one if this node has no room.

    Parameters
    ----------
    reader : tuple
        Arguments of `PieceReader`.
    readers : Readers
    image_bytes : int
        Size of a decoded image.
    """

    def __init__(self, reader: tuple[Any, ...], readers: Readers, image_bytes: int) -> None:
        self.reader, self.readers, self.image_bytes = reader, readers, image_bytes

    def blocks(self, pieces: Iterable[Piece], images: int) -> Iterator[Block]:
        """Blocks of the pieces, in order; the pieces hold about `images` images in all.

        The first ones are read in this process while the reading processes start.
        """
        left = iter(pieces)
        few = next(task_tables(left, FEW_BYTES // self.image_bytes), None)
        by_others = self._blocks_of_others(left, images)
        with ThreadPoolExecutor(1) as starter:
            first = starter.submit(next, by_others, None)
            yield from PieceReader(*self.reader)(few) if few else ()
            block = first.result()
        if block is not None:
            yield block
            yield from by_others

    def _blocks_of_others(self, pieces: Iterator[Piece], images: int) -> Iterator[Block]:
        """Blocks of the pieces, read by Ray Data processes; none is started if there are no pieces."""
        size = min(max(images * self.image_bytes // TASKS, BLOCK_BYTES), MOST_TASK_BYTES)
        tasks = task_tables(pieces, max(size // self.image_bytes, 1))
        while some := list(itertools.islice(tasks, TASKS)):
            self._set_context(size)
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
            dataset = ray.data.from_blocks(some).map_batches(  # from_arrow waits for a CPU, and none may be free
                PieceReader,
                fn_constructor_args=self.reader,
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=self.readers.count),
                num_cpus=self.readers.cpus,
                ray_remote_args_fn=partial(dict, scheduling_strategy=here),
            )
            yield from dataset.iter_batches(batch_size=None, prefetch_batches=1)

    def _set_context(self, task_bytes: int) -> None:
        """Set Ray Data's options in this process: keep the order, and use only a share of the cluster."""
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        context = quiet_data_context()
        context.target_max_block_size = BLOCK_BYTES
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources(
            cpu=self.readers.count * self.readers.cpus,
            object_store_memory=4 * (self.readers.count + 1) * task_bytes,
        )


def quiet_data_context() -> DataContext:
    """Ray Data's settings in this process, with progress bars turned off."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    return context


def task_tables(pieces: Iterable[Piece], rows: int) -> Iterator[pa.Table]:
    """A table for each task: consecutive pieces with `rows` images or more in all."""
    held: list[dict[str, int]] = []
    images = 0
    for piece in pieces:
        held.append(piece._asdict())
        images += piece.stop - piece.start
        if images >= rows:
            yield pa.Table.from_pylist(held)
            held, images = [], 0
    if held:
        yield pa.Table.from_pylist(held)


class ImageStream:
    """Images in a known order, fetched ahead by a thread.

    Parameters
    ----------
    blocks : iterator of {"image": uint8 (n, S, S, 3), "index": int64 (n,)}
    room : int
        Most images to fetch ahead; one block is fetched in any case.
    """

    def __init__(self, blocks: Iterator[Block], room: int) -> None:
        self.blocks, self.room = blocks, room
        self.fetched: deque[tuple[Tensor, Tensor] | BaseException] = deque()
        self.waiting = 0
        self.changed = threading.Condition()
        threading.Thread(target=self._fetch, name="image-stream", daemon=True).start()

    def read(self, index: Tensor) -> Tensor:
        """Images (n, S, S, 3) of the index (n,), which must be the next ones in the stream.

        Raises
        ------
        DataError, DecodeError
            When a shard or an image cannot be read.
        """
        parts: list[tuple[Tensor, Tensor]] = []
        missing = len(index)
        while missing:
            parts.append(self._next(missing))
            missing -= len(parts[-1][1])
        images, found = (torch.cat(columns) for columns in zip(*parts, strict=True))
        if not found.equal(index):
            raise RuntimeError(
                f"read images {found[:3].tolist()}... but expected {index[:3].tolist()}...; please report this as a bug"
            )
        return images

    def _next(self, most: int) -> tuple[Tensor, Tensor]:
        """The next images and their index, at most `most` of them."""
        with self.changed:
            self.changed.wait_for(lambda: bool(self.fetched))
            first = self.fetched.popleft()
            if isinstance(first, BaseException):
                self.fetched.append(first)
                raise first
            images, index = first
            if len(index) > most:
                self.fetched.appendleft((images[most:], index[most:]))
            self.waiting -= len(index[:most])
            self.changed.notify_all()
        return images[:most], index[:most]

    def _fetch(self) -> None:
        try:
            for block in self.blocks:
                self._keep(*(torch.from_numpy(block[name].copy()) for name in ("image", "index")))
            end: BaseException = EOFError("more images were read than the run's schedule has")
        except BaseException as error:
            end = user_error_in(error) or error
        with self.changed:
            self.fetched.append(end)
            self.changed.notify_all()

    def _keep(self, images: Tensor, index: Tensor) -> None:
        """Wait for room, then keep a block in this process's memory, because all processes share Ray's object store."""
        with self.changed:
            self.changed.wait_for(lambda: not self.waiting or self.waiting + len(index) <= self.room)
            self.fetched.append((images, index))
            self.waiting += len(index)
            self.changed.notify_all()


class ImagePool:
    """Images of the open windows; each is kept until it has been taken as often as it was drawn."""

    def __init__(self, own: RowRange, side: int) -> None:
        self.own = own
        self.images = torch.empty((0, side, side, 3), dtype=torch.uint8)
        self.place = torch.full((own.stop - own.start,), -1, dtype=torch.int32)  # of each image; -1: not here
        self.left = torch.zeros(0, dtype=torch.int32)  # remaining draws of each place
        self.free = torch.zeros(0, dtype=torch.int64)

    def clear(self) -> None:
        """Drop all images."""
        self.place.fill_(-1)
        self.left.zero_()
        self.free = torch.arange(len(self.images))

    def put(self, images: Tensor, index: Tensor, draws: Tensor) -> None:
        """Keep images (n, S, S, 3) with their index (n,), each for its number of draws (n,)."""
        wanted = draws > 0
        images, index, draws = images[wanted], index[wanted], draws[wanted]
        self._grow(len(index) - len(self.free))
        places, self.free = self.free[: len(index)], self.free[len(index) :]
        self.images[places], self.left[places] = images, draws.int()
        self.place[index - self.own.start] = places.int()

    def take(self, index: Tensor) -> Tensor:
        """Images of the index (n,); this uses up one draw of each."""
        places = self.place[index - self.own.start].long()
        images = self.images[places]
        self.left.index_add_(0, places, torch.full_like(places, -1, dtype=torch.int32))
        places = places.unique()
        self.free = torch.cat([self.free, places[self.left[places] == 0]])
        return images

    def _grow(self, missing: int) -> None:
        """Make room for `missing` more images, and an eighth on top, since each growth copies all."""
        if missing <= 0:
            return
        count = len(self.images)
        more = missing + count // 8
        self.images = torch.cat([self.images, self.images.new_empty((more, *self.images.shape[1:]))])
        self.left = torch.cat([self.left, self.left.new_zeros(more)])
        self.free = torch.cat([self.free, torch.arange(count, count + more)])


class StreamedImages:
    """The images of a share as a pipeline delivers them, in the order of the run's schedule.

    Parameters
    ----------
    begin_stream : callable
        Takes the (epoch, step) where the run begins, None at its first E-step; returns the stream for all that follows.
    own : RowRange
    side : int
        Of a decoded image, in pixels.
    device : torch.device
        The training device.
    block_size : int
        Images that `blocks` yields at a time.
    """

    def __init__(
        self,
        begin_stream: Callable[[tuple[int, int] | None], ImageStream],
        own: RowRange,
        side: int,
        device: torch.device,
        block_size: int,
    ) -> None:
        self.begin_stream, self.own, self.device, self.block_size = begin_stream, own, device, block_size
        self.pool = ImagePool(own, side)
        self.stream: ImageStream | None = None

    def begin(self, epoch: int, step: int) -> None:
        """Start the stream if the run begins here, and empty the pool."""
        self.stream = self.stream or self.begin_stream((epoch, step))
        self.pool.clear()

    def open(self, images: Tensor, drawn: Tensor) -> None:
        """Read images (m,), and keep those in `drawn` (n,)."""
        assert self.stream is not None
        draws = torch.bincount(torch.searchsorted(images, drawn), minlength=len(images))
        for index, often in zip(images.split(SWEPT_ROWS), draws.split(SWEPT_ROWS), strict=True):
            self.pool.put(self.stream.read(index), index, often)

    def take(self, keys: Tensor, epoch: int) -> Tensor:
        """Images (n, S, S, 3) of the keys (n,)."""
        return to_device(self.pool.take(keys % self.own.total), self.device)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The share in pieces, as they come."""
        self.stream = self.stream or self.begin_stream(None)
        for index in torch.arange(*self.own[:2]).split(self.block_size):
            yield to_device(self.stream.read(index), self.device), to_device(index, self.device)
