"""What a worker trains on: batches of inputs with their index, from memory or from a stream.

An input is a decoded uint8 image or, with a frozen backbone, cached features (`pipeline.features`).

Resident (here): each worker holds the whole decoded set as one uint8 tensor on its device. The order of an epoch is a
permutation keyed by (seed, epoch), or draws by weights. A worker takes its slice of each global batch: the same order
for every number of workers, and a resume is an index. Streaming is in `pipeline.data.streaming`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.collectives import RowRange, row_range


@dataclass(frozen=True)
class Batch:
    """This worker's `rows` of one global batch, and their index int64 (B_local,).

    Inputs are uint8 images (B_local, H, W, 3), or pairs of cached features (B_local, 2, F).
    """

    inputs: Tensor
    index: Tensor
    rows: RowRange
    copy_keys: Tensor | None = None
    """By which the images' random numbers are drawn, where some come more than once in an epoch (`epoch_keys`)."""

    @property
    def keys(self) -> Tensor:
        """Of the random numbers (B_local,)."""
        return self.index if self.copy_keys is None else self.copy_keys


class Inputs(Protocol):
    """What the training loop asks of either mode."""

    @property
    def rows(self) -> RowRange:
        """The images that this worker owns: it encodes them, and keeps their pseudo-labels and classes."""

    def epoch(self, epoch: int, first_step: int = 0, weights: Tensor | None = None) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; as many on every worker, with weights or without.

        `weights` (N,) say how often each image is drawn (`pipeline.data.sampling`); None takes each image once.
        """

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Un-augmented inputs (n, ...) and index (n,) of this worker's part; each image is on one worker only."""


class ResidentImages:
    """Batches from the whole decoded set, held in memory.

    Parameters
    ----------
    images : Tensor (N, H, W, 3) uint8
        On the device that trains.
    seed : int
        Of the run; with the epoch it decides the order.
    batch_size : int
        Of a global batch.
    block_size : int
        Images that `blocks` yields at a time.
    """

    def __init__(self, images: Tensor, *, seed: int, batch_size: int, block_size: int) -> None:
        self.images, self.seed, self.batch_size, self.block_size = images, seed, batch_size, block_size

    @property
    def rows(self) -> RowRange:
        """The images that this worker owns."""
        return row_range(len(self.images))

    def epoch(self, epoch: int, first_step: int = 0, weights: Tensor | None = None) -> Iterator[Batch]:
        """Slices of the epoch's order: the same global batches for every number of workers."""
        order = epoch_keys(len(self.images), self.seed, epoch, weights).to(self.images.device)
        for keys, rows in own_slices(order, self.batch_size, first_step):
            index = keys % len(self.images)
            yield Batch(self.images[index], index, rows, keys)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's contiguous part of the set."""
        own = row_range(len(self.images))
        for start in range(own.start, own.stop, self.block_size):
            index = torch.arange(start, min(start + self.block_size, own.stop), device=self.images.device)
            yield self.images[start : start + len(index)], index


def epoch_order(total: int, seed: int, epoch: int, weights: Tensor | None = None) -> Tensor:
    """The images (total,) of an epoch in their order, the same on every worker.

    A permutation; or with `weights` (total,) draws with replacement. They are systematic: an image is drawn as often
    as its share of the weights says, rounded up or down, and none is missed by chance as in independent draws.
    """
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    order = torch.randperm(total, generator=generator)
    if weights is None:
        return order
    bounds = weights[order].cumsum(0)
    points = torch.arange(total, dtype=bounds.dtype) + torch.rand((), generator=generator, dtype=bounds.dtype)
    drawn = torch.searchsorted(bounds, points * (bounds[-1] / total), right=True).clamp_(max=total - 1)
    return order[drawn][torch.randperm(total, generator=generator)]


def epoch_keys(total: int, seed: int, epoch: int, weights: Tensor | None = None) -> Tensor:
    """Keys (total,) of the images of an epoch in their order; the image of a key is key % total."""
    order = epoch_order(total, seed, epoch, weights)
    return order if weights is None else repeat_keys(order, total)


def repeat_keys(order: Tensor, total: int) -> Tensor:
    """Keys (n,) of the random numbers of an order: image + total * how often it has come before.

    So a repeated image has views and noise of its own each time, and one that comes once has those that it always has.
    """
    images, places = order.sort(stable=True)
    before = torch.arange(len(order)) - torch.searchsorted(images, images)
    keys = torch.empty_like(order)
    keys[places] = images + total * before
    return keys


def own_slices(order: Tensor, batch_size: int, first_step: int) -> Iterator[tuple[Tensor, RowRange]]:
    """This worker's part of each whole batch of an order from `first_step` on, and its rows in the batch."""
    rows = row_range(batch_size)
    for step in range(first_step, len(order) // batch_size):
        start = step * batch_size
        yield order[start + rows.start : start + rows.stop], rows


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of an epoch's order in either mode."""
    return seed * 1_000_003 + epoch
