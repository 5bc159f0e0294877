"""Monitors of a run: who is held out, when they are due, and what they say of a cadence that cannot be kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.collectives import RowRange
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data.read import read_labels
from pipeline.keyed_random import Stream, uniform
from pipeline.training.estep import run_estep
from pipeline.training.monitors import Monitors, are_smallest, make_monitors, monitor_metrics, monitor_warnings
from tests.helpers.small_run import IMAGES, digits, small_run
from tests.helpers.workers import Workers

LABELS = torch.arange(1000) % 10 - (torch.arange(1000) < 10).long() * 10  # the first ten have no class: -10 to -1


def _config(*settings: str) -> RunConfig:
    return load_config("digits", [f"monitor.{setting}" for setting in settings])


def _on(*settings: str) -> RunConfig:
    """Settings with one of the monitors."""
    return _config("knn_every=1", *settings)


def _made(labels: Tensor, config: RunConfig, cuts: Sequence[int] = (), rank: int = 0) -> Monitors:
    """The monitors of a worker that owns the rows between two cuts, or all."""
    start, stop = cuts[rank : rank + 2] if cuts else (0, len(labels))
    own = RowRange(start, stop, len(labels))
    found = make_monitors(labels[start:stop].numpy(), own, config, torch.device("cpu"))
    assert found is not None
    return found


def test_a_fifth_of_the_images_with_a_class_is_held_out() -> None:
    found = _made(LABELS, _on())
    assert found.held_out.sum() == 198
    assert not found.held_out[:10].any()
    assert not _made(LABELS, load_config("digits", ["monitor.knn_every=1", "seed=1"])).held_out.equal(found.held_out)
    assert _made(LABELS[:12], _on()).held_out.sum() == 1  # at least one


def test_the_held_out_images_are_those_of_the_smallest_random_numbers() -> None:
    known = torch.arange(10, 1000)
    draws = uniform(0, 0, known, Stream.HELD_OUT, 1)[:, 0]
    chosen = known[draws.argsort(stable=True)[:198]]
    assert _made(LABELS, _on()).held_out.nonzero()[:, 0].equal(chosen.sort().values)


def _held_out(rank: int, cuts: list[int]) -> Tensor:
    return _made(LABELS, _on(), cuts, rank).held_out


@pytest.mark.parametrize("cuts", [[0, 333, 666, 1000], [0, 7, 7, 1000], [0, 0, 997, 1000]])
def test_workers_hold_out_what_one_does(trio: Workers, cuts: list[int]) -> None:
    parts = trio.run(_held_out, cuts)
    assert torch.cat(parts).equal(_held_out(0, [0, 1000]))


def _smallest(rank: int, draws: Tensor, count: int, cuts: list[int]) -> Tensor:
    own = slice(*cuts[rank : rank + 2])
    return are_smallest(draws[own], torch.arange(len(draws))[own], count)


@pytest.mark.parametrize("count", [1, 2, 4, 6, 8])
def test_of_equal_draws_the_first_are_the_smallest(trio: Workers, count: int) -> None:
    draws = torch.tensor([0.5, 0.25, 0.5, 0.25, 0.999999, 0.0, 0.25, 0.5])
    expected = torch.zeros(8, dtype=torch.bool)
    expected[draws.argsort(stable=True)[:count]] = True
    assert _smallest(0, draws, count, [0, 8]).equal(expected)
    assert torch.cat(trio.run(_smallest, draws, count, [0, 3, 3, 8])).equal(expected)


def test_there_are_none_without_classes_or_when_switched_off() -> None:
    own, cpu = RowRange(0, 1000, 1000), torch.device("cpu")
    assert make_monitors(None, own, _on(), cpu) is None
    assert make_monitors(LABELS.numpy(), own, _config("knn_every=0", "probe_every=0"), cpu) is None


@pytest.mark.parametrize(
    ("epoch", "due"),
    [(0, {"knn_acc", "linear_acc"}), (1, set()), (2, {"knn_acc"}), (3, {"linear_acc"}), (5, {"knn_acc", "linear_acc"})],
)
def test_each_has_its_own_cadence_and_the_last_epoch_has_both(epoch: int, due: set[str]) -> None:
    config = load_config(
        "digits", ["monitor.knn_every=2", "monitor.probe_every=3", "optim.epochs=5", "optim.warmup_epochs=1"]
    )
    found = monitor_metrics(_made(LABELS, config), torch.rand(1000, 4), config, epoch)
    assert found.keys() == due


def test_an_estep_measures_features_and_counts_the_time(tmp_path: Path) -> None:
    data = digits(tmp_path)
    run = small_run(*data, "monitor.knn_every=1", "monitor.probe_every=1")
    labels = read_labels(str(tmp_path))
    assert labels is not None
    run.monitors = _made(torch.from_numpy(labels[:IMAGES]), run.job.config)
    run_estep(run)
    metrics = run.state.history[-1]
    assert 0.3 < metrics["knn_acc"] <= 1  # the digits' pixels suffice for more, also behind an untrained network
    assert 0.3 < metrics["linear_acc"] <= 1
    assert run.timer.totals()["monitor"] > 0


def test_monitors_without_effect_are_told_of() -> None:
    assert monitor_warnings(_config(), has_classes=False) == []
    assert monitor_warnings(_config("knn_every=8"), has_classes=True) == []
    (line,) = monitor_warnings(_config("knn_every=2", "probe_every=1"), has_classes=False)
    assert line == "the images have no classes, so monitor.knn_every and monitor.probe_every cannot be measured"
    config = load_config(
        "digits", ["monitor.knn_every=3", "monitor.probe_every=4", "estep.every=2", "estep.warmup_every=1"]
    )
    (line,) = monitor_warnings(config, has_classes=True)
    assert line == ("monitor.knn_every=3 skips epochs without an E-step, such as epoch 3; give a multiple of 2")
