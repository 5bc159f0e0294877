"""What a worker trains on: batches of inputs with their index, from memory or from a stream.

An input is a decoded uint8 image or, with a frozen backbone, cached features (`pipeline.features`).

Resident (here): each worker holds the whole decoded set as one uint8 tensor on its device. The order of an epoch is a
permutation keyed by (seed, epoch), of which a worker takes its slice of each global batch: the same order for every
number of workers, and a resume is an index. Streaming is in `pipeline.data.streaming`.
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


class Inputs(Protocol):
    """What the training loop asks of either mode."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; as many on every worker."""

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

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Slices of permutation(seed, epoch): the same global batches for every number of workers."""
        order = epoch_order(len(self.images), self.seed, epoch).to(self.images.device)
        for index, rows in own_slices(order, self.batch_size, first_step):
            yield Batch(self.images[index], index, rows)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This worker's contiguous part of the set."""
        own = row_range(len(self.images))
        for start in range(own.start, own.stop, self.block_size):
            index = torch.arange(start, min(start + self.block_size, own.stop), device=self.images.device)
            yield self.images[start : start + len(index)], index


def epoch_order(total: int, seed: int, epoch: int) -> Tensor:
    """The order (total,) of the images in an epoch, the same on every worker."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(epoch_seed(seed, epoch)))


def own_slices(order: Tensor, batch_size: int, first_step: int) -> Iterator[tuple[Tensor, RowRange]]:
    """This worker's part of each whole batch of an order from `first_step` on, and its rows in the batch."""
    rows = row_range(batch_size)
    for step in range(first_step, len(order) // batch_size):
        start = step * batch_size
        yield order[start + rows.start : start + rows.stop], rows


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of an epoch's order in either mode."""
    return seed * 1_000_003 + epoch
