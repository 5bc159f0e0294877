"""Monitors of a run: who is held out, when they are due, and what they say of a cadence that cannot be kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data.read import read_labels
from pipeline.training import worker
from pipeline.training.monitors import make_monitors, monitor_metrics, monitor_warnings
from tests.helpers.small_run import IMAGES, digits, small_run
from tests.helpers.workers import Workers

LABELS = torch.arange(1000) % 10 - (torch.arange(1000) < 10).long() * 10  # the first ten have no class: -10 to -1


def _config(*settings: str) -> RunConfig:
    return load_config("digits", [f"monitor.{setting}" for setting in settings])


def test_an_exact_share_of_the_images_with_a_class_is_held_out() -> None:
    found = make_monitors(LABELS, _config("held_out=0.1"))
    assert found.held_out.sum() == 99
    assert not found.held_out[:10].any()
    more = make_monitors(LABELS, _config("held_out=0.2"))
    assert more.held_out.sum() == 198
    assert (more.held_out & found.held_out).equal(found.held_out)
    assert not make_monitors(LABELS, load_config("digits", ["seed=1"])).held_out.equal(more.held_out)
    assert make_monitors(LABELS[:15], _config("held_out=0.01")).held_out.sum() == 1


def _held_out(rank: int) -> list[bool]:
    return make_monitors(LABELS, _config()).held_out.tolist()


def test_workers_hold_out_what_one_does(pair: Workers) -> None:
    first, second = pair.run(_held_out)
    assert first + second == _held_out(0)


@pytest.mark.parametrize(
    ("epoch", "due"),
    [(0, {"knn_acc", "linear_acc"}), (1, set()), (2, {"knn_acc"}), (3, {"linear_acc"}), (5, {"knn_acc", "linear_acc"})],
)
def test_each_has_its_own_cadence_and_the_last_epoch_has_both(epoch: int, due: set[str]) -> None:
    config = load_config(
        "digits", ["monitor.knn_every=2", "monitor.probe_every=3", "optim.epochs=5", "optim.warmup_epochs=1"]
    )
    found = monitor_metrics(make_monitors(LABELS, config), torch.rand(1000, 4), config, epoch)
    assert found.keys() == due


def test_an_estep_measures_features_and_counts_the_time(tmp_path: Path) -> None:
    data = digits(tmp_path)
    run = small_run(*data, "monitor.knn_every=1", "monitor.probe_every=1")
    labels = read_labels(str(tmp_path))
    assert labels is not None
    run.monitors = make_monitors(torch.from_numpy(labels[:IMAGES]), run.job.config)
    worker.run_estep(run)
    metrics = run.state.history[-1]
    assert 0.3 < metrics["knn_acc"] <= 1  # the digits' pixels suffice for more, also behind an untrained network
    assert 0.3 < metrics["linear_acc"] <= 1
    assert run.timer.page()["monitor"] > 0


def test_monitors_without_effect_are_told_of() -> None:
    assert monitor_warnings(_config(), has_classes=False) == []
    assert monitor_warnings(_config("knn_every=8"), has_classes=True) == []
    (line,) = monitor_warnings(_config("knn_every=2", "probe_every=1"), has_classes=False)
    assert line == "monitor.knn_every and monitor.probe_every without effect: the images have no classes"
    config = load_config(
        "digits", ["monitor.knn_every=3", "monitor.probe_every=4", "estep.every=2", "estep.warmup_every=1"]
    )
    (line,) = monitor_warnings(config, has_classes=True)
    assert line == (
        "monitor.knn_every=3 meets epochs without E-step, 3 for example, and leaves them out; give a multiple of 2"
    )
