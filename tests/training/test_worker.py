"""Parts of the worker's loop that a whole run shows only by chance."""

from __future__ import annotations

import pytest
import ray.train
import torch
from ray.train import PreemptionInfo

from pipeline.errors import Diverged
from pipeline.training import worker
from pipeline.training.estep import PseudoLabels
from pipeline.training.worker import check_run_finite, draw_weights, preemption_announced, raise_alarms, train_epoch
from tests.helpers.small_run import digits, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> worker.Run:
    made = small_run(*digits(tmp_path_factory.mktemp("digits")))
    groups = made.state.model.groups.features
    made.state.pseudo = PseudoLabels(torch.arange(made.job.manifest.num_images) % len(groups), groups)
    return made


def test_weights_that_are_not_finite_are_told_of_with_their_place(run: worker.Run) -> None:
    weight = next(run.state.model.parameters()).data
    before = weight.clone()
    weight[0] = float("inf")
    with pytest.raises(Diverged, match=r"not finite in epoch 1, at or before step 0.*lower optim\.lr"):
        check_run_finite(run)
    weight.copy_(before)


def test_losses_that_are_not_finite_end_the_epoch_early(run: worker.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "FINITE_STEPS", 2)
    run.state.loss_sums["loss"].fill_(float("nan"))
    with pytest.raises(Diverged, match="not finite in epoch 1, at or before step 2 "):
        train_epoch(run)
    assert (run.state.epoch, run.state.step) == (0, 2)  # of 4 steps
    run.state.loss_sums["loss"].zero_()
    run.state.step = 0


def test_alarms_are_reported_once_and_only_after_the_warm_up(run: worker.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(run.reporter, "message", lines.append)
    collapsed = {"feature_spread": 0.001, "size_entropy": 0.9, "clusters_empty": 0.0}
    healthy = {"feature_spread": 0.5, "size_entropy": 0.9, "clusters_empty": 0.0}
    for epoch, metrics in enumerate([collapsed, collapsed, collapsed, collapsed, healthy, collapsed]):
        run.state.epoch = epoch  # the warm-up is one epoch
        raise_alarms(run, metrics)
    run.state.epoch = 0
    assert lines == [
        f"warning: after epoch {epoch} collapsed: feature_spread is 0.0010 (below 0.01)" for epoch in (2, 5)
    ]


def test_an_epoch_without_e_step_raises_no_alarm(run: worker.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.reporter, "message", lambda line: pytest.fail(line))
    run.state.epoch = 3
    raise_alarms(run, {"loss": 1.0})
    run.state.epoch = 0


def test_throughput_counts_the_images_of_this_process_only(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was resumed after 3 of 4 steps has trained on one batch, not on four."""
    resumed = small_run(*digits(tmp_path_factory.mktemp("digits")), "estep.every=2")
    worker.run_estep(resumed)
    resumed.state.step = 3
    monkeypatch.setattr(worker, "report", lambda run, metrics, save: None)
    train_epoch(resumed)
    worker.finish_epoch(resumed)
    metrics = resumed.state.history[-1]
    assert metrics["images_per_second"] * metrics["seconds_epoch"] == pytest.approx(48)


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
    assert answers(20)
    assert not answers(30)
    announced.append("b")
    assert answers(40)
    run.state.step = 0


def test_the_driver_gets_the_checkpoint_that_it_asks_for(run: worker.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[object] = []
    monkeypatch.setattr(worker, "report", lambda run, metrics, save: saves.append((metrics["step"], save)))
    monkeypatch.setattr(worker, "URGENT_STEPS", 2)
    monkeypatch.setattr(worker, "preemption_announced", lambda run: False)
    wanted = iter([False, True, False])
    monkeypatch.setattr(run.reporter, "checkpoint_requested", lambda: next(wanted))
    for step in range(1, 7):
        run.state.step = step
        worker.save_inside_epoch(run)
    run.state.step = 0
    assert saves == [(4, worker.SYNC)]


def test_balance_waits_for_the_end_of_the_warm_up(
    run: worker.Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    balanced = small_run(*digits(tmp_path_factory.mktemp("digits")), "optim.balance=1", "optim.warmup_epochs=2")
    balanced.state.pseudo = run.state.pseudo
    for epoch, drawn in ((0, False), (1, False), (2, True), (3, True)):
        balanced.state.epoch = epoch
        assert (draw_weights(balanced) is not None) == drawn
    monkeypatch.setattr(run.state, "epoch", 3)
    assert draw_weights(run) is None
