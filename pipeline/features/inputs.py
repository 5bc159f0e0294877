"""What a worker trains on with a frozen backbone: pairs of cached features, from memory or from a file on its node.

Features that fit are resident in each worker, on its device. Larger sets are copied once to a file on each node and
mapped: a batch reads its rows from there, and the operating system keeps what it has room for. Order, pairs and
resuming are the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.collectives import RowRange, row_range
from pipeline.data.loader import Batch, epoch_keys, own_slices
from pipeline.keyed_random import Stream, uniform


class FeatureInputs:
    """Batches of pairs (B, 2, F) float16 from the cached views of all images.

    Parameters
    ----------
    features : Tensor (N, 1 + V, F) float16
        View 0 is un-augmented; on the training device, or mapped from a file.
    device : torch.device
        That trains.
    neighbours : Tensor (N, k) int64, optional
        The second of a pair is a view of one of these images; of the image itself when absent.
    seed, batch_size, block_size
        As `ResidentImages` takes them.
    """

    def __init__(
        self,
        features: Tensor,
        device: torch.device,
        *,
        neighbours: Tensor | None = None,
        seed: int,
        batch_size: int,
        block_size: int,
    ) -> None:
        self.features, self.device, self.neighbours = features, device, neighbours
        self.seed, self.batch_size, self.block_size = seed, batch_size, block_size

    @property
    def rows(self) -> RowRange:
        """The images that this worker owns."""
        return row_range(len(self.features))

    def epoch(self, epoch: int, first_step: int = 0, weights: Tensor | None = None) -> Iterator[Batch]:
        """Slices of the epoch's order, which is that of resident images."""
        order = epoch_keys(len(self.features), self.seed, epoch, weights).to(self.features.device)
        for own, rows in own_slices(order, self.batch_size, first_step):
            keys = own.to(self.device)
            yield Batch(self.pairs(own, epoch, self.neighbours), keys % len(self.features), rows, keys)

    def blocks(self, view: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The un-augmented features of this worker's contiguous part of the set, or those of a cached view."""
        own = row_range(len(self.features))
        for start in range(own.start, own.stop, self.block_size):
            index = torch.arange(start, min(start + self.block_size, own.stop), device=self.device)
            yield self.features[start : start + len(index), view].to(self.device), index

    def pairs(self, keys: Tensor, epoch: int, neighbours: Tensor | None = None) -> Tensor:
        """Two features (B, 2, F) for each key (B,): of two views of the image, or of it and of a neighbour.

        Keyed by (seed, epoch, image and copy), so that neither the number of workers nor the batch changes them.
        """
        index, views = keys % len(self.features), self.features.shape[1] - 1
        draws = uniform(self.seed, epoch, keys, Stream.CACHED_PAIR, 3)
        first = (draws[:, 0] * views).long()
        if neighbours is None:
            other, second = index, (first + 1 + (draws[:, 1] * (views - 1)).long()) % views
        else:
            column = (draws[:, 2] * neighbours.shape[1]).long()
            other, second = neighbours[index, column], (draws[:, 1] * views).long()
        images, chosen = torch.stack([index, other], dim=1), torch.stack([first, second], dim=1)
        return self.features[images, 1 + chosen].to(self.device)


def split_pair(pairs: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """The two views of a batch of pairs (B, 2, F), as `TwoViews` gives those of images; drawn already."""
    first, second = pairs.float().unbind(1)
    return first, second


def as_input(features: Tensor) -> Tensor:
    """Cached features (n, F) as the heads take them: the counterpart of `Preprocess`."""
    return features.float()
