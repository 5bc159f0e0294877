"""Health of a run: metrics that mean what their names say, and what is not finite found on all workers alike."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.training.health import non_finite, rank_spread, size_metrics
from tests.helpers.workers import Workers


def test_sizes_and_their_entropy() -> None:
    metrics = size_metrics(torch.tensor([3, 1, 0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(3)
    assert metrics == pytest.approx(
        {"cluster_smallest": 0, "cluster_largest": 3, "clusters_empty": 1, "size_entropy": entropy}
    )


def _non_finite(rank: int, bad_rank: int, bad: str) -> str | None:
    value = torch.tensor(float("nan") if rank == bad_rank else 1.0)
    sound = torch.ones((), dtype=torch.float64)
    loss, buffer = (value.double(), sound.float()) if bad == "loss" else (sound, value)
    return non_finite({"loss": loss}, [torch.ones(3), buffer, torch.tensor(3)], "in epoch 2")


@pytest.mark.parametrize("bad_rank", [0, 1])
@pytest.mark.parametrize(("bad", "total"), [("loss", "nan"), ("buffer", "2.0")])
def test_all_workers_learn_of_what_is_not_finite_on_one(pair: Workers, bad_rank: int, bad: str, total: str) -> None:
    first, second = pair.run(_non_finite, bad_rank, bad)
    assert first == second
    assert f"losses or weights are not finite in epoch 2 (sums of losses: {{'loss': {total}}}); lower optim" in first


def test_finite_losses_and_weights_are_sound() -> None:
    assert _non_finite(0, 1, "loss") is None


def _spread(rank: int) -> tuple[float, float]:
    return rank_spread(torch.ones(3)), rank_spread(torch.tensor([1.0, 1.0 + rank / 4]))


def test_rank_spread_sees_any_difference(pair: Workers) -> None:
    assert pair.run(_spread) == [(0.0, 0.25)] * 2
