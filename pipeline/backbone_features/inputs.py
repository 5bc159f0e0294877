"""What a worker trains on with a frozen backbone: pairs of backbone features, from memory or from a file on its node.

Features that fit are resident in each worker, on its device. Larger sets are copied once to a file on each node and
mapped: a batch reads its rows from there, and the operating system caches what fits in memory. Order, pairs and
resuming are the same in both cases.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.collectives import RowRange
from pipeline.data.loader import to_device
from pipeline.keyed_random import Stream, uniform


class CachedFeatures:
    """Supplies pairs (B, 2, F) float16 of the cached views of images; every worker has those of all images.

    Parameters
    ----------
    features : Tensor (N, 1 + V, F) float16
        View 0 is un-augmented; on the training device, or mapped from a file.
    device : torch.device
        The training device.
    neighbours : Tensor (N, k) int64, optional
        The second of a pair is a view of one of these images; if absent, of the image itself.
    own : RowRange
        Images of this worker's share.
    seed : int
        The run's seed; with the epoch and the key it determines a pair.
    block_size : int
        Images that `blocks` yields at a time.
    """

    def __init__(
        self,
        features: Tensor,
        device: torch.device,
        *,
        neighbours: Tensor | None = None,
        own: RowRange,
        seed: int,
        block_size: int,
    ) -> None:
        self.features, self.device, self.neighbours = features, device, neighbours
        self.own, self.seed, self.block_size = own, seed, block_size

    def begin(self, epoch: int, step: int) -> None:
        """Nothing is read."""

    def open(self, images: Tensor, drawn: Tensor) -> None:
        """All features are available."""

    def take(self, keys: Tensor, epoch: int) -> Tensor:
        """Pairs (n, 2, F) of the keys (n,)."""
        return self.pairs(to_device(keys, self.features.device), epoch, self.neighbours)

    def blocks(self, view: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The un-augmented features of the share, or those of a cached view, block by block."""
        index = torch.arange(*self.own[:2], device=self.device)
        own = self.features[self.own.start : self.own.stop, view]
        for features, numbers in zip(own.split(self.block_size), index.split(self.block_size), strict=True):
            yield features.to(self.device), numbers

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
    """The two views of a batch of pairs (B, 2, F), already drawn: the counterpart of `TwoViews`."""
    first, second = pairs.float().unbind(1)
    return first, second


def as_input(features: Tensor) -> Tensor:
    """Cached features (n, F) as the heads take them: the counterpart of `Preprocess`."""
    return features.float()
