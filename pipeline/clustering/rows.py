"""The rows that k-means reads: this worker's part of all rows, in any float format, in memory or mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.clustering.fixed_point import exact_type, step_for, to_steps
from pipeline.clustering.nearest import chunks, row_lengths
from pipeline.collectives import Scope, all_stack, all_sum, rank


@dataclass(frozen=True)
class Rows:
    """This worker's rows, which follow those of the workers before it. They are never copied as a whole.

    Attributes
    ----------
    features : Tensor (n_local, D)
        float16, bfloat16, float32 or float64; each chunk is widened to `dtype` when it is read.
    lengths : Tensor (n_local,) dtype
        Tiny for zero rows.
    exponent : int
        All values of all workers are below 2 ** exponent in magnitude.
    offset, total : int
        Rows of the workers before this one, and of all workers.
    scope : Scope
    """

    features: Tensor
    lengths: Tensor
    exponent: int
    offset: int
    total: int
    scope: Scope

    @property
    def dtype(self) -> torch.dtype:
        return self.lengths.dtype

    @property
    def step(self) -> float:
        """Step at which the sums of all rows' values are exact."""
        return step_for(self.exponent, self.total)

    @property
    def distance_step(self) -> float:
        """Step at which the sum of all rows' distances, 1 - cosine, is exact."""
        return step_for(2, self.total)

    def inertia(self, similarity: Tensor) -> float:
        """Summed distances of all workers' rows, by the cosine (n_local,) of each to its centre."""
        steps = to_steps(1 - similarity, self.distance_step).sum()
        return float(all_sum(steps, self.scope)) * self.distance_step

    def chunks(self, columns: int) -> Iterator[tuple[slice, Tensor]]:
        """Slices and their rows (m, D) as `dtype`, to be multiplied with `columns` centres."""
        for rows in chunks(self.features, columns):
            yield rows, self.features[rows].to(self.dtype)

    def member_sums(self, labels: Tensor, clusters: int) -> Tensor:
        """Each cluster's summed rows, in steps, and their count (clusters, D + 1), by the labels (n_local,)."""
        shape = (clusters, self.features.shape[1] + 1)
        sums = torch.zeros(shape, dtype=exact_type(self.features.device), device=self.features.device)
        for where, chunk in self.chunks(1):
            sums.index_add_(0, labels[where], counted(chunk, self.step))
        return all_sum(sums, self.scope)

    def means(self, sums: Tensor) -> Tensor:
        """Means (..., D) of the members, from sums in steps and counts (..., D + 1); 0 where there are none."""
        return sums[..., :-1].to(self.dtype) * self.step / sums[..., -1:].to(self.dtype).clamp(min=1)

    def sample(self, count: int, seed: int) -> Rows:
        """`count` of all workers' rows, one from each of `count` equal stretches, whatever the number of workers."""
        if count >= self.total:
            return self
        edges = torch.arange(count + 1) * self.total // count
        inside = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        index = edges[:-1] + (inside * edges.diff()).long()
        before, until = torch.searchsorted(
            index, torch.tensor([self.offset, self.offset + len(self.features)])
        ).tolist()
        own = (index[before:until] - self.offset).to(self.features.device)
        return Rows(self.features[own], self.lengths[own], self.exponent, before, count, self.scope)

    def mean_column_variance(self) -> float:
        """Mean over columns of the unbiased variance of all rows; computed about the mean, so that nothing cancels."""
        size, step = self.features.shape[1], self.step
        sums = torch.zeros(size, dtype=exact_type(self.features.device), device=self.features.device)
        for _, chunk in self.chunks(1):
            sums += to_steps(chunk, step).sum(dim=0)
        mean = all_sum(sums, self.scope).to(self.dtype) * (step / self.total)
        square_step = step_for(2 * self.exponent + 2 + size.bit_length(), self.total)
        squares = sums.new_zeros(())
        for _, chunk in self.chunks(1):
            squares += to_steps((chunk - mean).square().sum(dim=1), square_step).sum()
        return float(all_sum(squares, self.scope)) * square_step / max(self.total - 1, 1) / size


def counted(chunk: Tensor, step: float) -> Tensor:
    """Rows (m, D) in steps, and a column of ones that counts them."""
    return F.pad(to_steps(chunk, step), (0, 1), value=1)


def look_at(features: Tensor, scope: Scope, num_clusters: int) -> Rows:
    """Measure and count all workers' rows; ValueError when they are too few for the clusters or not finite."""
    lengths = row_lengths(features)
    broken = (~torch.isfinite(lengths)).sum()
    longest = torch.frexp(lengths.max() if len(lengths) else lengths.new_zeros(())).exponent
    own = torch.stack([torch.full_like(broken, len(lengths)), broken, longest.long()])
    counts, bad, exponents = all_stack(own, scope).T.tolist()
    total = sum(counts)
    if sum(bad):
        raise ValueError(f"{sum(bad)} of {total} feature rows are not finite; the network has diverged: lower optim.lr")
    if not 1 <= num_clusters <= total:
        raise ValueError(f"num_clusters is {num_clusters} for {total} rows; give 1 <= num_clusters <= rows")
    return Rows(features, lengths, max(exponents), sum(counts[: rank(scope)]), total, scope)
