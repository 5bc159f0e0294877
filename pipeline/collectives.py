"""Sums and gathers over the workers of a run; each is the identity in a single process.

Gradient convention: :func:`all_sum` adds up the gradients of all workers in its backward pass. A loss computed
from global sums is the same number on every worker, so after the sum each worker holds W times the gradient of
that loss, and after DistributedDataParallel's average it counts exactly once.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
SMALL = 1 << 18  # up to this many numbers, sending them to every worker costs less than a second round of messages


class Scope(Enum):
    """The workers that a computation spans."""

    ALL_WORKERS = auto()
    """Each worker holds its own rows of a global array."""
    THIS_WORKER = auto()
    """Every worker holds all rows and computes by itself: its world size is 1, and nothing is sent."""


def world_size(scope: Scope = Scope.ALL_WORKERS) -> int:
    """Number of workers in `scope`; 1 when no process group runs."""
    return dist.get_world_size() if scope is Scope.ALL_WORKERS and dist.is_initialized() else 1


def rank(scope: Scope = Scope.ALL_WORKERS) -> int:
    """This worker's number within `scope`, 0 to W-1."""
    return dist.get_rank() if world_size(scope) > 1 else 0


class RowRange(NamedTuple):
    """The contiguous rows [start, stop) of a global array of `total` rows that one worker owns."""

    start: int
    stop: int
    total: int

    @property
    def size(self) -> int:
        """Number of own rows."""
        return self.stop - self.start

    @property
    def share(self) -> float:
        """Own rows times W over all rows: the factor that makes an average over workers a mean over rows."""
        return self.size * world_size() / self.total


def row_range(total: int, of_rank: int | None = None, scope: Scope = Scope.ALL_WORKERS) -> RowRange:
    """A worker's part of an array that is split evenly: contiguous, in rank order, sizes differ by at most one."""
    workers, r = world_size(scope), rank(scope) if of_rank is None else of_rank
    return RowRange(total * r // workers, total * (r + 1) // workers, total)


def equal_rows(count: int) -> RowRange:
    """This worker's rows of a global batch in which every worker has `count`, in rank order."""
    return RowRange(count * rank(), count * (rank() + 1), count * world_size())


class _Sum(torch.autograd.Function):
    """The total of the workers' x, with the gradient that `attach_sum` describes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, total: Tensor, shared: bool) -> Tensor:
        ctx.shared = shared
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * world_size() if ctx.shared else _sum(grad), None, None


def _sum(x: Tensor) -> Tensor:
    """Sum over all workers. Small tensors take one exchange, which halves the latency that dominates their cost."""
    if x.numel() * world_size() <= SMALL:
        return all_stack(x).sum(dim=0)
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def all_sum(x: Tensor, scope: Scope = Scope.ALL_WORKERS) -> Tensor:
    """Sum of `x` over the workers, differentiable; the backward pass sums the workers' gradients."""
    return cast(Tensor, _Sum.apply(x, _sum(x.detach()), False)) if world_size(scope) > 1 else x


@torch.no_grad()
def sum_together(*parts: Tensor) -> tuple[Tensor, ...]:
    """Sums of tensors of one type over the workers, in one exchange. No gradient: `attach_sum` gives it afterwards."""
    if world_size() == 1:
        return tuple(part.detach() for part in parts)
    totals = _sum(torch.cat([part.flatten() for part in parts])).split([part.numel() for part in parts])
    return tuple(total.view_as(part) for total, part in zip(totals, parts, strict=True))


def attach_sum(x: Tensor, total: Tensor, *, shared: bool = False) -> Tensor:
    """`total`, the sum of `x` by `sum_together`, with the gradient that `all_sum` would have.

    Sums that were exchanged one after another thus exchange their gradients together, in one backward pass. `shared`
    promises that every worker computes the same loss from the total: then the workers' gradients are equal, their sum
    is W times the local one, and nothing is exchanged.
    """
    if world_size() == 1:
        return x
    return cast(Tensor, _Sum.apply(x, total, shared))


def all_stack(x: Tensor, scope: Scope = Scope.ALL_WORKERS) -> Tensor:
    """The workers' tensors `x`, all of one shape, stacked in rank order: (W, *x.shape). No gradient."""
    if world_size(scope) == 1:
        return x[None]
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts)


def gather_rows(x: Tensor, scope: Scope = Scope.ALL_WORKERS) -> Tensor:
    """Rows of all workers in rank order, on every worker; the numbers of rows may differ. No gradient."""
    counts = all_stack(torch.tensor(len(x), device=x.device), scope)
    padded = x.new_zeros((int(counts.max()), *x.shape[1:]))
    padded[: len(x)] = x
    return torch.cat([part[:n] for part, n in zip(all_stack(padded, scope), counts.tolist(), strict=True)])


def from_rank_zero(x: Tensor) -> Tensor:
    """Rank 0's value of `x` on every worker; `x` has the same shape everywhere. No gradient."""
    if world_size() > 1:
        x = x.contiguous()
        dist.broadcast(x, src=0)
    return x


def object_from_rank_zero(value: T) -> T:
    """Rank 0's value, pickled, on every worker."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def objects_of_all(value: T) -> list[T]:
    """The workers' values, pickled, in rank order, on every worker."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def gather_to_rank_zero(x: Tensor) -> Tensor | None:
    """Rows of all workers in rank order, on rank 0 alone; the numbers of rows may differ. No gradient.

    All workers call it. The others get None, and never hold more than their own rows.
    """
    if world_size() == 1:
        return x
    counts = all_stack(torch.tensor(len(x), device=x.device)).tolist()
    if rank() > 0:
        _exchange([dist.P2POp(dist.isend, x.contiguous(), 0)] if len(x) else [])
        return None
    joined = x.new_empty((sum(counts), *x.shape[1:]))
    mine, *others = joined.split(counts)
    mine.copy_(x)
    _exchange([dist.P2POp(dist.irecv, part, r) for r, part in enumerate(others, 1) if len(part)])
    return joined


def _exchange(operations: list[dist.P2POp]) -> None:
    """Run point-to-point messages at the same time, and wait for all of them."""
    for work in dist.batch_isend_irecv(operations) if operations else []:
        work.wait()
