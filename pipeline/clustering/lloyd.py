"""Lloyd's iterations of spherical k-means: all starts share each pass over the rows, however these are split."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.clustering.fixed_point import to_steps
from pipeline.clustering.passes import Assigned, FullPass, IncrementalPass
from pipeline.clustering.rows import Rows
from pipeline.collectives import all_sum, gather_rows

ABOVE_ANY_INERTIA = 1 << 62  # in steps


class Totals(NamedTuple):
    """What a pass finds for each active start, over the rows of all workers, in whole numbers.

    `sums` (A, K, D+1): each cluster's summed rows, in steps, and their count. `inertia` (A,): summed distances, in
    steps. `changed` (A,): rows with another label than before.
    """

    sums: Tensor
    inertia: Tensor
    changed: Tensor


class Lloyd:
    """Runs all starts at once; one that has converged is left out of further passes.

    The iteration, its end, the best centres and the reseeding are the same everywhere. Only how a pass labels the rows
    and updates the sums depends on the device: passes are incremental on a CPU, and full elsewhere.

    Parameters
    ----------
    rows : Rows
    starts : Tensor (R, K, D)
    reseed : bool
        Put the centres of empty clusters at the rows that are farthest from their own centre.

    Attributes
    ----------
    active : list of A ints
        The starts that have not converged.
    labels, cosines : Tensor (R, n_local)
        Of this worker's rows: the nearest centre in each start, and the cosine to it.
    own_sums : Tensor (A, K, D+1)
        This worker's part of the sums in `last`, the totals of the last pass.
    has_empty : list of A bools
        Whether the start had an empty cluster in the last pass.
    """

    own_sums: Tensor

    def __init__(self, rows: Rows, starts: Tensor, *, reseed: bool) -> None:
        self.rows, self.reseed, self.centers = rows, reseed, starts
        restarts, device = len(starts), starts.device
        self.incremental = device.type == "cpu"
        self.active = list(range(restarts))
        self.n_iter = torch.zeros(restarts, dtype=torch.int64, device=device)
        self.labels = torch.full((restarts, len(rows.features)), -1, dtype=torch.int32, device=device)
        self.cosines = rows.lengths.new_zeros(self.labels.shape)
        self.last = self._run(FullPass(starts, rows.step))
        self.has_empty = _to_host(self._with_empty())
        self.inertia = self.last.inertia.clone()
        self.best_inertia = torch.full_like(self.inertia, ABOVE_ANY_INERTIA)
        self.best_centers = starts.clone()

    def iterate(self, tol: float, least_gain: float) -> bool:
        """Move the active starts' centres to the means of their rows, and label the rows by them.

        A start continues while labels change, the centres' total movement (the sum of 1 - cosine) is above `tol`, and
        the inertia changes by more than the share `least_gain` of it. False when none continues.
        """
        active, old = self.active, self.centers[self.active]
        centers = self._means()
        self.last = found = self._run(self._next_pass(centers, (centers != old).any(dim=2)))
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
        """Keep only the active starts that are unfinished (A,); return whether there are any."""
        flags = torch.stack([unfinished, self._with_empty()])
        continues, has_empty = _to_host(flags)  # the only time that an iteration waits for a GPU
        kept = [i for i, on in enumerate(continues) if on]
        if len(kept) < len(self.active):
            self.active, self.own_sums = [self.active[i] for i in kept], self.own_sums[kept]
            self.last = Totals(*(part[kept] for part in self.last))
        self.has_empty = [has_empty[i] for i in kept]
        return bool(kept)

    def _with_empty(self) -> Tensor:
        """Which active starts (A,) have an empty cluster."""
        return (self.last.sums[..., -1] == 0).any(dim=1)

    def _means(self) -> Tensor:
        """Centres (A, K, D): means of the members, empty clusters zero or reseeded."""
        centers = self.rows.means(self.last.sums)
        for i, start in enumerate(self.active):
            if self.reseed and self.has_empty[i]:
                empty = (self.last.sums[i, :, -1] == 0).nonzero()[:, 0]  # waits for a GPU, but only where some are
                centers[i, empty] = self._farthest(start, len(empty))
        return centers

    def _farthest(self, start: int, count: int) -> Tensor:
        """The `count` rows (count, D) farthest from their own centre over all workers, the first ones on ties."""
        cosines = self.cosines[start]
        order = torch.argsort(cosines, stable=True)[:count]
        cosines, rows = (gather_rows(x[order], self.rows.scope) for x in (cosines, self.rows.features))
        return rows[torch.argsort(cosines, stable=True)[:count]].to(self.rows.dtype)

    def _next_pass(self, centers: Tensor, moved: Tensor) -> FullPass | IncrementalPass:
        """The pass for the active starts' new centers (A, K, D), of which those in moved (A, K) differ from the old."""
        if self.incremental:
            return IncrementalPass(centers, self.rows.step, moved, self.own_sums)
        return FullPass(centers, self.rows.step)

    def _run(self, one_pass: FullPass | IncrementalPass) -> Totals:
        """Label this worker's rows in the active starts; the totals are those of all workers."""
        rows, active, own_sums = self.rows, self.active, one_pass.sums
        starts, clusters, _ = own_sums.shape
        inertia, changed = own_sums.new_zeros((2, starts))
        for where, chunk in rows.chunks(starts * clusters):
            before = Assigned(self.labels[active, where], self.cosines[active, where])
            found = one_pass.label(chunk, rows.lengths[where], before)
            self.labels[active, where], self.cosines[active, where] = found
            inertia += to_steps(1 - found.cosines, rows.distance_step).sum(dim=1)
            changed += (found.labels != before.labels).sum(dim=1)
            one_pass.update_sums(chunk, before.labels, found.labels)
        self.own_sums = own_sums
        flat = all_sum(torch.cat([own_sums.flatten(), inertia, changed]), rows.scope)
        sums, inertia, changed = flat.split([own_sums.numel(), starts, starts])
        return Totals(sums.view_as(own_sums), inertia, changed)


def _to_host(flags: Tensor) -> list[Any]:
    """Flags as lists; waits until a GPU has computed them."""
    return flags.tolist()
