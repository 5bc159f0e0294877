"""What a trial does with the metrics of its run, without Ray running."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import WorkerGroupError

from pipeline.config.loading import load_config
from pipeline.errors import ConfigError, Diverged, RunFailed
from pipeline.tuning import trial as module
from pipeline.tuning.space import Space
from pipeline.tuning.trial import (
    SearchJob,
    failure_of,
    in_background,
    is_complete_epoch,
    is_permanent,
    reason_of,
    received_metrics,
    report_epoch,
    run_trial,
    trial_config,
)
from tests.helpers.manifests import manifest

CONFIG = load_config("digits", ["optim.epochs=10", "optim.warmup_epochs=2", "estep.every=3", "name=search"])
SPACE = Space("mine", {})
METRICS = {"epoch": 3, "loss": -1.0, "label_free": 0.4, "feature_spread": 0.7, "size_entropy": 0.9}


def test_an_epoch_is_complete_after_training_and_an_e_step() -> None:
    complete = [epoch for epoch in range(11) if is_complete_epoch({"epoch": epoch}, CONFIG)]
    assert complete == [3, 6, 9, 10]
    assert not is_complete_epoch({"epoch": 3, "step": 5}, CONFIG)  # a save inside an epoch


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"label_free": float("nan")}, "label_free is nan after epoch 3"),
        ({"feature_spread": 0.001}, "collapsed: feature_spread is 0.0010 (below 0.01) after epoch 3"),
        ({"size_entropy": 0.0}, "collapsed: size_entropy is 0.0000 (below 0.1) after epoch 3"),
        ({"feature_spread": 0.001, "epoch": 2}, None),  # features are young
    ],
)
def test_metrics_show_that_a_run_has_failed(change: dict[str, float], reason: str | None) -> None:
    assert failure_of(METRICS | change, CONFIG, SPACE) == reason


def test_an_objective_that_the_run_does_not_report_is_named_with_those_it_does() -> None:
    reason = failure_of({"epoch": 3, "loss": 1.0}, CONFIG, SPACE)
    assert reason == "the run does not report label_free; it reports epoch, loss"


def test_complete_epochs_alone_are_reported_to_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(module.tune, "report", reported.append)
    assert not report_epoch({"epoch": 0}, CONFIG, SPACE)
    assert not report_epoch({"epoch": 2, "loss": 1.0}, CONFIG, SPACE)
    assert report_epoch(METRICS, CONFIG, SPACE)
    assert reported == [METRICS]
    with pytest.raises(RunFailed, match="label_free is inf"):
        report_epoch(METRICS | {"label_free": float("inf")}, CONFIG, SPACE)


def test_metrics_come_until_the_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    posts = [
        [{"epoch": 0}],
        [{"epoch": 1}, {"epoch": 2}],
        [{"epoch": 3}],
    ]
    run: Future[Any] = Future()

    class Take:
        def remote(self) -> list[dict[str, Any]]:
            if len(posts) == 1:
                run.set_result(None)
            return posts.pop(0) if posts else []

    class Board:
        take = Take()

    monkeypatch.setattr(module.ray, "get", lambda value: value)
    monkeypatch.setattr(module, "POLL_SECONDS", 0)
    found = [item["epoch"] for item in received_metrics(Board(), run)]
    assert found == [0, 1, 2, 3]


def test_work_in_the_background_gives_its_result_or_its_error_and_holds_no_process() -> None:
    threads: list[threading.Thread] = []

    def work() -> Any:
        threads.append(threading.current_thread())
        return 7

    assert in_background(work).result(10) == 7
    assert threads[0].daemon
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0).result(10)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RunFailed("collapsed"), True),
        (ConfigError("bad"), True),
        (WorkerGroupError("failed", {0: Diverged("nan")}), True),
        (WorkerGroupError("failed", {0: ray.exceptions.ActorDiedError()}), False),  # a node, or all of Ray, was lost
        (ray.exceptions.ActorDiedError(), False),
        (OSError("disk"), False),
    ],
)
def test_failures_that_would_come_again_are_known_from_accidents(error: Exception, expected: bool) -> None:
    assert is_permanent(error) is expected


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WorkerGroupError("failed", {1: Diverged("not finite")}), "in worker 1: Diverged: not finite"),
        (ConfigError("'trial a' cannot be used:\n  optim.lr: too low"), "'trial a' cannot be used: optim.lr: too low"),
        (ray.exceptions.ActorDiedError(), "ActorDiedError: The actor died unexpectedly before finishing this task."),
        (OSError("disk full\nmore"), "disk full"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_reason_is_one_line_that_says_what_is_wrong(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_a_trials_configuration_lives_below_the_search() -> None:
    search = SearchJob(CONFIG, SPACE, manifest(), "/runs/search/trials", "parent", "digits")
    config = trial_config({"optim.lr": 0.3}, search, "a1")
    assert (config.optim.lr, config.storage, config.name) == (0.3, "/runs/search/trials", "a1")
    with pytest.raises(ConfigError, match=r"configuration 'trial a1' cannot be used:\n  optim\.lr"):
        trial_config({"optim.lr": -1}, search, "a1")


def test_a_permanent_failure_is_written_down_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = SearchJob(CONFIG, SPACE, manifest(), str(tmp_path), "parent", "digits")
    monkeypatch.setattr(module.tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "a1"))
    calls: list[str] = []

    def fail(settings: dict[str, Any], search: SearchJob, trial: str) -> Any:
        calls.append(trial)
        raise OSError("disk full") if len(calls) == 1 else RunFailed("collapsed")

    monkeypatch.setattr(module, "trial_job", fail)
    for reason in ("disk full", "collapsed", "collapsed"):  # an accident is tried again
        with pytest.raises(RunFailed, match=f"^{reason}$"):
            run_trial({}, search)
    assert calls == ["a1", "a1"]
