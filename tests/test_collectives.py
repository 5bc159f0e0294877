"""Every collective: value and gradient on two workers against one process."""

from __future__ import annotations

import pytest
import torch

from pipeline import collectives as c
from tests.helpers.workers import Workers


def _sum_and_gradient(rank: int, times: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.tensor([1.0, 2.0]).repeat(times) * (rank + 1)
    x.requires_grad_()
    total = c.all_sum(x)
    (total**2).sum().backward()
    return total.detach(), x.grad


@pytest.mark.parametrize("times", [1, c.SMALL])  # one exchange, and a reduction
def test_all_sum_adds_values_and_gradients(pair: Workers, times: int) -> None:
    for total, gradient in pair.run(_sum_and_gradient, times):
        assert total.tolist() == [3.0, 6.0] * times
        assert gradient.tolist() == [12.0, 24.0] * times  # 2 * total, once from each worker's loss


def test_all_sum_is_the_identity_in_one_process() -> None:
    x = torch.ones(3, requires_grad=True)
    assert c.all_sum(x) is x


def _gather(rank: int) -> torch.Tensor:
    return c.gather_rows(torch.arange(2 + rank)[:, None] + 10 * rank)


def test_gather_rows_takes_unequal_numbers_of_rows(pair: Workers) -> None:
    for rows in pair.run(_gather):
        assert rows[:, 0].tolist() == [0, 1, 10, 11, 12]


def _exchange_objects(rank: int) -> list[dict[str, int]]:
    return c.objects_of_all({"rank": rank})


def test_objects_of_all_are_in_rank_order_on_every_worker(pair: Workers) -> None:
    assert pair.run(_exchange_objects) == [[{"rank": 0}, {"rank": 1}]] * 2
    assert c.objects_of_all("alone") == ["alone"]


def _gather_to_zero(rank: int, sizes: list[int]) -> torch.Tensor | None:
    start, size = sum(sizes[:rank]), sizes[rank]
    rows = torch.arange(start, start + size, dtype=torch.int32)
    one, two = c.gather_to_rank_zero(rows), c.gather_to_rank_zero(rows[:, None].expand(-1, 2))
    assert (one is None) == (two is None)
    return None if one is None or two is None else torch.cat([one[:, None], two], dim=1)


@pytest.mark.parametrize("sizes", [[7, 0, 20], [0, 3, 1], [1, 0, 0], [0, 0, 0]])
def test_rank_zero_alone_gets_the_rows_of_all(trio: Workers, sizes: list[int]) -> None:
    joined, *others = trio.run(_gather_to_zero, sizes)
    assert joined.dtype == torch.int32
    assert joined.tolist() == [[row] * 3 for row in range(sum(sizes))]
    assert others == [None, None]


def test_one_process_is_rank_zero() -> None:
    assert _gather_to_zero(0, [2]).tolist() == [[0, 0, 0], [1, 1, 1]]


def _ranges(rank: int) -> tuple[c.RowRange, float]:
    own = c.row_range(5)
    return own, own.share


def test_row_ranges_cover_all_rows_and_shares_average_to_one(pair: Workers) -> None:
    (first, share_0), (second, share_1) = pair.run(_ranges)
    assert (first.start, first.stop, second.start, second.stop) == (0, 2, 2, 5)
    assert (share_0 + share_1) / 2 == pytest.approx(1)


def _among_this_worker(rank: int) -> tuple[int, int, torch.Tensor, list[list[float]], list[float]]:
    x, only = torch.tensor([rank + 1.0], requires_grad=True), c.Scope.THIS_WORKER
    (c.all_sum(x, only) ** 2).sum().backward()
    stacked, rows = c.all_stack(x.detach(), only), c.gather_rows(x.detach(), only)
    return c.world_size(only), c.rank(only), x.grad, stacked.tolist(), rows.tolist()


def test_among_this_worker_alone_every_collective_is_the_identity(pair: Workers) -> None:
    for number, (size, rank, gradient, stacked, rows) in enumerate(pair.run(_among_this_worker)):
        own = number + 1.0
        assert (size, rank, stacked, rows) == (1, 0, [[own]], [own])
        assert gradient.tolist() == [2 * own]  # of this worker's loss alone


def _from_zero(rank: int) -> float:
    return float(c.from_rank_zero(torch.tensor(rank + 5.0)))


def test_rank_zero_speaks_for_all(pair: Workers) -> None:
    assert pair.run(_from_zero) == [5.0, 5.0]
