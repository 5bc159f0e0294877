"""The images of a share, read and decoded by Ray Data in the order in which the worker needs them.

Each worker reads from the point where its run begins to the end of the schedule. Windows of epochs and sweeps of
E-steps follow each other, so reading continues while the worker computes, and no process is started in between, except
after `TASKS` tasks. Resident images are loaded in the same way.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources
from torch import Tensor
from torch.nn import functional as F

from pipeline.collectives import RowRange
from pipeline.data.loader import to_device
from pipeline.data.reader import BLOCK_BYTES, MOST_TASK_BYTES, Piece, PieceReader, block_rows
from pipeline.errors import user_error_in
from pipeline.ray_private import PauseWhileUnwanted, on_node_with_room

Block = dict[str, np.ndarray[Any, Any]]
TASKS = 2000  # of a pipeline: all are made before it begins, at half a millisecond each
FEW_BYTES = 24 << 20  # decoded bytes; they take about a second, less than other processes take to start


@dataclass(frozen=True)
class Readers:
    """The processes that read for one worker.

    Attributes
    ----------
    nodes : tuple of str
        The id of the node on which each starts if there is room.
    cpus : float
        CPUs that each reserves.
    """

    nodes: tuple[str, ...]
    cpus: float

    @classmethod
    def of(cls, cpus: float, node: str) -> Readers:
        """One reader per whole CPU, or one with what is left: it starts even if workers have taken all CPUs."""
        count = max(int(cpus), 1)
        return cls((node,) * count, max(int(cpus / count * 100) / 100, 0.0))

    @property
    def placement(self) -> Callable[[], dict[str, Any]]:
        """A function that returns the options of the next reader to be started."""
        nodes = itertools.cycle(self.nodes)
        return lambda: on_node_with_room(next(nodes))


class ReadPipeline:
    """Reads pieces with processes of Ray Data.

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
            self._set_context(max(map(count_images, some)) * self.image_bytes)
            dataset = ray.data.from_blocks(some).map_batches(  # from_arrow waits for a CPU, and none may be free
                PieceReader,
                fn_constructor_args=self.reader,
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=len(self.readers.nodes)),
                num_cpus=self.readers.cpus,
                ray_remote_args_fn=self.readers.placement,
            )
            yield from _wanted(dataset.iter_batches(batch_size=None, prefetch_batches=1))

    def _set_context(self, task_bytes: int) -> None:
        """Set Ray Data's options in this process: keep the order, and use only a share of the cluster."""
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        context = quiet_data_context()
        # Ray Data cuts and joins blocks, which copies them, unless each is a little larger than it asks for.
        context.target_max_block_size = block_rows(self.image_bytes) * self.image_bytes
        context.memory_usage_poll_interval_s = None  # it would read each process's memory map every second
        context.custom_execution_callback_classes = [PauseWhileUnwanted]
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources(
            cpu=len(self.readers.nodes) * self.readers.cpus,
            object_store_memory=4 * (len(self.readers.nodes) + 1) * task_bytes,
        )


def _wanted(blocks: Iterable[Block]) -> Iterator[Block]:
    """The blocks; Ray Data rests while none is waited for."""
    wanted = PauseWhileUnwanted.wanted
    wanted.set()
    try:
        for block in blocks:
            wanted.clear()
            yield block
            wanted.set()
    finally:
        wanted.set()


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


def count_images(task: pa.Table) -> int:
    """The number of images of a task."""
    return int(pc.sum(pc.subtract(task["stop"], task["start"])).as_py())


class ImageMemory:
    """Memory for decoded images, in places that are used again, because the kernel clears fresh memory.

    One thread stores, and another one copies out and frees.
    """

    def __init__(self) -> None:
        self.images = torch.empty((0, 1, 1, 3), dtype=torch.uint8)  # (places, S, S, 3), with the first images' S
        self.free = torch.zeros(0, dtype=torch.int64)
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def store(self, images: np.ndarray[Any, Any]) -> Tensor:
        """Copy images (n, S, S, 3) to free places (n,)."""
        if len(images) > len(self.free):
            self._grow(len(images), images.shape[1:])
        with self.lock:
            places, self.free = self.free[: len(images)], self.free[len(images) :]
        self.images.numpy()[places.numpy()] = images  # torch assigns byte by byte, which takes 30 times as long
        return places

    def copy(self, places: Tensor) -> Tensor:
        """The images (n, S, S, 3) in places (n,)."""
        return self.images.index_select(0, places)  # `images[places]` takes 40 times as long

    def release(self, places: Tensor) -> None:
        """Let places (n,) be used again."""
        with self.lock:
            self.free = torch.cat([places, self.free])  # those used last come first, because caches have them

    def _grow(self, missing: int, shape: tuple[int, ...]) -> None:
        """Make room for `missing` more images, and a quarter on top, since each growth copies all."""
        held = len(self.images)
        more = missing + held // 4
        grown = torch.empty((held + more, *shape), dtype=torch.uint8)
        grown[:held] = self.images
        self.images = grown
        with self.lock:
            self.free = torch.cat([self.free, torch.arange(held, held + more)])


class ImageStream:
    """Images in a known order, fetched ahead by a thread.

    Parameters
    ----------
    blocks : iterator of {"image": uint8 (n, S, S, 3), "index": int64 (n,)}
    room : int
        Most images to fetch ahead; one block is fetched in any case.

    Attributes
    ----------
    memory : ImageMemory
        Of the images that were fetched. It is this process's own, because all processes share Ray's object store.
    """

    def __init__(self, blocks: Iterator[Block], room: int) -> None:
        self.blocks, self.room, self.memory = blocks, room, ImageMemory()
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
        places = self.places_of(index)
        images = self.memory.copy(places)
        self.memory.release(places)
        return images

    def places_of(self, index: Tensor) -> Tensor:
        """Like `read`, but returns the places (n,) in `memory` of the images, which the caller releases."""
        parts: list[tuple[Tensor, Tensor]] = []
        missing = len(index)
        while missing:
            parts.append(self._next(missing))
            missing -= len(parts[-1][1])
        places, found = (torch.cat(columns) for columns in zip(*parts, strict=True))
        if not found.equal(index):
            raise RuntimeError(
                f"read images {found[:3].tolist()}... but expected {index[:3].tolist()}...; please report this as a bug"
            )
        return places

    def _next(self, most: int) -> tuple[Tensor, Tensor]:
        """Places and index of the next images, at most `most` of them."""
        with self.changed:
            self.changed.wait_for(lambda: bool(self.fetched))
            first = self.fetched.popleft()
            if isinstance(first, BaseException):
                self.fetched.append(first)
                raise first
            places, index = first
            if len(index) > most:
                self.fetched.appendleft((places[most:], index[most:]))
            self.waiting -= len(index[:most])
            self.changed.notify_all()
        return places[:most], index[:most]

    def _fetch(self) -> None:
        try:
            for block in self.blocks:
                self._wait_for_room(len(block["index"]))
                self._hand_over(self.memory.store(block["image"]), torch.from_numpy(block["index"].copy()))
            end: BaseException = EOFError("more images were read than the run's schedule has")
        except BaseException as error:
            end = user_error_in(error) or error
        with self.changed:
            self.fetched.append(end)
            self.changed.notify_all()

    def _wait_for_room(self, images: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.waiting or self.waiting + images <= self.room)

    def _hand_over(self, places: Tensor, index: Tensor) -> None:
        with self.changed:
            self.fetched.append((places, index))
            self.waiting += len(index)
            self.changed.notify_all()


class OpenImages:
    """The images of the open windows, in the memory of a stream; each stays until it was taken as often as drawn."""

    def __init__(self, memory: ImageMemory, own: RowRange) -> None:
        self.memory, self.own = memory, own
        self.place = torch.full((own.size,), -1, dtype=torch.int32)  # of each own image, once it was opened
        self.left = torch.zeros(0, dtype=torch.int32)  # remaining draws of each place

    def add(self, places: Tensor, index: Tensor, draws: Tensor) -> None:
        """Keep the images of the index (n,), at their places (n,), each for its number of draws (n,)."""
        self.left = F.pad(self.left, (0, max(len(self.memory) - len(self.left), 0)))
        self.place[index - self.own.start], self.left[places] = places.int(), draws.int()
        if not draws.all():
            self.memory.release(places[draws == 0])

    def take(self, index: Tensor) -> Tensor:
        """Images of the index (n,); this uses up one draw of each."""
        places = self.place[index - self.own.start].long()
        images = self.memory.copy(places)
        self.left.index_add_(0, places, torch.full_like(places, -1, dtype=torch.int32))
        places = places.unique()
        self.memory.release(places[self.left[places] == 0])
        return images

    def close(self) -> None:
        """Drop the images that were not taken."""
        self.memory.release(self.left.nonzero().squeeze(1))
        self.left.zero_()


class StreamedImages:
    """The images of a share as a pipeline delivers them, in the order of the run's schedule.

    Parameters
    ----------
    begin_stream : callable
        Takes the (epoch, step) where the run begins, None at its first E-step; returns the stream for all that follows.
    own : RowRange
    device : torch.device
        The training device.
    block_size : int
        Images that `blocks` yields at a time.
    """

    def __init__(
        self,
        begin_stream: Callable[[tuple[int, int] | None], ImageStream],
        own: RowRange,
        device: torch.device,
        block_size: int,
    ) -> None:
        self.begin_stream, self.own, self.device, self.block_size = begin_stream, own, device, block_size
        self.stream: ImageStream | None = None
        self.opened: OpenImages | None = None

    def begin(self, epoch: int, step: int) -> None:
        """Start the stream if the run begins here, and drop what is open."""
        self.stream = self.stream or self.begin_stream((epoch, step))
        self.opened = self.opened or OpenImages(self.stream.memory, self.own)
        self.opened.close()

    def open(self, images: Tensor, drawn: Tensor) -> None:
        """Read images (m,), and keep those in `drawn` (n,)."""
        assert self.stream is not None
        assert self.opened is not None
        draws = torch.bincount(torch.searchsorted(images, drawn), minlength=len(images))
        self.opened.add(self.stream.places_of(images), images, draws)

    def take(self, keys: Tensor, epoch: int) -> Tensor:
        """Images (n, S, S, 3) of the keys (n,)."""
        assert self.opened is not None
        return to_device(self.opened.take(keys % self.own.total), self.device)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The share in pieces, as they come."""
        self.stream = self.stream or self.begin_stream(None)
        for index in torch.arange(*self.own[:2]).split(self.block_size):
            yield to_device(self.stream.read(index), self.device), to_device(index, self.device)
