"""What a trial does with the pages of its run, without Ray running."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest
import ray
from ray.train import WorkerGroupError

from pipeline.config.loading import load_config
from pipeline.errors import ConfigError, Diverged, RunFailed
from pipeline.tuning import trial as module
from pipeline.tuning.schedule import CHECKPOINT, START_FROM
from pipeline.tuning.space import Space
from pipeline.tuning.trial import TrialJob, fault, in_background, lasting, pages, report, run_name, trial_config, whole
from tests.helpers.manifests import manifest

CONFIG = load_config("digits", ["optim.epochs=10", "optim.warmup_epochs=2", "estep.every=3", "name=search"])
SPACE = Space("mine", {})
PAGE = {"epoch": 3, "loss": -1.0, "label_free": 0.4, "feature_spread": 0.7, "size_entropy": 0.9}


def test_a_page_is_whole_after_training_and_an_e_step() -> None:
    told = [epoch for epoch in range(11) if whole({"epoch": epoch}, CONFIG)]
    assert told == [3, 6, 9, 10]
    assert not whole({"epoch": 3, "step": 5}, CONFIG)  # a save inside an epoch


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"label_free": float("nan")}, "label_free is nan after epoch 3"),
        ({"feature_spread": 0.001}, "collapsed: feature_spread is 0.0010 after epoch 3"),
        ({"size_entropy": 0.0}, "collapsed: size_entropy is 0.0000 after epoch 3"),
        ({"feature_spread": 0.001, "epoch": 2}, None),  # features are young
    ],
)
def test_a_lost_run_is_known_by_its_page(change: dict[str, float], said: str | None) -> None:
    assert fault(PAGE | change, CONFIG, SPACE) == said


def test_an_objective_that_the_run_does_not_report_is_named_with_those_it_does() -> None:
    said = fault({"epoch": 3, "loss": 1.0, CHECKPOINT: "x"}, CONFIG, SPACE)
    assert said == "the run reports no label_free; it reports epoch, loss"


def test_tune_hears_of_whole_pages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr(module.tune, "report", heard.append)
    assert not report({"epoch": 0}, CONFIG, SPACE)
    assert not report({"epoch": 2, "loss": 1.0}, CONFIG, SPACE)
    assert report(PAGE, CONFIG, SPACE)
    assert heard == [PAGE]
    with pytest.raises(RunFailed, match="label_free is inf"):
        report(PAGE | {"label_free": float("inf")}, CONFIG, SPACE)


def test_pages_carry_the_newest_checkpoint_until_the_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    posts = [
        [{"page": {"epoch": 0}, "checkpoint": None}],
        [{"page": {"epoch": 1}, "checkpoint": "checkpoint_1"}, {"page": {"epoch": 2}, "checkpoint": None}],
        [{"page": {"epoch": 3}, "checkpoint": "checkpoint_3"}],
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
    found = [(page["epoch"], page[CHECKPOINT]) for page in pages(Board(), run, "s3://b/t")]
    assert found == [
        (0, None),
        (1, "s3://b/t/checkpoint_1"),
        (2, "s3://b/t/checkpoint_1"),
        (3, "s3://b/t/checkpoint_3"),
    ]


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
        (WorkerGroupError("failed", {0: ray.exceptions.ActorDiedError()}), False),  # a node, or all of Ray, went away
        (ray.exceptions.ActorDiedError(), False),
        (OSError("disk"), False),
    ],
)
def test_failures_that_would_come_again_are_told_from_accidents(error: Exception, expected: bool) -> None:
    assert lasting(error) is expected


def test_a_trial_keeps_its_runs_name_until_it_takes_over() -> None:
    assert run_name("a1", {"optim.lr": 0.1}) == "a1"
    taken = run_name("a1", {START_FROM: "/runs/b2/checkpoint_4"})
    assert taken == run_name("a1", {START_FROM: "/runs/b2/checkpoint_4"})
    assert taken.startswith("a1-")
    assert taken != run_name("a1", {START_FROM: "/runs/b2/checkpoint_5"})


def test_a_trials_configuration_lives_below_the_search() -> None:
    job = TrialJob(CONFIG, SPACE, manifest(), "/runs/search/trials", "parent", "digits")
    config = trial_config({"optim.lr": 0.3, START_FROM: "/runs/b2/checkpoint_4"}, job, "a1")
    assert (config.optim.lr, config.storage) == (0.3, "/runs/search/trials")
    assert (config.name or "").startswith("a1-")
    with pytest.raises(ConfigError, match=r"configuration 'trial a1' cannot be used:\n  optim\.lr"):
        trial_config({"optim.lr": -1}, job, "a1")
