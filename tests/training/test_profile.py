"""Recorded steps, and the switches that measure the feed or the step alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from torch import Tensor

from pipeline.data.shards import Manifest
from pipeline.storage import Folder
from pipeline.training.mstep import epoch_batches, train_epoch
from pipeline.training.profile import SKIPPED, StepProfiler
from pipeline.training.run import Run
from tests.helpers.small_run import digits, give_labels, small_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Manifest]:
    return digits(tmp_path_factory.mktemp("digits"))


def _labelled(data: tuple[Tensor, Manifest], *settings: str) -> Run:
    run = small_run(*data, *settings)
    give_labels(run)
    return run


def test_steps_are_recorded_with_their_operators(data: tuple[Tensor, Manifest], tmp_path: Path) -> None:
    run = _labelled(data)
    run.profiler = StepProfiler(Folder(str(tmp_path)), 2)
    for _ in range(2):  # four steps each
        train_epoch(run)
    run.profiler.stop()
    trace = json.loads(gzip.decompress((tmp_path / "profile/trace-0.json.gz").read_bytes()))
    steps = [event["name"] for event in trace["traceEvents"] if event["name"].startswith("ProfilerStep")]
    assert sorted(set(steps)) == [f"ProfilerStep#{SKIPPED + n}" for n in range(2)]
    assert "aten::convolution" in (tmp_path / "profile/operators-0.txt").read_text()


def test_data_alone_makes_no_step(data: tuple[Tensor, Manifest]) -> None:
    run = _labelled(data, "profile.only=data")
    before = [weight.clone() for weight in run.state.model.parameters()]
    train_epoch(run)
    assert (run.state.epochs_done, run.timer.batches) == (1, 4)
    assert all(a.equal(b) for a, b in zip(before, run.state.model.parameters(), strict=True))


def test_compute_alone_takes_one_batch_again_and_again(data: tuple[Tensor, Manifest]) -> None:
    run = _labelled(data, "profile.only=compute")
    first, *others = epoch_batches(run)
    assert len(others) == 3
    assert all(batch is first for batch in others)
    train_epoch(run)
    assert run.state.epochs_done == 1
