"""Spherical k-means over rows on one worker or on many, with the same result.

Workers hold contiguous blocks of the rows, in rank order. They exchange a sample to start from, and then only sums,
counts and inertia, in whole numbers, so that the split does not affect the result. All restarts run together, as one
large matrix product per pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.clustering.lloyd import Lloyd
from pipeline.clustering.nearest import nearest_center
from pipeline.clustering.rows import Rows, look_at
from pipeline.clustering.seeding import draws, kmeans_plus_plus
from pipeline.collectives import Scope, gather_rows, row_range

SEED_ROWS, ROWS_PER_CLUSTER = 10_000, 10  # least rows in the sample of k-means++; 5,000 gave a worse inertia
GROWTH = 4  # of the samples
# Iterations end when a pass changes the inertia by a smaller share: on a sample, and on all rows, where it is a tie.
SAMPLE_GAIN, TIE = 1e-3, 1e-6


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
    fit_rows: int | None = None,
    scope: Scope = Scope.ALL_WORKERS,
) -> KMeansResult:
    """Cluster rows by cosine distance.

    Parameters
    ----------
    features : Tensor (n_local, D)
        This worker's rows, of any float type; they may be mapped from a file, since no copy of all of them is made.
        Their direction decides the assignment; a centre is the mean of rows as given.
    num_clusters : int
        K.
    init : "k-means++" or Tensor (K, D)
        Greedy k-means++ from each of `restarts` seeds, or the centres of a single start. With more than SEED_ROWS rows
        (or ROWS_PER_CLUSTER per cluster) k-means++ chooses from a sample of that size. The first iterations run on it,
        further ones on samples each GROWTH times as large, and the last on all rows.
    max_iter : int
        Limit on all rows, and on each sample.
    tol : float
        Stop when the centres' total movement (the sum of 1 - cosine) is at most tol times the mean variance of the
        columns, or when a pass changes the inertia by less than a millionth.
    seed : int
        Restart r draws from seed + r, and the samples from seed.
    empty : "keep" or "reseed"
        The centre of a cluster without rows: zero, at distance 1 from everything (as in the reference code), or the
        row that lies farthest from its own centre.
    fit_rows : int, optional
        Fit the centres on a sample of so many rows, then assign all rows once; by default they are fitted on all.
    scope : Scope
        THIS_WORKER when every worker holds all rows: each then clusters them by itself.

    Returns
    -------
    KMeansResult
        The result of the start with the lowest inertia, the first of several that agree to one part in a million.

    Raises
    ------
    ValueError
        When there are fewer rows than clusters, or a value is not finite.
    """
    rows = look_at(features.detach(), scope, num_clusters)
    fit = rows if fit_rows is None else rows.sample(max(fit_rows, num_clusters), seed)
    reseed = empty == "reseed"
    if isinstance(init, Tensor):
        starts = init[None].to(features.device, rows.dtype)
    else:
        starts = _start(fit, num_clusters, restarts, seed, max_iter, reseed)
    runs = _iterate(fit, starts, reseed, max_iter, tol * fit.mean_column_variance(), TIE)
    return _best(runs, rows)


def _start(fit: Rows, num_clusters: int, restarts: int, seed: int, max_iter: int, reseed: bool) -> Tensor:
    """Starts (R, K, D): k-means++ on a sample, then Lloyd's iterations on samples that grow to less than `fit`."""
    count = max(SEED_ROWS, ROWS_PER_CLUSTER * num_clusters)
    sample = fit.sample(count, seed)
    gathered = gather_rows(sample.features, fit.scope).to(fit.dtype)
    own = row_range(restarts, scope=fit.scope)  # one worker makes each start, because processors may round differently
    seeds = range(seed + own.start, seed + own.stop)
    found = kmeans_plus_plus(gathered, *draws(sample.total, num_clusters, seeds, gathered.device))
    starts = gather_rows(found.centers, fit.scope)
    while 2 * count <= fit.total:  # a larger sample saves nothing
        starts = _iterate(fit.sample(count, seed), starts, reseed, max_iter, 0.0, SAMPLE_GAIN).best_centers
        count *= GROWTH
    return starts


def _iterate(rows: Rows, starts: Tensor, reseed: bool, max_iter: int, tol: float, least_gain: float) -> Lloyd:
    """Lloyd's iterations until every start has ended."""
    runs = Lloyd(rows, starts, reseed=reseed)
    for _ in range(max_iter):
        if not runs.iterate(tol, least_gain):
            break
    return runs


def _best(runs: Lloyd, rows: Rows) -> KMeansResult:
    """The start of lowest inertia; the first of those that tie, since equal optima differ by rounding."""
    inertia = runs.best_inertia.double().cpu()
    lowest = inertia.min()
    winner = int((inertia <= lowest + TIE * lowest).int().argmax())
    centers = runs.best_centers[winner].clone()
    if runs.rows is rows and centers.equal(runs.centers[winner]):
        labels, total = runs.labels[winner].long(), float(runs.best_inertia[winner]) * rows.distance_step
    else:
        labels, total = _assign(rows, centers)
    rest = torch.arange(len(inertia)) != winner
    return KMeansResult(labels, centers, total, int(runs.n_iter[winner]), runs.best_centers[rest.to(centers.device)])


def _assign(rows: Rows, centers: Tensor) -> tuple[Tensor, float]:
    """Labels (n_local,) of this worker's rows under centres (K, D), and the inertia of all workers' rows."""
    labels, similarity = nearest_center(rows.features, centers)
    return labels, rows.inertia(similarity)
