"""The two ways to label rows and sum each cluster's members in a pass of Lloyd's iterations: full and incremental.

Both find the same labels and sums. An object is made for each pass and given the rows chunk by chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.clustering.fixed_point import exact_type
from pipeline.clustering.rows import counted


class Assigned(NamedTuple):
    """The nearest centres of m rows in each of A starts: their numbers, labels (A, m) int32, and the cosines (A, m)."""

    labels: Tensor
    cosines: Tensor


class FullPass:
    """Compares all rows with all centres and sums all members anew, so that it never waits for a GPU.

    Parameters
    ----------
    centers : Tensor (A, K, D)
    step : float
        Of the rows' sums.

    Attributes
    ----------
    sums : Tensor (A, K, D + 1)
        Each cluster's sum of this worker's rows, in steps, and their count; complete after the last chunk.
    """

    def __init__(self, centers: Tensor, step: float) -> None:
        starts, clusters, size = centers.shape
        self.directions, self.step = F.normalize(centers, dim=2), step
        self.sums = centers.new_zeros((starts, clusters, size + 1), dtype=exact_type(centers.device))

    def label(self, chunk: Tensor, lengths: Tensor, before: Assigned) -> Assigned:
        """The nearest centres of rows (m, D), whatever they were in the pass `before`."""
        return _nearest(chunk, lengths, self.directions)

    def update_sums(self, chunk: Tensor, before: Tensor, labels: Tensor) -> None:
        """Add rows (m, D) to the sums of their labels (A, m), wherever they were `before`."""
        members = counted(chunk, self.step)
        for sums, joined in zip(self.sums, labels, strict=True):
            sums.index_add_(0, joined, members)


class IncrementalPass:
    """Does only the work that changes something. A GPU would have to wait to learn how much that is.

    Only rows that changed their cluster update the sums. When at most half of the centres moved, rows whose own centre
    did not move are compared only with those that did.

    Parameters
    ----------
    centers : Tensor (A, K, D)
    step : float
        Of the rows' sums.
    moved : Tensor (A, K) bool
        Which centres differ from those of the pass before.
    sums : Tensor (A, K, D + 1)
        This worker's sums after the pass before; updated in place.
    """

    def __init__(self, centers: Tensor, step: float, moved: Tensor, sums: Tensor) -> None:
        self.directions, self.step, self.moved, self.sums = F.normalize(centers, dim=2), step, moved, sums
        most_moved = max(1, int(moved.sum(dim=1).max()))
        self.compares_all = 2 * most_moved > centers.shape[1]
        if not self.compares_all:
            # A start in which fewer have moved fills up with others: comparing them again changes nothing.
            self.candidates = moved.int().argsort(dim=1, descending=True, stable=True)[:, :most_moved].sort().values
            self.candidate_directions = torch.take_along_dim(self.directions, self.candidates[..., None], dim=1)

    def label(self, chunk: Tensor, lengths: Tensor, before: Assigned) -> Assigned:
        """The nearest centres of rows (m, D), given those of the pass `before`."""
        if self.compares_all:
            return _nearest(chunk, lengths, self.directions)
        own_moved = self.moved.gather(1, before.labels.long()).any(dim=0)  # in any start: all share one product
        by_all, by_moved = own_moved.nonzero()[:, 0], (~own_moved).nonzero()[:, 0]  # the centres to compare with
        labels, cosines = before.labels.clone(), before.cosines.clone()
        labels[:, by_all], cosines[:, by_all] = _nearest(chunk[by_all], lengths[by_all], self.directions)
        own = Assigned(labels[:, by_moved], cosines[:, by_moved])
        labels[:, by_moved], cosines[:, by_moved] = self._nearer(chunk[by_moved], lengths[by_moved], own)
        return Assigned(labels, cosines)

    def _nearer(self, chunk: Tensor, lengths: Tensor, own: Assigned) -> Assigned:
        """The nearest of rows' own centres, which did not move, and the candidates; the lowest number on ties."""
        found, cosines = _nearest(chunk, lengths, self.candidate_directions)
        labels = self.candidates.gather(1, found.long()).int()
        nearer = (cosines > own.cosines) | ((cosines == own.cosines) & (labels < own.labels))
        return Assigned(torch.where(nearer, labels, own.labels), torch.where(nearer, cosines, own.cosines))

    def update_sums(self, chunk: Tensor, before: Tensor, labels: Tensor) -> None:
        """Move the rows (m, D) whose labels (A, m) are not those `before` from their old sums to the new ones."""
        for sums, left, joined in zip(self.sums, before, labels, strict=True):
            who = (left != joined).nonzero()[:, 0]
            members = counted(chunk[who], self.step)
            sums.index_add_(0, joined[who], members).index_add_(0, left[who], members, alpha=-1)


def _nearest(chunk: Tensor, lengths: Tensor, directions: Tensor) -> Assigned:
    """The nearest of directions (A, K, D) to rows (m, D); the lowest number on ties."""
    dots = (chunk @ directions.flatten(0, 1).T).unflatten(1, directions.shape[:2])
    best, labels = dots.max(dim=2)
    return Assigned(labels.T.int(), best.T / lengths)
