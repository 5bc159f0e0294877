"""How often workers talk to each other in a step: each exchange is a wait for the slower one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pipeline.data.shards import Manifest
from pipeline.training.estep import run_estep
from pipeline.training.mstep import train_step
from tests.helpers.small_run import digits, give_labels, small_run
from tests.helpers.workers import Workers

LAYERS = 5  # BatchNorms of an encoder `tiny` and its projector


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Manifest]:
    return digits(tmp_path_factory.mktemp("digits"))


def _exchanges_of_a_step(rank: int, data: tuple[Tensor, Manifest]) -> Counter[str]:
    """Of the third, by the name of the collective."""
    run = small_run(*data, "optim.warmup_epochs=0")
    give_labels(run)
    batches = run.feed.inputs.epoch(0)
    for _ in range(2):  # DistributedDataParallel arranges its buckets by the first, and says so in the second
        train_step(run, next(batches))
    return exchanges_of(lambda: train_step(run, next(batches)))


def _exchanges_of_an_estep(rank: int, data: tuple[Tensor, Manifest]) -> tuple[Counter[str], float]:
    """Of the second, and the iterations of its k-means."""
    run = small_run(*data, "estep.restarts=1")
    run_estep(run)
    return exchanges_of(lambda: run_estep(run)), run.state.history[-1]["kmeans_iterations"]


def exchanges_of(action: Callable[[], Any]) -> Counter[str]:
    """How many an action makes, by the name of the collective."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        action()
    return Counter(event.name for event in record.events() if event.name.startswith("gloo:"))


def test_a_step_has_no_more_exchanges_than_it_needs(pair: Workers, data: tuple[Tensor, Manifest]) -> None:
    statistics = 2 * LAYERS + 1  # of both networks and the predictor; then of gradients, which the target lacks
    groups_and_prototypes = 2 + 1
    needed = statistics + LAYERS + 1 + groups_and_prototypes
    for found in pair.run(_exchanges_of_a_step, data):
        assert found == {"gloo:all_gather": needed, "gloo:all_reduce": 1}  # one of gradients


def test_an_estep_sends_no_features_or_labels_and_asks_once_a_pass(
    pair: Workers, data: tuple[Tensor, Manifest]
) -> None:
    rows = 2  # an exchange for their numbers, and one for themselves
    clusters = 1 + rows + rows + 2 + 1  # look at them, sample, starts, variance, the pass of the starts
    health = 1 + 1 + 1  # clusters' sizes, how many pairs of old and new ones a worker has, the features' spread
    probe, spread = 2 * rows + 1, 1  # its features with their labels, its views, the margin; the groups' spread
    for rank, (exchanges, iterations) in enumerate(pair.run(_exchanges_of_an_estep, data)):
        pairs = "gloo:send" if rank else "gloo:recv"
        assert exchanges == {"gloo:all_gather": clusters + iterations + health + probe + spread, pairs: 1}
