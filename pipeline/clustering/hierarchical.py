"""Spherical k-means for very many clusters: coarse clusters, each divided on its own.

K clusters of N rows cost N * K products a pass; about sqrt(K) coarse ones, divided into sqrt(K) each, cost 2 N sqrt(K).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.clustering.kmeans import KMeansResult, spherical_kmeans
from pipeline.clustering.nearest import Nearest
from pipeline.clustering.rows import Rows, look_at
from pipeline.collectives import Scope, all_sum

PROBES = 4  # coarse clusters whose centres a row is compared with
PASSES = 3  # of Lloyd's iterations over all clusters; further ones gain little
BLOCK = 1 << 16  # rows searched at a time, so that those of one coarse cluster make a matrix


def hierarchical_kmeans(
    features: Tensor,
    num_clusters: int,
    *,
    restarts: int = 1,
    max_iter: int = 300,
    tol: float = 1e-4,
    seed: int = 0,
    empty: Literal["keep", "reseed"] = "reseed",
    fit_rows: int | None = None,
    scope: Scope = Scope.ALL_WORKERS,
) -> KMeansResult:
    """Cluster rows by cosine distance into K >= 10,000 clusters, or fewer.

    Parameters are those of :func:`spherical_kmeans`, which finds about sqrt(K) coarse clusters and then divides each of
    them into its share of K, in proportion to its rows. `restarts`, `max_iter` and `tol` apply to each of these. PASSES
    of Lloyd's iterations then move all centres, since rows of a cluster may lie in several coarse ones.

    Returns
    -------
    KMeansResult
        Labels are the nearest centre among those of the PROBES nearest coarse clusters; a nearer one elsewhere is rare.
        `n_iter` is that of the coarse clusters, and `others` is empty.

    Raises
    ------
    ValueError
        When there are fewer rows than clusters, or a value is not finite.
    """
    rows = look_at(features.detach(), scope, num_clusters)
    fit = rows if fit_rows is None else rows.sample(max(fit_rows, num_clusters), seed)
    divide = partial(
        spherical_kmeans, restarts=restarts, max_iter=max_iter, tol=tol, seed=seed, empty=empty, scope=scope
    )
    coarse = divide(fit.features, max(1, round(math.sqrt(num_clusters))))
    sizes = all_sum(torch.bincount(coarse.labels, minlength=len(coarse.centers)), scope).tolist()
    shares = [(number, share) for number, share in enumerate(_shares(sizes, num_clusters)) if share]
    parts = [divide(fit.features[coarse.labels == number], share).centers for number, share in shares]
    for _ in range(PASSES):
        parts = _moved(fit, parts)
    labels, similarity = nearest_of_parts(rows, parts)
    centers = torch.cat(parts)
    return KMeansResult(
        labels, centers, rows.inertia(similarity), coarse.n_iter, centers.new_empty((0, *centers.shape))
    )


def _shares(sizes: list[int], total: int) -> list[int]:
    """`total` divided in proportion to `sizes`: at least 1 for a size above 0, and never more than the size."""
    shares, left = [], total
    for number, size in enumerate(sizes):
        rest = sizes[number + 1 :]
        fair = round(left * size / max(size + sum(rest), 1))
        least = max(int(size > 0), left - sum(rest))  # the rest cannot take more than its rows
        most = min(size, left - sum(other > 0 for other in rest))
        shares.append(min(max(fair, least), most))
        left -= shares[-1]
    return shares


def _moved(fit: Rows, parts: list[Tensor]) -> list[Tensor]:
    """The parts with each centre moved to the mean of the rows nearest to it; one without rows stays."""
    centers = torch.cat(parts)
    sums = fit.member_sums(nearest_of_parts(fit, parts).labels, len(centers))
    return list(torch.where(sums[:, -1:] > 0, fit.means(sums), centers).split([len(part) for part in parts]))


def nearest_of_parts(rows: Rows, parts: list[Tensor]) -> Nearest:
    """The nearest centre of each row among those of the PROBES parts whose mean directions are nearest.

    Parameters
    ----------
    rows : Rows
        This worker's rows (n, D).
    parts : list of P Tensors (K_p, D)
        Centres, numbered consecutively in this order.
    """
    features = rows.features
    first = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).tolist()
    directions = [F.normalize(part, dim=1) for part in parts]
    coarse = F.normalize(torch.stack([part.mean(dim=0) for part in directions]), dim=1).T
    labels = torch.full((len(features),), first[-1], device=features.device)
    similarity = coarse.new_full((len(features),), -torch.inf)
    for start in range(0, len(features), BLOCK):
        where = slice(start, start + BLOCK)
        chunk = features[where].to(coarse.dtype)
        near = (chunk @ coarse).topk(min(PROBES, len(parts)), dim=1).indices
        _search_parts(chunk, near, directions, first, Nearest(labels[where], similarity[where]))
    return Nearest(labels, similarity / rows.lengths)


def _search_parts(chunk: Tensor, near: Tensor, directions: list[Tensor], first: list[int], best: Nearest) -> None:
    """Improve `best` of rows (m, D) in place, searching only the parts that near (m, P) names."""
    for part, own in enumerate(directions):
        who = (near == part).any(dim=1).nonzero()[:, 0]
        dots, label = (chunk[who] @ own.T).max(dim=1)
        nearer = dots > best.similarity[who]  # parts come in order: on ties the lowest number stays
        best.labels[who] = torch.where(nearer, label + first[part], best.labels[who])
        best.similarity[who] = torch.where(nearer, dots, best.similarity[who])
