"""Sums that are exact for every order and split, and close to those in float64."""

from __future__ import annotations

import pytest
import torch

from pipeline.clustering.fixed_point import exact_type, step_for, to_steps


def _values(rows: int = 5000) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e-4, 1e3])


@pytest.mark.parametrize("pieces", [1, 7, 5000])
def test_the_sum_of_any_pieces_in_any_order_is_the_same(pieces: int) -> None:
    values = _values()
    steps = to_steps(values, step_for(13, len(values)))
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(pieces))
    parts = torch.stack([part.sum(dim=0) for part in steps[order].tensor_split(pieces)])
    assert parts.sum(dim=0).equal(steps.sum(dim=0))


def test_what_is_added_can_be_taken_away_without_error() -> None:
    steps = to_steps(_values(), step_for(13, 5000))
    total = steps.sum(dim=0)
    for row in steps[:100]:
        total -= row
    assert total.equal(steps[100:].sum(dim=0))


def test_sums_agree_with_those_in_float64() -> None:
    values = _values()
    step = step_for(13, len(values))
    torch.testing.assert_close(to_steps(values, step).sum(dim=0) * step, values.double().sum(dim=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 60_000, 10_000_000])
def test_float32_and_float16_values_up_to_a_hundred_thousandth_of_the_bound_are_exact(count: int) -> None:
    step = step_for(0, count)
    values = 1 - torch.rand(1000, generator=torch.Generator().manual_seed(1)) / 2
    for narrow in (values, values.half(), values * 2.0**-4):
        assert (to_steps(narrow.float(), step) * step).equal(narrow.double())


def test_the_largest_sum_is_still_a_whole_number_of_float64() -> None:
    assert 2.0**7 / step_for(7, 1000) * 1000 <= 2**53


def test_a_gpu_holds_them_as_integers() -> None:
    assert exact_type(torch.device("cuda")) == torch.int64
