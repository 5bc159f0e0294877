"""Health of a run: metrics that mean what their names say, and one judgement for a run as for a search."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.errors import Diverged
from pipeline.training.health import alarms, check_finite, collapse, rank_spread, size_metrics
from tests.helpers.workers import Workers

HEALTHY = {"feature_spread": 0.8, "size_entropy": 0.95, "clusters_empty": 0.0, "acc": 0.9, "nmi": 0.8}


def test_sizes_and_their_entropy() -> None:
    metrics = size_metrics(torch.tensor([3, 1, 0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(3)
    assert metrics == pytest.approx(
        {"cluster_smallest": 0, "cluster_largest": 3, "clusters_empty": 1, "size_entropy": entropy}
    )


def test_a_healthy_run_raises_no_alarm() -> None:
    assert collapse(HEALTHY) is None
    assert alarms(HEALTHY, 10) == {}
    assert alarms({"size_entropy": 0.95}, 10) == {}  # without classes, and without an E-step's other metrics


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"feature_spread": 0.002}, "collapse", "collapsed: feature_spread is 0.0020 (below 0.01)"),
        ({"size_entropy": 0.01}, "collapse", "collapsed: size_entropy is 0.0100 (below 0.1)"),
        ({"clusters_empty": 3.0}, "empty clusters", "3 of 10 clusters are empty"),
        ({"acc": 0.97, "nmi": 0.01}, "empty scores", "most images are of one class"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(change: dict[str, float], kind: str, sentence: str) -> None:
    found = alarms(HEALTHY | change, 10)
    assert list(found) == [kind]
    assert sentence in found[kind]
    assert (collapse(HEALTHY | change) is not None) == (kind == "collapse")


def _finite(rank: int, bad_rank: int) -> str:
    loss = torch.tensor(float("nan") if rank == bad_rank else 1.0)
    try:
        check_finite({"loss": loss}, [torch.nn.Parameter(torch.ones(3))], "in epoch 2")
    except Diverged as error:
        return str(error)
    return ""


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_all_workers_stop_when_one_has_a_loss_that_is_not_finite(pair: Workers, bad_rank: int) -> None:
    first, second = pair.run(_finite, bad_rank)
    assert first == second
    assert "losses or weights are not finite in epoch 2 (sums of losses: {'loss': nan}); lower optim.lr" in first


def _spread(rank: int) -> tuple[float, float]:
    return rank_spread(torch.ones(3)), rank_spread(torch.tensor([1.0, 1.0 + rank / 4]))


def test_rank_spread_sees_any_difference(pair: Workers) -> None:
    assert pair.run(_spread) == [(0.0, 0.25)] * 2
