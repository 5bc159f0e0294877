"""The driver's part of an alarm: the end of a run, or its return to the last checkpoint with something changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.alarms import Alarm
from pipeline.errors import Alarmed
from pipeline.training import fit as module
from pipeline.training.fit import fit
from pipeline.training.job import Job
from pipeline.training.rollback import SEED_STEP, Halt, as_rolled_back, read_rollbacks
from tests.helpers.manifests import manifest
from tests.helpers.small_run import small_job

ALARM = Alarm(5, "collapse", "collapsed: feature_spread is 0.001 (below 0.01)")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    made = small_job(manifest(200), f"storage={tmp_path}", "name=mine", "alarms.max_rollbacks=2")
    made.folder.make()
    return made


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Seed and rate of each start of the workers, which come to an alarm until `outcomes` has no more."""
    started: list[tuple[int, float]] = []

    def run_workers(job: Job, callbacks: Sequence[Any]) -> Any:
        started.append((job.config.seed, job.config.optim.lr))
        level = outcomes.pop(0) if outcomes else None
        return SimpleNamespace(return_value=Halt(level, ALARM).returned() if level else {"epoch": 9.0})

    outcomes: list[Any] = []
    monkeypatch.setattr(module, "run_workers", run_workers)
    monkeypatch.setattr(module, "outcomes", outcomes, raising=False)
    return started


def _outcomes(*levels: str) -> None:
    module.outcomes[:] = levels  # type: ignore[attr-defined]


def test_a_run_goes_back_with_another_seed_and_rate(job: Job, runs: list[tuple[int, float]]) -> None:
    _outcomes("roll_back", "roll_back")
    assert fit(job).return_value == {"epoch": 9.0}
    assert runs == [(0, 0.1), (SEED_STEP, 0.05), (2 * SEED_STEP, 0.025)]
    noted = read_rollbacks(job.folder)
    assert noted[0] == {**asdict(ALARM), "seed": SEED_STEP, "lr": 0.05}
    again = as_rolled_back(job)  # a command that resumes it
    assert (again.config.seed, again.config.optim.lr) == runs[-1]
    assert again.plan.order == job.plan.order  # the checkpoint may lie within an epoch, which has each image once
    assert job.config.seed == 0  # whose folder it is does not change


def test_the_change_of_the_rate_is_a_setting(job: Job, runs: list[tuple[int, float]]) -> None:
    alarms = job.config.alarms.model_copy(update={"rollback_lr_factor": 0.1})
    _outcomes("roll_back")
    fit(replace(job, config=job.config.model_copy(update={"alarms": alarms})))
    assert runs == [(0, 0.1), (SEED_STEP, pytest.approx(0.01))]


def test_returns_are_counted_over_all_commands(job: Job, runs: list[tuple[int, float]]) -> None:
    _outcomes("roll_back")
    fit(job)
    _outcomes("roll_back", "roll_back")
    with pytest.raises(Alarmed, match=r"2 times before \(alarms\.max_rollbacks=2\)"):
        fit(job)
    assert len(read_rollbacks(job.folder)) == 2


def test_a_run_that_an_alarm_stops_is_not_tried_again(job: Job, runs: list[tuple[int, float]]) -> None:
    _outcomes("stop", "stop")
    with pytest.raises(
        Alarmed, match=r"run mine was halted at epoch 5: collapsed: .* with alarms\.collapse=warn resumes"
    ):
        fit(job)
    assert len(runs) == 1
    assert read_rollbacks(job.folder) == []
