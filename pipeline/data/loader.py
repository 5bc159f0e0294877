"""What a worker trains on: batches of inputs with their index, from its own share of the data set.

An input is a decoded uint8 image or, with a frozen backbone, its cached features (`pipeline.backbone_features`).
`pipeline.data.order` decides which inputs a batch has. An `InputSource` supplies them: it holds the share in memory
(resident, here) or reads it as needed (`pipeline.data.streaming`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.collectives import RowRange, row_range
from pipeline.data.order import Order


@dataclass(frozen=True)
class Batch:
    """This worker's `rows` of one global batch, and their index int64 (B_local,).

    Inputs are uint8 images (B_local, H, W, 3), or pairs of cached features (B_local, 2, F).
    """

    inputs: Tensor
    index: Tensor
    rows: RowRange
    keys: Tensor
    """Of the random numbers (B_local,): the index, unless images come more than once in an epoch (`Order.draw`)."""


class InputSource(Protocol):
    """Where the inputs of this worker's share come from."""

    def begin(self, epoch: int, step: int) -> None:
        """Begin an epoch at `step`; called before any of its windows is opened."""

    def open(self, images: Tensor, drawn: Tensor) -> None:
        """Read images (m,), ascending; of these, `drawn` (n,) will be taken, each as often as it occurs there."""

    def take(self, keys: Tensor, epoch: int) -> Tensor:
        """Inputs (n, ...) of the images keys % N, on the training device."""

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Un-augmented inputs (n, ...) and index (n,) of the whole share, in order of the index."""


class Inputs:
    """Batches and blocks of this worker's share.

    Attributes
    ----------
    own : RowRange
        Images of the share. The workers' shares follow each other in rank order; sizes differ by a lane.
    """

    def __init__(self, order: Order, source: InputSource, device: torch.device) -> None:
        self.order, self.source, self.device = order, source, device
        self.lanes = row_range(order.lanes)
        self.own, self.rows = order.images_of(self.lanes), order.batch_rows(self.lanes)

    def epoch(self, epoch: int, first_step: int = 0, weights: Tensor | None = None) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on: the same number on every worker, with or without weights.

        `weights` (own images,) say how often each image is drawn (`pipeline.data.sampling`); None takes each once.
        """
        self.source.begin(epoch, first_step)
        lanes = [self._lane(lane, epoch, first_step, weights) for lane in range(*self.lanes[:2])]
        for _ in range(first_step, self.order.steps):
            keys = torch.cat([next(lane) for lane in lanes])
            inputs, keys = self.source.take(keys, epoch), to_device(keys, self.device)
            yield Batch(inputs, keys % self.order.num_images, self.rows, keys)

    def _lane(self, lane: int, epoch: int, first_step: int, weights: Tensor | None) -> Iterator[Tensor]:
        """Keys (rows of the lane,) for each step; a window is opened at the first step that needs it."""
        size, waiting = self.order.lane_rows(lane), torch.empty(0, dtype=torch.int64)
        for _, window, start, stop in self.order.taken(epoch, lane, first_step):
            own = None if weights is None else weights[window.images - self.own.start]
            keys = self.order.draw(epoch, window, own)[start:stop]
            self.source.open(keys.sort().values if weights is None else window.images, keys % self.order.num_images)
            waiting = torch.cat([waiting, keys])
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Un-augmented inputs (n, ...) and index (n,) of the share, in order of the index, once."""
        return self.source.blocks()


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device; the host does not wait for a GPU's pending work."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


class ResidentImages:
    """The decoded images of a share, held in memory.

    Parameters
    ----------
    images : Tensor (own images, H, W, 3) uint8
        On the training device.
    own : RowRange
    block_size : int
        Images that `blocks` yields at a time.
    """

    def __init__(self, images: Tensor, own: RowRange, block_size: int) -> None:
        self.images, self.own, self.block_size = images, own, block_size

    def begin(self, epoch: int, step: int) -> None:
        """Nothing is read."""

    def open(self, images: Tensor, drawn: Tensor) -> None:
        """All images are in memory."""

    def take(self, keys: Tensor, epoch: int) -> Tensor:
        """Images (n, H, W, 3) of the keys (n,)."""
        places = to_device(keys % self.own.total - self.own.start, self.images.device)
        return self.images.index_select(0, places)  # on CPUs `images[places]` takes 40 times as long

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The share, block by block."""
        index = torch.arange(*self.own[:2], device=self.images.device)
        return zip(self.images.split(self.block_size), index.split(self.block_size), strict=True)
