"""Greedy k-means++: where the centres of k-means start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.clustering.fixed_point import step_for, to_steps


class Seeding(NamedTuple):
    """Rows chosen by k-means++: their indices (R, K), and the rows themselves (R, K, D)."""

    rows: Tensor
    centers: Tensor


def kmeans_plus_plus(features: Tensor, first: Tensor, uniforms: Tensor) -> Seeding:
    """Greedy k-means++ on cosine distance, for R restarts at once (Arthur and Vassilvitskii 2007).

    Parameters
    ----------
    features : Tensor (n, D)
        All rows to choose from, float32 or float64.
    first : Tensor (R,) int64
        Each restart's first row.
    uniforms : Tensor (R, K-1, L)
        In [0, 1). Each further centre is the best of L candidates, drawn with probability proportional to the
        distance to the nearest centre so far; the best leaves the smallest sum of distances, the first on ties.
    """
    directions, step = F.normalize(features, dim=1), step_for(2, len(features))
    chosen = [first]
    nearest = _distances(directions, first[:, None])[:, 0]
    for step_uniforms in uniforms.unbind(1):
        candidates = _draw(to_steps(nearest, step), step_uniforms)
        distances = torch.minimum(_distances(directions, candidates), nearest[:, None])
        pick = to_steps(distances, step).sum(dim=2).argmin(dim=1, keepdim=True)
        chosen.append(candidates.gather(1, pick)[:, 0])
        nearest = torch.take_along_dim(distances, pick[..., None], dim=1)[:, 0]
    rows = torch.stack(chosen, dim=1)
    return Seeding(rows, features[rows])


def draws(total: int, num_clusters: int, seeds: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """First rows (R,) and uniform numbers (R, K-1, L) for k-means++, each restart's from its own seed."""
    trials = 2 + int(math.log(num_clusters))
    first = torch.empty(len(seeds), dtype=torch.int64)
    uniforms = torch.empty(len(seeds), num_clusters - 1, trials)
    for restart, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        first[restart] = torch.randint(total, (), generator=generator)
        uniforms[restart] = torch.rand(num_clusters - 1, trials, generator=generator)
    return first.to(device), uniforms.to(device)


def _draw(nearest: Tensor, uniforms: Tensor) -> Tensor:
    """Rows (R, L): where the cumulative distance, nearest (R, n) summed, first reaches uniforms (R, L) of its sum."""
    cumulative = nearest.cumsum(dim=1)
    target = (uniforms * cumulative[:, -1:]).to(cumulative.dtype)
    return torch.searchsorted(cumulative, target).clamp(max=nearest.shape[1] - 1)


def _distances(directions: Tensor, chosen: Tensor) -> Tensor:
    """1 - cosine of the chosen (R, L) of unit rows (n, D) to all of them: (R, L, n)."""
    return (1 - directions[chosen.flatten()] @ directions.T).unflatten(0, chosen.shape)
