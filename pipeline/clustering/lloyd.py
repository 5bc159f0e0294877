"""Lloyd's iterations of spherical k-means: all starts share each pass over the rows, however these are split."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.clustering.fixed_point import exact_type, to_steps
from pipeline.clustering.rows import Rows, counted
from pipeline.collectives import all_sum, gather_rows

UNSEEN = 1 << 62  # larger than any inertia in steps


class Totals(NamedTuple):
    """What a pass computes over all rows, in whole numbers, for each active start.

    `sums` (A, K, D+1): each cluster's summed rows, in steps, and their count. `inertia` (A,): summed distances, in
    steps. `changed` (A,): rows with another label than before.
    """

    sums: Tensor
    inertia: Tensor
    changed: Tensor


class Lloyd:
    """Runs all starts at once; one that has converged is left out of further passes.

    On a CPU a pass does only the necessary work: only rows that changed their cluster update the sums, and rows whose
    own centre did not move are compared only with the centres that did. A GPU would have to wait for the number of such
    rows, so it does all the work.

    Parameters
    ----------
    rows : Rows
    starts : Tensor (R, K, D)
    reseed : bool
        Put the centres of empty clusters at the rows that are farthest from their own centre.
    """

    def __init__(self, rows: Rows, starts: Tensor, *, reseed: bool) -> None:
        self.rows, self.reseed, self.centers = rows, reseed, starts
        device, (restarts, clusters, size) = starts.device, starts.shape
        self.active = list(range(restarts))
        self.n_iter = torch.zeros(restarts, dtype=torch.int64, device=device)
        self.labels = torch.full((restarts, len(rows.features)), -1, dtype=torch.int32, device=device)
        self.cosines = rows.lengths.new_zeros(self.labels.shape)
        self.own_sums = torch.zeros((restarts, clusters, size + 1), dtype=exact_type(device), device=device)
        self.last = self._pass(starts, moved=None)
        self.hollow = _wait_for(self._have_empty())
        self.inertia = self.last.inertia.clone()
        self.best_inertia = torch.full_like(self.inertia, UNSEEN)
        self.best_centers = starts.clone()

    def iterate(self, tol: float, least_gain: float) -> bool:
        """One pass of the active starts: new centres, new labels.

        A start continues while labels change, the centres' total movement (the sum of 1 - cosine) is above `tol`, and
        the inertia changes by more than the share `least_gain` of it. False when none continues.
        """
        active, old = self.active, self.centers[self.active]
        centers = self._means()
        self.last = found = self._pass(centers, (centers != old).any(dim=2))
        before = self.inertia[active]
        self.centers[active], self.inertia[active] = centers, found.inertia
        self.n_iter[active] += 1
        better = found.inertia < self.best_inertia[active]
        self.best_inertia[active] = torch.where(better, found.inertia, self.best_inertia[active])
        self.best_centers[active] = torch.where(better[:, None, None], centers, self.best_centers[active])
        shift = (1 - F.cosine_similarity(old, centers, dim=2, eps=1e-12)).sum(dim=1)
        gained = (before - found.inertia).abs().float() > least_gain * before.float()
        return self._keep((found.changed > 0) & (shift > tol) & gained)

    def _keep(self, unfinished: Tensor) -> bool:
        """Keep the active starts that are unfinished; return whether there are any."""
        goes_on, hollow = _wait_for(torch.stack([unfinished, self._have_empty()]))  # the one synchronisation of a pass
        if not all(goes_on):
            kept = [i for i, on in enumerate(goes_on) if on]
            self.active, self.last = [self.active[i] for i in kept], Totals(*(part[kept] for part in self.last))
        self.hollow = [empty for empty, on in zip(hollow, goes_on, strict=True) if on]
        return any(goes_on)

    def _have_empty(self) -> Tensor:
        """Which active starts (A,) have an empty cluster."""
        return (self.last.sums[..., -1] == 0).any(dim=1)

    def _means(self) -> Tensor:
        """Centres (A, K, D): means of the members, empty clusters zero or reseeded."""
        centers = self.rows.means(self.last.sums)
        if self.reseed:
            for start in (i for i, empty in enumerate(self.hollow) if empty):
                count = self.last.sums[start, :, -1]
                empty = (count == 0).nonzero()[:, 0]  # waits for the GPU: only where some are empty
                centers[start, empty] = self._farthest(self.active[start], len(empty))
        return centers

    def _farthest(self, start: int, count: int) -> Tensor:
        """The `count` rows (count, D) farthest from their own centre over all workers, the first ones on ties."""
        cosines = self.cosines[start]
        order = torch.argsort(cosines, stable=True)[:count]
        cosines, rows = (gather_rows(x[order], self.rows.scope) for x in (cosines, self.rows.features))
        return rows[torch.argsort(cosines, stable=True)[:count]].to(self.rows.dtype)

    def _pass(self, centers: Tensor, moved: Tensor | None) -> Totals:
        """Label all rows by the active starts' centers (A, K, D); `moved` (A, K) says which moved, None at first."""
        search, anew = _Search(centers, moved), moved is None or centers.device.type != "cpu"
        inertia = self.own_sums.new_zeros(len(centers))
        changed = torch.zeros_like(inertia)
        if anew:
            self.own_sums.zero_()
        for where, chunk in self.rows.chunks(centers.shape[0] * centers.shape[1]):
            old = self.labels[self.active, where]
            labels, cosines = search(chunk, self.rows.lengths[where], old, self.cosines[self.active, where])
            self.labels[self.active, where], self.cosines[self.active, where] = labels, cosines
            inertia += to_steps(1 - cosines, self.rows.distance_step).sum(dim=1)
            changed += (labels != old).sum(dim=1)
            if anew:
                self._add_members(chunk, labels)
            else:
                self._move_members(chunk, old, labels)
        sums = self.own_sums[self.active]
        flat = all_sum(torch.cat([sums.flatten(), inertia, changed]), self.rows.scope)
        sums, inertia, changed = flat.split([sums.numel(), len(inertia), len(changed)])
        return Totals(sums.view(*centers.shape[:2], -1), inertia, changed)

    def _add_members(self, chunk: Tensor, labels: Tensor) -> None:
        """Add rows (m, D) to this worker's sums under labels (A, m)."""
        members = counted(chunk, self.rows.step)
        for start, joined in zip(self.active, labels, strict=True):
            self.own_sums[start].index_add_(0, joined, members)

    def _move_members(self, chunk: Tensor, old: Tensor, new: Tensor) -> None:
        """Move the rows (m, D) whose labels (A, m) changed from their old sums to the new ones."""
        for start, left, joined in zip(self.active, old, new, strict=True):
            who = (left != joined).nonzero()[:, 0]
            members = counted(chunk[who], self.rows.step)
            self.own_sums[start].index_add_(0, joined[who], members).index_add_(0, left[who], members, alpha=-1)


class _Search:
    """Finds each start's nearest of centers (A, K, D), only among those that `moved` (A, K) where that is enough."""

    def __init__(self, centers: Tensor, moved: Tensor | None) -> None:
        self.directions, self.moved = F.normalize(centers, dim=2), None
        if moved is None or centers.device.type != "cpu":
            return
        most = max(1, int(moved.sum(dim=1).max()))
        if 2 * most <= centers.shape[1]:
            # A start in which fewer have moved fills up with others: comparing them again changes nothing.
            self.moved = moved
            self.few = moved.int().argsort(dim=1, descending=True, stable=True)[:, :most].sort().values
            self.few_directions = torch.take_along_dim(self.directions, self.few[..., None], dim=1)

    def __call__(self, chunk: Tensor, lengths: Tensor, labels: Tensor, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """New labels and cosines (A, m) of rows (m, D), given those under the previous centres."""
        if self.moved is None:
            return _nearest(chunk, lengths, self.directions)
        searched = self.moved.gather(1, labels.long()).any(dim=0)
        full, part = searched.nonzero()[:, 0], (~searched).nonzero()[:, 0]
        labels, cosines = labels.clone(), cosines.clone()
        labels[:, full], cosines[:, full] = _nearest(chunk[full], lengths[full], self.directions)
        found, near = _nearest(chunk[part], lengths[part], self.few_directions)
        found = self.few.gather(1, found.long()).int()
        before, own = cosines[:, part], labels[:, part]
        wins = (near > before) | ((near == before) & (found < own))
        labels[:, part], cosines[:, part] = torch.where(wins, found, own), torch.where(wins, near, before)
        return labels, cosines


def _wait_for(flags: Tensor) -> list[Any]:
    """Copy flags from the GPU to the host, as lists."""
    return flags.tolist()


def _nearest(chunk: Tensor, lengths: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and cosines (A, m) of rows (m, D): the nearest of directions (A, K, D), the lowest number on ties."""
    dots = (chunk @ directions.flatten(0, 1).T).unflatten(1, directions.shape[:2])
    best, labels = dots.max(dim=2)
    return labels.T.int(), best.T / lengths
