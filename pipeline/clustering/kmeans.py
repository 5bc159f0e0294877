"""Spherical k-means over rows that lie on one worker or on many, with the same result.

Workers hold contiguous blocks of the rows, in rank order. They exchange sums, counts and inertia only, summed in
float64 so that the split does not show. All restarts run together, as one large matrix product a pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.clustering.nearest import dot_chunks
from pipeline.collectives import Scope, all_stack, all_sum, gather_rows, rank


@dataclass(frozen=True)
class KMeansResult:
    """The best of all restarts.

    Attributes
    ----------
    labels : Tensor (n_local,) int64
        Cluster of each of this worker's rows.
    centers : Tensor (K, D)
        Mean of each cluster's rows, as given; equal on every worker.
    inertia : float
        Sum over all rows of 1 - cosine to the nearest centre.
    n_iter : int
        Iterations of the restart that won.
    others : Tensor (R-1, K, D)
        Centres of the other starts; how far they agree with the best shows how distinct the clusters are.
    """

    labels: Tensor
    centers: Tensor
    inertia: float
    n_iter: int
    others: Tensor


def spherical_kmeans(
    features: Tensor,
    num_clusters: int,
    *,
    init: Literal["k-means++"] | Tensor = "k-means++",
    restarts: int = 10,
    max_iter: int = 300,
    tol: float = 1e-4,
    seed: int = 0,
    empty: Literal["keep", "reseed"] = "keep",
    extra_start: Tensor | None = None,
    scope: Scope = Scope.ALL_WORKERS,
) -> KMeansResult:
    """Cluster rows by cosine distance.

    Parameters
    ----------
    features : Tensor (n_local, D)
        This worker's rows. Their direction decides the assignment; a centre is the mean of rows as given.
    num_clusters : int
        K.
    init : "k-means++" or Tensor (K, D)
        Greedy k-means++ from each of `restarts` seeds, or the centres of a single start.
    max_iter : int
    tol : float
        Stop when the centres' total move, 1 - cosine each, is at most tol times the mean variance of the columns.
    seed : int
        Restart r draws from seed + r.
    empty : "keep" or "reseed"
        The centre of a cluster without rows: zero, at distance 1 from everything (as in the reference code), or the
        row that lies farthest from its own centre.
    extra_start : Tensor (K, D), optional
        Centres of one more start beside the restarts, for example the last result.
    scope : Scope
        THIS_WORKER when every worker holds all rows: each then clusters them by itself.

    Returns
    -------
    KMeansResult
        Of the start with the lowest inertia, the first of several that agree to one part in a million.

    Raises
    ------
    ValueError
        When there are fewer rows than clusters, or a value is not finite.
    """
    features = features.detach()
    place = _place(features, scope, num_clusters)
    if isinstance(init, Tensor):
        starts = init[None].to(features)
    else:
        draws = _draws(place.total, num_clusters, restarts, seed, features.device)
        starts = kmeans_plus_plus(features, *draws, scope=scope).centers
    if extra_start is not None:
        starts = torch.cat([starts, extra_start[None].to(features)])
    runs = _Lloyd(features, starts, scope, reseed=empty == "reseed")
    for _ in range(max_iter):
        if not runs.iterate(tol):
            break
    return runs.best()


class _Place(NamedTuple):
    """Where this worker's rows stand among all rows of `scope`."""

    offset: int
    total: int
    scope: Scope


def _place(features: Tensor, scope: Scope, num_clusters: int = 1) -> _Place:
    """Count the rows; ValueError when they are too few or not finite."""
    broken = (~torch.isfinite(features)).any(dim=1).sum()
    own = torch.stack([torch.tensor(len(features), device=features.device), broken])
    rows, bad = all_stack(own, scope).T.tolist()
    total = sum(rows)
    if sum(bad):
        raise ValueError(f"{sum(bad)} of {total} feature rows are not finite; the network has diverged: lower optim.lr")
    if not 1 <= num_clusters <= total:
        raise ValueError(f"num_clusters is {num_clusters} for {total} rows; give 1 <= num_clusters <= rows")
    return _Place(sum(rows[: rank(scope)]), total, scope)


def _draws(total: int, num_clusters: int, restarts: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First rows (R,) and uniform numbers (R, K-1, L) for k-means++, the same on every worker."""
    trials = 2 + int(math.log(num_clusters))
    first, uniforms = [], []
    for restart in range(restarts):
        generator = torch.Generator().manual_seed(seed + restart)
        first.append(torch.randint(total, (), generator=generator))
        uniforms.append(torch.rand(num_clusters - 1, trials, generator=generator))
    return torch.stack(first).to(device), torch.stack(uniforms).to(device)


class Seeding(NamedTuple):
    """Rows chosen by k-means++: their indices (R, K) among all rows, and the rows themselves (R, K, D)."""

    rows: Tensor
    centers: Tensor


def kmeans_plus_plus(features: Tensor, first: Tensor, uniforms: Tensor, *, scope: Scope = Scope.ALL_WORKERS) -> Seeding:
    """Greedy k-means++ on cosine distance, for R restarts at once (Arthur and Vassilvitskii 2007).

    Parameters
    ----------
    features : Tensor (n_local, D)
        This worker's rows.
    first : Tensor (R,) int64
        Index of each restart's first row, among all rows.
    uniforms : Tensor (R, K-1, L)
        In [0, 1). Each further centre is the best of L candidates, drawn with probability proportional to the
        distance to the nearest centre so far; the best leaves the smallest sum of distances, the first on ties.
    scope : Scope
        THIS_WORKER when every worker holds all rows.
    """
    directions, place = F.normalize(features, dim=1), _place(features, scope)
    chosen, centers = [first], [_rows_at(features, first, place)]
    nearest = _distances(directions, centers[0][:, None])[..., 0]
    for step_uniforms in uniforms.unbind(1):
        candidates = _draw(nearest, step_uniforms, place)
        rows = _rows_at(features, candidates, place)
        distances = torch.minimum(_distances(directions, rows), nearest[..., None])
        pick = all_sum(distances.sum(dim=0, dtype=torch.float64), scope).argmin(dim=1, keepdim=True)
        chosen.append(candidates.gather(1, pick)[:, 0])
        centers.append(torch.take_along_dim(rows, pick[..., None], dim=1)[:, 0])
        nearest = torch.take_along_dim(distances, pick[None], dim=2)[..., 0]
    return Seeding(torch.stack(chosen, dim=1), torch.stack(centers, dim=1))


def _draw(nearest: Tensor, uniforms: Tensor, place: _Place) -> Tensor:
    """Row indices (R, L): where the cumulative distance over all rows first reaches uniforms (R, L) of its sum."""
    cumulative = nearest.T.to(torch.float64).cumsum(dim=1)
    own = cumulative[:, -1] if len(nearest) else cumulative.new_zeros(len(cumulative))
    totals = all_stack(own, place.scope)
    target = uniforms * totals.sum(dim=0)[:, None] - totals[: rank(place.scope)].sum(dim=0)[:, None]
    rows_before = torch.searchsorted(cumulative, target)  # 0 on workers behind the target, all rows before it
    return all_sum(rows_before, place.scope).clamp(max=place.total - 1)


def _rows_at(features: Tensor, index: Tensor, place: _Place) -> Tensor:
    """The rows (*, D) at `index` (*) among all rows, on every worker."""
    local = index - place.offset
    mine = (local >= 0) & (local < len(features))
    rows = features.new_zeros((*index.shape, features.shape[1]))
    rows[mine] = features[local[mine]]
    return all_sum(rows, place.scope)


def _distances(directions: Tensor, centers: Tensor) -> Tensor:
    """1 - cosine of unit rows (n, D) and centers (R, L, D): (n, R, L)."""
    return 1 - torch.einsum("nd,rld->nrl", directions, F.normalize(centers, dim=-1))


class _Lloyd:
    """Lloyd's iterations of all starts at once; a start that has converged takes no part in further passes.

    `sums` (R, K, D+1) are each cluster's summed rows and their count under `labels` (n_local, R), over all workers.
    """

    def __init__(self, features: Tensor, starts: Tensor, scope: Scope, *, reseed: bool) -> None:
        self.features, self.directions = features, F.normalize(features, dim=1)
        self.scope, self.reseed = scope, reseed
        self.variance = _mean_column_variance(features, scope)
        restarts = len(starts)
        self.active = torch.arange(restarts, device=features.device)
        self.centers = starts
        self.labels = torch.full((len(features), restarts), -1, device=features.device)
        self.distances = features.new_zeros((len(features), restarts))
        self.n_iter = torch.zeros(restarts, dtype=torch.int64, device=features.device)
        self.sums, _, _ = self._assign(starts)
        self.best_inertia = torch.full((restarts,), float("inf"), dtype=torch.float64, device=features.device)
        self.best_centers, self.best_labels = self.centers.clone(), self.labels.clone()

    def iterate(self, tol: float) -> bool:
        """One pass of the active starts: new centres, new labels; False when none is active any more."""
        old, active = self.centers[self.active], self.active
        centers = self._means()
        self.sums, inertia, changed = self._assign(centers)
        self.centers[active] = centers
        self.n_iter[active] += 1
        better = inertia < self.best_inertia[active]
        improved = active[better]
        self.best_inertia[improved] = inertia[better]
        self.best_centers[improved] = centers[better]
        self.best_labels[:, improved] = self.labels[:, improved]
        cosine = (F.normalize(old, dim=-1) * F.normalize(centers, dim=-1)).sum(dim=-1)
        unfinished = (changed > 0) & ((1 - cosine).sum(dim=1) > tol * self.variance)
        self.active, self.sums = active[unfinished], self.sums[unfinished]
        return len(self.active) > 0

    def best(self) -> KMeansResult:
        """The start of lowest inertia. Equal optima differ by rounding: one in a million counts as a tie."""
        lowest = self.best_inertia.min()
        winner = int((self.best_inertia <= lowest + 1e-6 * lowest.abs()).int().argmax())
        return KMeansResult(
            self.best_labels[:, winner].clone(),
            self.best_centers[winner].clone(),
            float(self.best_inertia[winner]),
            int(self.n_iter[winner]),
            self.best_centers[torch.arange(len(self.best_centers)) != winner],
        )

    def _means(self) -> Tensor:
        """Centres (active, K, D): means of the members, empty clusters zero or reseeded."""
        count = self.sums[..., -1:]
        centers = (self.sums[..., :-1] / count.clamp(min=1)).to(self.features.dtype)
        empty = count[..., 0] == 0
        if self.reseed:
            for start in empty.any(dim=1).nonzero()[:, 0].tolist():
                centers[start, empty[start]] = self._farthest(int(self.active[start]), int(empty[start].sum()))
        return centers

    def _farthest(self, start: int, count: int) -> Tensor:
        """The `count` rows farthest from their own centre over all workers, the first ones on ties."""
        order = torch.argsort(self.distances[:, start], descending=True, stable=True)[:count]
        distances = gather_rows(self.distances[order, start], self.scope)
        rows = gather_rows(self.features[order], self.scope)
        return rows[torch.argsort(distances, descending=True, stable=True)[:count]]

    def _assign(self, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Label all rows by the active starts' centers (R, K, D): sums (R, K, D+1), inertia (R,), rows changed (R,)."""
        restarts, clusters, size = centers.shape
        sums = torch.zeros((restarts, clusters, size + 1), dtype=torch.float64, device=centers.device)
        totals = torch.zeros((2, restarts), dtype=torch.float64, device=centers.device)
        for rows, cosines in dot_chunks(self.directions, centers.flatten(0, 1)):
            cosine, labels = cosines.unflatten(1, (restarts, clusters)).max(dim=2)
            totals[0] += (1 - cosine).sum(dim=0, dtype=torch.float64)
            totals[1] += (labels != self.labels[rows, self.active]).sum(dim=0)
            self.labels[rows, self.active] = labels
            self.distances[rows, self.active] = 1 - cosine
            _add_members(sums, self.features[rows], labels)
        flat = all_sum(torch.cat([sums.flatten(), totals.flatten()]), self.scope)
        totals = flat[sums.numel() :].view_as(totals)
        return flat[: sums.numel()].view_as(sums), totals[0], totals[1]


def _add_members(sums: Tensor, features: Tensor, labels: Tensor) -> None:
    """Add rows (n, D), and their number, to sums (R, K, D+1) under labels (n, R); in float64: order does not matter."""
    counted = F.pad(features.to(torch.float64), (0, 1), value=1.0)
    for cluster_sums, start_labels in zip(sums, labels.T, strict=True):
        cluster_sums.index_add_(0, start_labels, counted)


def _mean_column_variance(features: Tensor, scope: Scope) -> Tensor:
    """Mean over columns of the unbiased variance of all rows, in float64; about the mean, so that it cannot cancel."""
    wide = features.to(torch.float64)
    sums = all_sum(F.pad(wide.sum(dim=0), (0, 1), value=len(wide)), scope)
    mean, rows = sums[:-1] / sums[-1], sums[-1]
    return (all_sum(((wide - mean) ** 2).sum(dim=0), scope) / (rows - 1).clamp(min=1)).mean()
