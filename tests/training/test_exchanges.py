"""How often workers talk to each other in a step: on a CPU each exchange costs about a millisecond."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pipeline.data.shards import Manifest
from pipeline.training.estep import PseudoLabels
from pipeline.training.worker import train_step
from tests.helpers.small_run import IMAGES, digits, small_run
from tests.helpers.workers import Workers

LAYERS = 5  # BatchNorms of an encoder `tiny` and its projector


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Manifest]:
    return digits(tmp_path_factory.mktemp("digits"))


def _exchanges_of_a_step(rank: int, data: tuple[Tensor, Manifest]) -> Counter[str]:
    run = small_run(*data, "optim.warmup_epochs=0")
    groups = run.state.model.groups.features
    run.state.pseudo = PseudoLabels(torch.arange(IMAGES) % len(groups), groups)
    batches = run.inputs.epoch(0)
    for _ in range(2):  # DistributedDataParallel arranges its buckets by the first, and says so in the second
        train_step(run, next(batches))
    with profile(activities=[ProfilerActivity.CPU]) as record:
        train_step(run, next(batches))
    return Counter(event.name for event in record.events() if event.name.startswith("gloo:"))


def test_a_step_has_no_more_exchanges_than_it_needs(pair: Workers, data: tuple[Tensor, Manifest]) -> None:
    statistics = 2 * LAYERS + 1  # of both networks and the predictor; then of gradients, which the target lacks
    groups_and_prototypes = 2 + 1
    for found in pair.run(_exchanges_of_a_step, data):
        assert found == {"gloo:all_gather": statistics + LAYERS + 1 + groups_and_prototypes, "gloo:all_reduce": 1}
