"""Parts of the worker's loop that a whole run shows only by chance."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch
import torch.distributed as dist
from ray.train import PreemptionInfo
from torch import Tensor

from pipeline.alarms import all_alarms
from pipeline.data.shards import Manifest
from pipeline.errors import Diverged
from pipeline.method.losses import unit
from pipeline.training import estep, mstep, saving, worker
from pipeline.training.estep import encode_all, run_estep
from pipeline.training.halting import check_run_finite, raise_alarms
from pipeline.training.loop import mean_losses
from pipeline.training.mstep import draw_weights, train_epoch
from pipeline.training.rollback import ROLLBACKS, Halt
from pipeline.training.run import Run
from pipeline.training.saving import ASYNC, SYNC, take_new_preemptions
from tests.helpers.golden import assert_close
from tests.helpers.small_run import digits, give_labels, small_job, small_run, snapshot
from tests.helpers.workers import Workers


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = small_run(*digits(tmp_path_factory.mktemp("digits")))
    give_labels(made)
    return made


def test_weights_that_are_not_finite_are_told_of_with_their_place(run: Run) -> None:
    weight = next(run.state.model.parameters()).data
    before = weight.clone()
    weight[0] = float("inf")
    with pytest.raises(Diverged, match=r"not finite in epoch 1, at or before step 0.*lower optim\.lr"):
        check_run_finite(run)
    weight.copy_(before)


def test_losses_that_are_not_finite_end_the_epoch_early(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mstep, "FINITE_STEPS", 2)
    run.state.loss_sums["loss"].fill_(float("nan"))
    with pytest.raises(Diverged, match="not finite in epoch 1, at or before step 2 "):
        train_epoch(run)
    assert (run.state.epochs_done, run.state.step) == (0, 2)  # of 4 steps
    run.state.loss_sums["loss"].zero_()
    run.state.step = 0


COLLAPSED = {"feature_spread": 0.001, "size_entropy": 0.9}


@pytest.fixture
def alarmed(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Gives a run a history after its warm-up of one epoch, with levels of alarms; returns its lines and tags."""
    lines: list[str] = []
    monkeypatch.setattr(run.reporter, "message", lines.append)
    monkeypatch.setattr(run.reporter, "writer", SimpleNamespace(tag=lambda key, value: lines.append(f"{key}={value}")))

    def set_up(*epochs: dict[str, float], **levels: str) -> list[str]:
        alarms = [f"alarms.{kind}={level}" for kind, level in levels.items()]
        monkeypatch.setattr(run, "job", small_job(run.job.manifest, f"storage={tmp_path}", "name=mine", *alarms))
        monkeypatch.setattr(run.state, "history", [{"epoch": 2.0 + n, **epoch} for n, epoch in enumerate(epochs)])
        monkeypatch.setattr(run.state, "epochs_done", len(epochs) + 1)
        return lines

    return set_up


def test_alarms_are_reported_once_and_tagged(run: Run, alarmed: Callable[..., list[str]]) -> None:
    lines = alarmed({"acc": 0.9, "nmi": 0.01}, COLLAPSED)
    raise_alarms(run)
    assert lines == [
        "warning: after epoch 3 collapsed: feature_spread is 0.0010 (below 0.01); lower optim.lr, or raise "
        "method.target_momentum",
        "alarms=empty_scores, collapse",
    ]
    lines = alarmed({"acc": 0.9, "nmi": 0.01}, COLLAPSED, COLLAPSED)
    raise_alarms(run)
    assert len(lines) == 2


@pytest.mark.parametrize("level", ["stop", "roll_back"])
def test_an_alarm_halts_for_as_long_as_it_lasts(run: Run, alarmed: Callable[..., list[str]], level: str) -> None:
    """A run that is resumed with another level stops although the alarm is not new."""
    lines = alarmed(COLLAPSED, COLLAPSED, collapse=level)
    with pytest.raises(Halt) as found:
        raise_alarms(run)
    assert found.value.returned()["halt"].items() >= {"level": level, "epoch": 3, "kind": "collapse"}.items()
    assert lines[0].startswith(f"alarms.collapse={level} halts the run at epoch 3: collapsed: feature_spread is 0.0010")


def test_an_ignored_alarm_is_not_raised(run: Run, alarmed: Callable[..., list[str]]) -> None:
    lines = alarmed(COLLAPSED, collapse="ignore", empty_clusters="stop")
    raise_alarms(run)
    assert lines == []


def _agreed(rank: int, manifest: Manifest) -> str:
    made = small_run(torch.zeros(200, 16, 16, 3, dtype=torch.uint8), manifest, "alarms.empty_scores=stop", "name=none")
    made.state.history, made.state.epochs_done = [{"epoch": 2.0} | ({"acc": 0.9, "nmi": 0.01} if rank == 0 else {})], 2
    try:
        raise_alarms(made)
    except Halt as halt:
        return halt.alarm.kind
    return ""


def test_all_workers_halt_by_what_rank_0_alone_can_see(run: Run, pair: Workers) -> None:
    assert pair.run(_agreed, run.job.manifest) == ["empty_scores"] * 2


def _spoil_gradients(made: Run, steps: Collection[int]) -> None:
    """Gradients of one weight become NaN in these steps, on this worker alone."""
    weight = next(made.state.model.networks.online.parameters())
    weight.register_hook(lambda grad: grad * (float("nan") if made.state.step in steps else 1))


def _train_with_broken_gradients(rank: int, images: Tensor, manifest: Manifest) -> tuple[dict[str, Any], float, int]:
    made = small_run(images, manifest, double=True)
    run_estep(made)
    if rank == dist.get_world_size() - 1 if dist.is_initialized() else True:
        _spoil_gradients(made, {1, 3})
    train_epoch(made)
    check_run_finite(made)  # nothing is damaged
    return snapshot(made), mean_losses(made)["loss"], int(made.state.skipped)


def test_steps_with_gradients_that_are_not_finite_are_skipped_on_all_workers(
    tmp_path_factory: pytest.TempPathFactory, pair: Workers
) -> None:
    """Two workers are one in this too, although only one of the two has the bad value."""
    data = digits(tmp_path_factory.mktemp("digits"))
    expected, loss, skipped = _train_with_broken_gradients(0, *data)
    assert skipped == 2
    for found, other_loss, other_skipped in pair.run(_train_with_broken_gradients, *data):
        assert (other_loss, other_skipped) == (pytest.approx(loss, rel=1e-9), 2)
        for name, value in found.items():
            assert_close(value, expected[name], rtol=1e-7)


@pytest.mark.parametrize("level", ["warn", "stop"])
def test_skipped_steps_become_an_alarm(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    made = small_run(
        *digits(tmp_path_factory.mktemp("digits")), f"alarms.not_finite={level}", "estep.every=4", "name=none"
    )
    saves: list[object] = []
    monkeypatch.setattr(worker, "report", lambda run, metrics, save: saves.append(save))
    monkeypatch.setattr(saving, "take_new_preemptions", lambda run: False)
    run_estep(made)
    _spoil_gradients(made, {1})
    if level == "stop":
        with pytest.raises(Halt, match="1 step was skipped"):
            train_epoch(made)
        assert saves == []
        return
    train_epoch(made)
    worker.finish_epoch(made)
    assert [alarm.kind for alarm in all_alarms(made.state.history, made.job.alarm_facts)] == ["not_finite"]
    assert made.state.history[-1]["steps_skipped"] == 1
    assert int(made.state.skipped) == 0


def test_a_run_with_weights_that_are_not_finite_is_halted_by_level(run: Run, alarmed: Callable[..., list[str]]) -> None:
    lines = alarmed({}, not_finite="roll_back")
    run.job.folder.make().write(ROLLBACKS, {"rollbacks": [{"kind": "collapse"}]})
    groups, before = run.state.model.groups, run.state.model.groups.features
    groups.features = before * float("nan")
    with pytest.raises(Halt, match="losses or weights are not finite in epoch 3, at or before step 0"):
        check_run_finite(run)
    groups.features = before
    assert lines[-1] == "alarms=collapse, not_finite"


def test_throughput_counts_the_images_of_this_process_only(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was resumed after 3 of 4 steps has trained on one batch, not on four."""
    resumed = small_run(*digits(tmp_path_factory.mktemp("digits")), "estep.every=2")
    run_estep(resumed)
    resumed.state.step = 3
    monkeypatch.setattr(worker, "report", lambda run, metrics, save: None)
    monkeypatch.setattr(saving, "take_new_preemptions", lambda run: False)
    train_epoch(resumed)
    worker.finish_epoch(resumed)
    metrics = resumed.state.history[-1]
    assert metrics["images_per_second"] * metrics["seconds_epoch"] == pytest.approx(48)


def test_each_announced_node_is_answered_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[str] = []

    def info() -> PreemptionInfo | None:
        return PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={n: [0] for n in announced}) or None

    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: info() if announced else None)

    def answers(step: int) -> bool:
        run.state.step = step
        return take_new_preemptions(run)

    assert not answers(10)
    announced.append("a")
    assert answers(20)
    assert not answers(30)
    announced.append("b")
    assert answers(40)
    run.state.step = 0


def test_the_driver_gets_the_checkpoint_that_it_asks_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[object] = []
    monkeypatch.setattr(saving, "report", lambda run, metrics, save: saves.append((metrics["step"], save)))
    monkeypatch.setattr(saving, "URGENT_STEPS", 2)
    monkeypatch.setattr(saving, "take_new_preemptions", lambda run: False)
    wanted = iter([False, True, False])
    monkeypatch.setattr(run.reporter, "take_request", lambda: next(wanted))
    for step in range(1, 7):
        run.state.step = step
        saving.save_inside_epoch(run)
    run.state.step = 0
    assert saves == [(4, SYNC)]


def test_a_request_in_an_epoch_of_few_steps_is_answered_at_its_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "take_new_preemptions", lambda run: False)
    wanted = iter([False, True])
    monkeypatch.setattr(run.reporter, "take_request", lambda: next(wanted))
    monkeypatch.setattr(run.state, "epochs_done", 3)  # of 4, and the preset saves each 10
    assert saving.save_after_epoch(run) is None
    assert saving.save_after_epoch(run) == SYNC
    monkeypatch.setattr(run.state, "epochs_done", 4)
    assert saving.save_after_epoch(run) == SYNC


def test_the_last_estep_is_in_the_precision_of_the_model_that_the_run_leaves(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, manifest = digits(tmp_path_factory.mktemp("digits"))
    made = small_run(images, manifest, "optim.precision=bfloat16")
    written: list[Tensor] = []
    monkeypatch.setattr(estep, "write_features", lambda folder, features, *rest: written.append(features))
    run_estep(made)
    assert written == []
    rough = encode_all(made.state.model, made.feed.inputs, made.feed.preprocess)
    made.state.epochs_done = made.job.config.optim.epochs
    run_estep(made)
    exact = made.state.model.networks.target.eval()(made.feed.preprocess(images))
    assert_close(written[0], unit(exact), rtol=1e-5)
    assert (written[0] - rough).abs().max() > 1e-3


def test_balance_waits_for_the_end_of_the_warm_up(
    run: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    balanced = small_run(*digits(tmp_path_factory.mktemp("digits")), "optim.balance=1", "optim.warmup_epochs=2")
    balanced.state.pseudo = run.state.pseudo
    for epoch, drawn in ((0, False), (1, False), (2, True), (3, True)):
        balanced.state.epochs_done = epoch
        assert (draw_weights(balanced) is not None) == drawn
    monkeypatch.setattr(run.state, "epochs_done", 3)
    assert draw_weights(run) is None


def test_rarer_e_steps_in_the_warmup_change_no_label(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, manifest = digits(tmp_path_factory.mktemp("digits"))
    monkeypatch.setattr(worker, "resume", lambda run: None)
    monkeypatch.setattr(worker, "report", lambda run, metrics, save: None)
    monkeypatch.setattr(saving, "agree_on_urgent_save", lambda run: False)

    def trained(warmup_every: int) -> Run:
        warmup = ["optim.warmup_epochs=3", f"estep.warmup_every={warmup_every}"]
        made = small_run(images, manifest, "optim.epochs=6", *warmup)
        worker.train(made)
        return made

    often, rarely = trained(1), trained(2)
    assert [metrics["epoch"] for metrics in rarely.state.history if "inertia" in metrics] == [0, 2, 3, 4, 5, 6]
    assert len(often.state.history) == len(rarely.state.history) == 7
    torch.testing.assert_close(snapshot(rarely), snapshot(often), rtol=0, atol=0)


def test_an_epoch_without_checkpoint_does_not_wait_for_the_upload_before_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train reports in order: a SYNC report waits for every upload before it, even if it has none itself."""
    modes: list[object] = []
    monkeypatch.setattr(ray.train, "report", lambda metrics, **how: modes.append(how["checkpoint_upload_mode"]))
    monkeypatch.setattr(saving, "write_checkpoint", lambda run: None)
    for save in (None, ASYNC, SYNC):
        saving.report(run, {}, save=save)
    assert modes == [ASYNC, ASYNC, SYNC]
