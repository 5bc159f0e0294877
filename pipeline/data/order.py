"""The order of the images in every epoch: a pure function, the same for any number of workers.

The images are divided into *lanes*, contiguous ranges of rows. Every batch takes the same number of rows from each
lane, or one more, so a lane is used up at the pace of the epoch, and a worker reads only the rows of its own lanes. A
lane is read in *windows* of whole row groups: the order of the row groups in a lane, and of the rows in a window, is
drawn anew each epoch with keyed random numbers (`pipeline.keyed_random`). The rows of a step follow from its number, so
a resume needs nothing else. The lanes are the "canonical nodes" of MosaicML's StreamingDataset.

Rows are shuffled at ingest, so a lane is a fair sample of the data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.collectives import RowRange
from pipeline.keyed_random import Stream, uniform

GOLDEN = 0.6180339887498949  # the fractional parts of its multiples are spread evenly over 0 to 1
Segments = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Window:
    """Rows of a lane that are shuffled together: those of `segments`, at positions from `first` on in the lane's order.

    Segments are ranges [start, stop) of images, each within a row group.
    """

    first: int
    segments: Segments

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.segments)

    @property
    def images(self) -> Tensor:
        """Their index (n,) int64, ascending."""
        return torch.cat([torch.arange(*segment) for segment in sorted(self.segments)])


@dataclass(frozen=True)
class Order:
    """The images of each step of each epoch.

    Attributes
    ----------
    num_images, batch_size, seed : int
    window : int
        Images that are shuffled together, over all lanes.
    row_groups : tuple of int
        Rows of each row group, over all shards.
    """

    num_images: int
    batch_size: int
    seed: int
    window: int
    row_groups: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Whole batches of an epoch; the images that are left over differ from epoch to epoch."""
        return self.num_images // self.batch_size

    @property
    def covers(self) -> bool:
        """Whether all images are shuffled together, wherever their row groups end."""
        return self.window >= self.num_images

    @cached_property
    def lanes(self) -> int:
        """Number of lanes: each has at least two rows of each batch, and a row group in each window.

        It is also the largest number of workers.
        """
        most = max(self.batch_size // 2, 1)
        return most if self.covers else min(most, usual_number(max(self.window // max(self.row_groups), 1)))

    def batch_rows(self, lanes: RowRange) -> RowRange:
        """The rows of each batch that come from a range of lanes."""
        start, stop = (self.batch_size * lane // self.lanes for lane in lanes[:2])
        return RowRange(start, stop, self.batch_size)

    def lane_rows(self, lane: int) -> int:
        """Rows of each batch that come from a lane."""
        rows = self.batch_rows(_one(lane))
        return rows.stop - rows.start

    def images_of(self, lanes: RowRange) -> RowRange:
        """The images of a range of lanes; enough for every step, because they are in proportion to the rows."""
        rows = self.batch_rows(lanes)
        start, stop = (self.num_images * row // self.batch_size for row in rows[:2])
        return RowRange(start, stop, self.num_images)

    def windows(self, epoch: int, lane: int) -> tuple[Window, ...]:
        """The windows of a lane in an epoch, in their order; together they hold each of its images once."""
        start, stop, _ = self.images_of(_one(lane))
        if self.covers:
            return (Window(0, ((start, stop),)),)
        return _cut(self._segments(epoch, start, stop), self.window * self.lane_rows(lane) / self.batch_size, lane)

    def _segments(self, epoch: int, start: int, stop: int) -> list[tuple[int, int]]:
        """The images start..stop-1, cut where row groups end, in the epoch's order."""
        inner = self.row_group_starts[(self.row_group_starts > start) & (self.row_group_starts < stop)]
        edges = torch.cat([torch.tensor([start]), inner, torch.tensor([stop])])
        order = self._permutation(epoch, edges[:-1], Stream.ROW_GROUP_ORDER)
        return list(zip(edges[:-1][order].tolist(), edges[1:][order].tolist(), strict=True))

    @cached_property
    def row_group_starts(self) -> Tensor:
        """The first image (G,) of each row group."""
        sizes = torch.tensor(self.row_groups)
        return sizes.cumsum(0) - sizes

    def _permutation(self, epoch: int, keys: Tensor, stream: Stream) -> Tensor:
        """Places (n,) of the keys (n,) in the epoch's order."""
        return uniform(self.seed, epoch, keys, stream, 1)[:, 0].argsort(stable=True)

    def taken(self, epoch: int, lane: int, first_step: int = 0) -> Iterator[tuple[int, Window, int, int]]:
        """What the steps from `first_step` on take from a lane: each window's number, the window, and positions in it.

        These are the window's images `draw(...)[start:stop]`; windows from which nothing is taken are left out.
        """
        rows = self.lane_rows(lane)
        begin, end = first_step * rows, self.steps * rows
        for number, window in enumerate(self.windows(epoch, lane)):
            start, stop = max(begin - window.first, 0), min(end - window.first, len(window))
            if start < stop:
                yield number, window, start, stop

    def draw(self, epoch: int, window: Window, weights: Tensor | None = None) -> Tensor:
        """Keys (n,) of a window's images in the order in which batches take them.

        By default each image comes once, and its key is its index. With `weights` (n,) of the window's images,
        ascending, images are drawn with replacement: key = image + num_images * how often it has come before. The draws
        are systematic: an image is drawn in proportion to its share of the window's weights, rounded up or down.
        """
        images = window.images
        order = self._permutation(epoch, images, Stream.ROW_ORDER)
        if weights is None:
            return images[order]
        bounds = weights[order].cumsum(0)
        offset = uniform(self.seed, epoch, images[:1], Stream.DRAWS, 1).to(bounds)[0]
        points = (torch.arange(len(images)).to(bounds) + offset) * (bounds[-1] / len(images))
        drawn = torch.searchsorted(bounds, points, right=True).clamp_(max=len(images) - 1)
        keys = number_copies(images[order[drawn]], self.num_images)
        return keys[self._permutation(epoch, keys, Stream.DRAWS)]


def _one(lane: int) -> RowRange:
    return RowRange(lane, lane + 1, 0)


def _cut(segments: list[tuple[int, int]], size: float, lane: int) -> tuple[Window, ...]:
    """Segments as windows of about `size` rows.

    The first window is shorter, differently in each lane: if all lanes reached a new window at the same step, all
    workers would read at once and wait. The rest of the segment that this cuts comes last in the lane.
    """
    total = sum(stop - start for start, stop in segments)
    if total <= size:
        return (Window(0, tuple(segments)),)
    head, rest = _split(segments, int(size * (lane * GOLDEN % 1)))
    left = total - sum(stop - start for start, stop in head)
    count = max(round(left / size), 1)
    parts: list[list[tuple[int, int]]] = [head] + [[] for _ in range(count)]
    done = 0
    for start, stop in rest:
        middle = done + (stop - start) / 2
        parts[1 + int(middle * count / left)].append((start, stop))
        done += stop - start
    return tuple(_numbered(part for part in parts if part))


def _split(segments: list[tuple[int, int]], rows: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The first `rows` rows, and the others: the rest of the segment that is cut comes last."""
    head: list[tuple[int, int]] = []
    for number, (start, stop) in enumerate(segments):
        if rows < stop - start:
            cut = [(start, start + rows)] if rows else []
            return head + cut, [*segments[number + 1 :], (start + rows, stop)]
        head.append((start, stop))
        rows -= stop - start
    return head, []


def _numbered(parts: Iterator[list[tuple[int, int]]]) -> Iterator[Window]:
    """Windows, each with the position of its first row."""
    first = 0
    for part in parts:
        window = Window(first, tuple(part))
        yield window
        first += len(window)


def usual_number(most: int) -> int:
    """The largest number up to `most` that is a power of two or three times one, as worker counts usually are."""
    power = 1 << (most.bit_length() - 1)
    return power + power // 2 if power > 1 and most >= power + power // 2 else power


def number_copies(images: Tensor, total: int) -> Tensor:
    """Keys (n,) of images (n,), which may repeat: image + total * how often it has come before.

    So each repetition has views and noise of its own, and the first occurrence has those that the image always has.
    """
    found, places = images.sort(stable=True)
    before = torch.arange(len(images)) - torch.searchsorted(found, found)
    keys = torch.empty_like(images)
    keys[places] = found + total * before
    return keys
