"""Parts of the worker's loop that a whole run shows only by chance."""

from __future__ import annotations

import pytest
import ray.train
import torch
from ray.train import PreemptionInfo

from pipeline.errors import Diverged
from pipeline.training import worker
from pipeline.training.estep import PseudoLabels
from pipeline.training.worker import check_finite, preemption_announced, train_epoch
from tests.helpers.small_run import digits, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> worker.Run:
    made = small_run(*digits(tmp_path_factory.mktemp("digits")))
    groups = made.state.model.groups.features
    made.state.pseudo = PseudoLabels(torch.arange(made.manifest.num_images) % len(groups), groups)
    return made


def test_what_is_finite_passes(run: worker.Run) -> None:
    check_finite(run)


def test_weights_that_are_not_finite_are_told_of_with_their_place(run: worker.Run) -> None:
    weight = next(run.state.model.parameters()).data
    before = weight.clone()
    weight[0] = float("inf")
    with pytest.raises(Diverged, match=r"not finite in epoch 1, at or before step 0.*lower optim\.lr"):
        check_finite(run)
    weight.copy_(before)


def test_losses_that_are_not_finite_end_the_epoch(run: worker.Run) -> None:
    run.state.loss_sums[3] = float("nan")
    with pytest.raises(Diverged, match="not finite in epoch 1"):
        train_epoch(run)
    assert run.state.epoch == 0  # the epoch does not count as done
    run.state.loss_sums.zero_()


def test_each_announced_node_is_answered_once(run: worker.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[str] = []

    def info() -> PreemptionInfo | None:
        return PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={n: [0] for n in announced}) or None

    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: info() if announced else None)

    def answers(step: int) -> bool:
        run.state.step = step
        return preemption_announced(run)

    assert not answers(10)
    announced.append("a")
    assert not answers(11)  # looked for only now and then
    assert answers(20)
    assert not answers(30)
    announced.append("b")
    assert answers(40)
    run.state.step = 0
