"""Sampling by pseudo-label: the weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.data.sampling import MOST_DRAWS, sampling_weights

SIZES = [400, 200, 100, 50, 0, 30]
LABELS = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
TOTAL = len(LABELS)
OF_ALL = torch.randperm(TOTAL, generator=torch.Generator().manual_seed(1))
SHUFFLED = LABELS[OF_ALL]  # as ingest shuffles a source


def weights_of(labels: Tensor, balance: float) -> Tensor:
    """The weights of a worker that has all images."""
    return sampling_weights(labels, torch.bincount(labels), balance)


def mass(weights: Tensor, labels: Tensor = SHUFFLED) -> Tensor:
    """Draws of each cluster."""
    return torch.bincount(labels, weights, minlength=len(SIZES))


def test_weights_fall_with_the_size_of_the_cluster() -> None:
    weights = weights_of(SHUFFLED, 0.5)
    sizes = torch.tensor(SIZES).double()[SHUFFLED]
    assert torch.allclose(weights / weights[0], (sizes / sizes[0]) ** -0.5)
    assert float(weights.sum()) == pytest.approx(TOTAL)


def test_at_one_every_cluster_that_has_images_is_drawn_equally_often() -> None:
    drawn = mass(weights_of(SHUFFLED, 1.0))
    expected = torch.full((6,), TOTAL / 5, dtype=torch.float64)
    expected[4] = 0
    assert torch.allclose(drawn, expected)


def test_at_zero_every_image_is_drawn_once() -> None:
    assert weights_of(SHUFFLED, 0.0).equal(torch.ones(TOTAL, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [[1000, 1], [10_000, 1, 1, 2, 30, 400], [5000] + [1] * 50, [7]])
def test_an_outlier_is_not_drawn_over_and_over(sizes: list[int]) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    weights = weights_of(labels, 1.0)
    assert float(weights.max()) <= MOST_DRAWS
    assert float(weights.sum()) == pytest.approx(len(labels))
    free = weights < MOST_DRAWS
    totals = mass(weights, labels)[labels[free].unique()]
    assert torch.allclose(totals, totals[0])
