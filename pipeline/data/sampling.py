"""Sampling by pseudo-label, so that small clusters are seen: how often an image is drawn, and a stream in which it is.

The weight of an image in a pseudo-cluster of n images is n^-balance, as in long-tailed recognition (Mahajan et al.,
ECCV 2018). Resident inputs are drawn by `pipeline.data.loader.epoch_order`. A stream cannot be drawn from: each of its
rows is kept as often as a random number of its image says (`balanced_batches`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.loader import epoch_seed
from pipeline.keyed_random import Stream, uniform

MOST_DRAWS = 20  # of an image in an epoch, on average: a cluster of one outlier must not fill a tenth of each batch
PIECE = 256  # rows that leave the buffer at a time when the stream has ended


def sampling_weights(labels: Tensor, balance: float) -> Tensor:
    """How often each image is drawn in an epoch, on average.

    Parameters
    ----------
    labels : Tensor (N,) int64
        Pseudo-labels. Clusters without images have no part in it.
    balance : float
        0 draws each image once, 1 each cluster equally often.

    Returns
    -------
    Tensor (N,) float64
        On the CPU, with a sum of N, at most MOST_DRAWS each.
    """
    labels = labels.cpu()
    sizes = torch.bincount(labels).double()
    return _limited(sizes.clamp(min=1) ** -balance, sizes)[labels]


def _limited(relative: Tensor, sizes: Tensor) -> Tensor:
    """Weights (K,) in proportion to `relative`, but for those at the limit; the images' sum is their number."""
    limited = torch.zeros(len(sizes), dtype=torch.bool)
    while True:
        left = sizes.sum() - MOST_DRAWS * sizes[limited].sum()
        weights = relative * (left / (sizes * relative)[~limited].sum())
        over = ~limited & (weights > MOST_DRAWS)
        if not over.any():
            return weights.masked_fill(limited, MOST_DRAWS)
        limited |= over


class Rows(NamedTuple):
    """Inputs (n, ...) and the keys (n,) int64 of their random numbers: image + N * copy."""

    inputs: Tensor
    keys: Tensor


def balanced_batches(
    stream: Iterable[tuple[Tensor, Tensor]],
    weights: Tensor,
    *,
    seed: int,
    epoch: int,
    size: int,
    steps: int,
    buffer: int,
) -> Iterator[Rows]:
    """Exactly `steps` batches of a worker's stream, which is read to its end.

    What the stream has too much is left out. What it lacks is drawn once more from the buffer.

    Parameters
    ----------
    stream : iterable of (inputs (n, ...), index (n,))
        On the CPU.
    weights : Tensor (N,) float64
        Of `sampling_weights`.
    seed, epoch : int
        They decide the copies, together with the image, and the order, together with that of the stream.
    size, steps : int
        Rows of a batch, and batches.
    buffer : int
        Rows that are held back to be shuffled, so that copies of an image do not stay together.
    """
    blocks = iter(stream)
    shuffle = _ShuffleBuffer(max(buffer, size), torch.Generator().manual_seed(epoch_seed(seed, epoch)))
    rows = _shuffled(_copied(blocks, weights, seed, epoch), shuffle, len(weights))
    yield from islice(_in_batches(rows, size), steps)
    for _ in blocks:
        pass


def _copied(blocks: Iterable[tuple[Tensor, Tensor]], weights: Tensor, seed: int, epoch: int) -> Iterator[Rows]:
    """Each row as often as its image's random number says: its weight, rounded up or down.

    Where no row at all is kept, those of the last block are, so that there is something to go on with.
    """
    kept, rows = 0, None
    for inputs, index in blocks:
        copies = (weights[index] + uniform(seed, epoch, index, Stream.COPIES, 1)[:, 0]).long()
        source = torch.arange(len(index)).repeat_interleave(copies)
        copy = torch.arange(len(source)) - (copies.cumsum(0) - copies)[source]
        rows, kept = Rows(inputs, index), kept + len(source)
        yield Rows(inputs[source], index[source] + len(weights) * copy)
    if rows is None:
        raise RuntimeError(
            f"no image of epoch {epoch + 1} has reached a worker; lower resources.workers or set data.mode=resident"
        )
    if not kept:
        yield rows


def _shuffled(rows: Iterable[Rows], buffer: _ShuffleBuffer, total: int) -> Iterator[Rows]:
    """The rows in random order; after the last one what is still in the buffer, over and over, as new copies."""
    for part in rows:
        for start in range(0, len(part.keys), buffer.capacity):
            yield buffer.exchange(Rows(*(column[start : start + buffer.capacity] for column in part)))
    for turn in count():
        for inputs, keys in buffer.all():
            yield Rows(inputs, keys + turn * (MOST_DRAWS + 1) * total)


class _ShuffleBuffer:
    """Holds rows back, and gives random ones for those that come in once it is full."""

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        self.capacity, self.generator, self.filled = capacity, generator, 0
        self.rows: Rows | None = None

    def exchange(self, rows: Rows) -> Rows:
        """Put in at most `capacity` rows; as many come out as there is no room for."""
        if self.rows is None:
            self.rows = Rows(*(column.new_empty((self.capacity, *column.shape[1:])) for column in rows))
        fit = min(self.capacity - self.filled, len(rows.keys))
        self._put(torch.arange(self.filled, self.filled + fit), Rows(*(column[:fit] for column in rows)))
        self.filled += fit
        places = self._order()[: len(rows.keys) - fit]
        out = self._get(places)
        self._put(places, Rows(*(column[fit:] for column in rows)))
        return out

    def all(self) -> Iterator[Rows]:
        """All rows in random order, some at a time."""
        for places in self._order().split(PIECE):
            yield self._get(places)

    def _order(self) -> Tensor:
        return torch.randperm(self.filled, generator=self.generator)

    def _get(self, places: Tensor) -> Rows:
        assert self.rows is not None
        return Rows(*(column[places] for column in self.rows))

    def _put(self, places: Tensor, rows: Rows) -> None:
        assert self.rows is not None
        for column, values in zip(self.rows, rows, strict=True):
            column[places] = values


def _in_batches(parts: Iterable[Rows], size: int) -> Iterator[Rows]:
    """The rows, exactly `size` at a time."""
    waiting: list[Rows] = []
    for part in parts:
        waiting.append(part)
        if sum(len(rows.keys) for rows in waiting) >= size:
            inputs, keys = (torch.cat(column) for column in zip(*waiting, strict=True))
            whole = len(keys) // size * size
            for start in range(0, whole, size):
                yield Rows(inputs[start : start + size], keys[start : start + size])
            waiting = [Rows(inputs[whole:], keys[whole:])]
