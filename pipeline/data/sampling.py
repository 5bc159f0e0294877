"""Sampling by pseudo-label, so that small clusters are seen: how often an image is drawn, and a stream in which it is.

The weight of an image in a pseudo-cluster of n images is n^-balance, as in long-tailed recognition (Mahajan et al.,
ECCV 2018). Resident inputs are drawn by `pipeline.data.loader.epoch_order`. A stream cannot be drawn from: each of its
rows is kept as often as a random number of its image says (`balanced_batches`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.loader import epoch_seed
from pipeline.keyed_random import Stream, uniform

MOST_DRAWS = 20  # of an image in an epoch, on average: a cluster of one outlier must not fill a tenth of each batch


def sampling_weights(labels: Tensor, sizes: Tensor, balance: float) -> Tensor:
    """How often each of this worker's images is drawn in an epoch, on average.

    Parameters
    ----------
    labels : Tensor (n_local,) int
        Pseudo-labels of its images.
    sizes : Tensor (K,) int64
        Images of each cluster on all workers. Clusters without images have no part in it.
    balance : float
        0 draws each image once, 1 each cluster equally often.

    Returns
    -------
    Tensor (n_local,) float64
        On the CPU, at most MOST_DRAWS each; over the N images of all workers their sum is N.
    """
    sizes = sizes.cpu().double()
    return _limited(sizes.clamp(min=1) ** -balance, sizes)[labels.cpu()]


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


class Part(NamedTuple):
    """Inputs (n, ...) of a stream, which images they are (n,) int64, and how often each is to be drawn (n,) int64."""

    inputs: Tensor
    images: Tensor
    copies: Tensor


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

    All workers read in step, one part for each batch once the buffer is full, whatever their rows are. Ray Data stops
    reading when the share of one worker waits unread in the object store: if one read ahead while the others wait for
    it in a collective, all would wait forever.

    Parameters
    ----------
    stream : iterable of (inputs (n, ...), index (n,))
        On the CPU; parts of `size` rows, of which the last may have fewer.
    weights : Tensor (N,) float64
        Of `sampling_weights`.
    seed, epoch : int
        They decide the copies, together with the image, and the order, together with that of the stream.
    size, steps : int
        Rows of a batch, and batches.
    buffer : int
        Rows that are held back to be shuffled, so that copies of an image do not stay together.
    """
    parts = _with_copies(stream, weights, seed, epoch)
    held = _DrawBuffer(
        _joined(islice(parts, max(buffer // size, 1)), epoch), torch.Generator().manual_seed(epoch_seed(seed, epoch))
    )
    for _ in range(steps):
        yield held.draw(size, len(weights))
        for part in islice(parts, 1):
            held.put(part)
    for _ in parts:
        pass


def _with_copies(stream: Iterable[tuple[Tensor, Tensor]], weights: Tensor, seed: int, epoch: int) -> Iterator[Part]:
    """Each row with its weight, rounded up or down by its image's random number."""
    for inputs, index in stream:
        yield Part(inputs, index, (weights[index] + uniform(seed, epoch, index, Stream.COPIES, 1)[:, 0]).long())


def _joined(parts: Iterable[Part], epoch: int) -> Part:
    """The first parts of an epoch as one."""
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    if not columns:
        raise RuntimeError(
            f"no image of epoch {epoch + 1} has reached a worker; lower resources.workers or set data.mode=resident"
        )
    return Part(*columns)


class _DrawBuffer:
    """As many rows as it is given at first, each held once, from which random ones are drawn as often as is theirs."""

    def __init__(self, rows: Part, generator: torch.Generator) -> None:
        self.rows, self.generator = rows, generator
        self.left, self.drawn = rows.copies.clone(), torch.zeros_like(rows.copies)

    def put(self, part: Part) -> None:
        """Replace the rows with the fewest draws left: those with none, unless there is no room for all."""
        places = self.left.argsort(stable=True)[: len(part.images)]
        for column, values in zip(self.rows, part, strict=True):
            column[places] = values
        self.left[places], self.drawn[places] = part.copies, 0

    def draw(self, count: int, total: int) -> Rows:
        """Random ones of the draws that are left; where they do not suffice, all rows get theirs once more."""
        while self.left.sum() < count:
            self.left += self.rows.copies if self.rows.copies.any() else 1
        pending, _ = _numbered(self.left)
        chosen = pending[torch.randperm(len(pending), generator=self.generator)[:count]]
        taken = torch.bincount(chosen, minlength=len(self.left))
        places, copy = _numbered(taken)
        keys = self.rows.images[places] + total * (self.drawn[places] + copy)
        self.left -= taken
        self.drawn += taken
        return Rows(self.rows.inputs[places], keys)


def _numbered(copies: Tensor) -> tuple[Tensor, Tensor]:
    """Place i of (n,) `copies[i]` times, and which of its copies each is; both (copies.sum(),)."""
    places = torch.arange(len(copies)).repeat_interleave(copies)
    return places, torch.arange(len(places)) - (copies.cumsum(0) - copies)[places]
