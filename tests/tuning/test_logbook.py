"""What a person reads while a search runs, and what outlives a kill."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from pipeline.config.loading import load_config
from pipeline.tuning import logbook as module
from pipeline.tuning.logbook import Logbook, failure_reason
from pipeline.tuning.schedule import START_FROM, asha
from pipeline.tuning.space import Space

SPACE = Space("mine", {"optim.lr": tune.loguniform(0.01, 1)})


def made_up(name: str, error: Exception | None = None, failures: int = 0, **settings: Any) -> Any:
    run = SimpleNamespace(num_failures=failures)
    errors = {"get_pickled_error": lambda: error, "get_error": lambda: None}
    return SimpleNamespace(trial_id=name, config={"optim.lr": 0.123456, **settings}, run_metadata=run, **errors)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def logbook(said: list[str], monkeypatch: pytest.MonkeyPatch) -> Logbook:
    monkeypatch.setattr(module, "LINE_SECONDS", 0)
    return Logbook(SPACE, 4, 3, FIFOScheduler(), said.append)


def page(epoch: int, label_free: float) -> dict[str, Any]:
    return {"epoch": epoch, "label_free": label_free, "acc": 0.5, "loss": -1.0, "checkpoint": "x"}


def test_the_life_of_trials_in_lines(logbook: Logbook, said: list[str]) -> None:
    a, b, c = trials = [made_up("a"), made_up("b"), made_up("c", RuntimeError("no memory\nat all"))]
    logbook.on_trial_start(0, trials, b)
    logbook.on_trial_start(0, trials, a)
    logbook.on_trial_result(0, trials, a, page(1, 0.25))
    logbook.on_trial_result(0, trials, b, page(1, 0.5))
    logbook.on_trial_complete(0, trials, a)
    logbook.on_trial_result(0, trials, b, page(4, 0.75))
    logbook.on_trial_complete(0, trials, b)
    c.run_metadata.num_failures = 1
    logbook.on_trial_start(0, trials, c)
    logbook.on_trial_error(0, trials, c)
    assert said == [
        "trial 1 starts: optim.lr=0.1235",
        "trial 0 starts: optim.lr=0.1235",
        "trial 0  epoch 1/4  label_free 0.250  acc 0.500",
        "trial 1  epoch 1/4  label_free 0.500  acc 0.500",
        "trial 0 stopped early  epoch 1/4  label_free 0.250  acc 0.500  (1 of 3 trials done)",
        "trial 1 finished  epoch 4/4  label_free 0.750  acc 0.500  (2 of 3 trials done)",
        "trial 2 is tried again: optim.lr=0.1235",
        "trial 2 failed: no memory  (3 of 3 trials done)",
    ]


def test_who_takes_over_from_whom_is_told(logbook: Logbook, said: list[str]) -> None:
    trials = [made_up("a"), made_up("b", **{START_FROM: "s3://b/runs/s/trials/a-123abc/checkpoint_7"})]
    logbook.on_trial_start(0, trials, trials[1])
    assert said == ["trial 1 goes on from trial 0: optim.lr=0.1235"]


def test_what_is_saved_is_what_comes_back(said: list[str]) -> None:
    scheduler = asha(load_config("digits", ["optim.epochs=9", "optim.warmup_epochs=0"]), SPACE)
    assert isinstance(scheduler, ASHAScheduler)
    scheduler.set_search_properties("label_free", "max")
    book, trials = Logbook(SPACE, 9, 2, scheduler, said.append), [made_up("a"), made_up("b")]
    scheduler.on_trial_add(None, trials[0])
    book.on_trial_start(0, trials, trials[0])
    book.on_trial_result(0, trials, trials[0], page(1, 0.9))
    scheduler.on_trial_result(None, trials[0], page(1, 0.9))
    state = pickle.loads(pickle.dumps(book.get_state()))

    fresh = asha(load_config("digits", ["optim.epochs=9", "optim.warmup_epochs=0"]), SPACE)
    again = Logbook(SPACE, 9, 2, fresh, said.append)
    again.set_state(state)
    assert again.entries == book.entries
    fresh.on_trial_add(None, trials[1])
    assert fresh.on_trial_result(None, trials[1], page(1, 0.1)) == "STOP"  # it knows of the first trial's 0.9


def test_a_trial_without_an_exception_of_its_own_has_a_reason_too() -> None:
    assert failure_reason(made_up("a", SimpleNamespace(cause=RuntimeError("collapsed\nat line 3")))) == "collapsed"
    assert failure_reason(made_up("a", ValueError())) == "ValueError"
