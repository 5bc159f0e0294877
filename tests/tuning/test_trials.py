"""What the driver prints and remembers of the trials, and which is best: from made-up trials."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from pipeline.config.loading import load_config
from pipeline.tuning import trials as module
from pipeline.tuning.space import Space
from pipeline.tuning.strategy import make_strategy
from pipeline.tuning.trials import TrialRow, Trials, best_trial, pareto_front, trial_failure

SPACE = Space("mine", {"optim.lr": tune.loguniform(0.01, 1)})
TWO = Space("two", SPACE.domains, objectives=[("loss", "min"), ("images_per_second", "max")])


def made_up(name: str, error: Exception | None = None, status: str = "TERMINATED", **settings: Any) -> Any:
    """One of Tune's trials."""
    errors = {"get_pickled_error": lambda: error, "get_error": lambda: None, "pickled_error_file": None}
    config = {"optim.lr": 0.123456, **settings}
    return SimpleNamespace(trial_id=name, status=status, config=config, num_failures=0, last_result=None, **errors)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def observer(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Trials:
    monkeypatch.setattr(module, "LINE_SECONDS", 0)
    return Trials(SPACE, 4, 3, FIFOScheduler(), lines.append)


def result(epoch: int, label_free: float) -> dict[str, Any]:
    return {"epoch": epoch, "label_free": label_free, "acc": 0.5, "loss": -1.0, "checkpoint": "x"}


def test_the_life_of_trials_in_lines(observer: Trials, lines: list[str]) -> None:
    a, b, c = trials = [made_up("a"), made_up("b"), made_up("c", RuntimeError("no memory\nat all"))]
    observer.on_trial_start(0, trials, b)
    observer.on_trial_start(0, trials, a)
    observer.on_trial_result(0, trials, a, result(1, 0.25))
    observer.on_trial_result(0, trials, b, result(1, 0.5))
    observer.on_trial_complete(0, trials, a)
    observer.on_trial_start(0, trials, b)
    observer.on_trial_result(0, trials, b, result(4, 0.75))
    observer.on_trial_complete(0, trials, b)
    c.num_failures = 1
    observer.on_trial_start(0, trials, c)
    observer.on_trial_error(0, trials, c)
    assert lines == [
        "trial 1 starts: optim.lr=0.1235",
        "trial 0 starts: optim.lr=0.1235",
        "trial 0  epoch 1/4  label_free 0.250  acc 0.500",
        "trial 1  epoch 1/4  label_free 0.500  acc 0.500",
        "trial 0 stopped early  epoch 1/4  label_free 0.250  acc 0.500  (1 of 3 trials done)",
        "trial 1 resumes: optim.lr=0.1235",
        "trial 1 finished  epoch 4/4  label_free 0.750  acc 0.500  (2 of 3 trials done)",
        "trial 2 starts again: optim.lr=0.1235",
        "trial 2 failed: no memory  (3 of 3 trials done)",
    ]


def test_what_is_saved_is_what_comes_back(lines: list[str]) -> None:
    config = load_config("digits", ["optim.epochs=9", "optim.warmup_epochs=0"])

    def new_scheduler() -> ASHAScheduler:
        scheduler = make_strategy("asha", config, SPACE, 2, []).scheduler
        scheduler.set_search_properties("label_free", "max")
        return scheduler

    before, trials = Trials(SPACE, 9, 2, new_scheduler(), lines.append), [made_up("a"), made_up("b")]
    before.scheduler.on_trial_add(None, trials[0])
    before.on_trial_start(0, trials, trials[0])
    before.on_trial_result(0, trials, trials[0], result(1, 0.9))
    before.scheduler.on_trial_result(None, trials[0], result(1, 0.9))
    state = pickle.loads(pickle.dumps(before.get_state()))

    after = Trials(SPACE, 9, 2, new_scheduler(), lines.append)
    after.set_state(state)
    assert (after.numbers, after.histories) == (before.numbers, before.histories)
    after.scheduler.on_trial_add(None, trials[1])
    assert after.scheduler.on_trial_result(None, trials[1], result(1, 0.1)) == "STOP"  # it knows the first trial's 0.9


def test_a_search_without_rungs_is_saved_too(observer: Trials) -> None:
    again = Trials(SPACE, 4, 3, FIFOScheduler(), print)
    again.set_state(pickle.loads(pickle.dumps(observer.get_state())))


def test_a_trial_without_an_exception_of_its_own_has_a_reason_too() -> None:
    assert trial_failure(made_up("a", SimpleNamespace(cause=RuntimeError("collapsed\nat line 3")))) == "collapsed"
    assert trial_failure(made_up("a", ValueError())) == "ValueError"


def test_the_reason_is_known_before_ray_has_copied_it_to_the_storage(tmp_path: Path) -> None:
    trial = made_up("a")
    trial.pickled_error_file = str(tmp_path / "error.pkl")
    (tmp_path / "error.pkl").write_bytes(pickle.dumps(RuntimeError("in worker 0: diverged")))
    assert trial_failure(trial) == "in worker 0: diverged"


def test_rows_say_how_each_trial_ended(observer: Trials) -> None:
    a, b, c = (
        made_up("a", **{"optim.lr": 0.2}),
        made_up("b", **{"optim.lr": 0.1}),
        made_up("c", RuntimeError("in worker 0: Diverged: not finite\nmore"), "ERROR"),
    )
    observer.on_step_begin(0, [a, b, c])
    for trial, epoch in ((a, 1), (b, 1), (a, 4)):
        observer.on_trial_result(0, [a, b, c], trial, {"epoch": epoch, "label_free": epoch / 10})
    rows = observer.rows([c, b, a])
    assert [(row.trial, row.status, row.epochs) for row in rows] == [
        ("a", "finished", 4),
        ("b", "stopped", 1),
        ("c", "failed", 0),
    ]
    assert [row.reason for row in rows] == [
        "",
        "behind other trials after epoch 1",
        "in worker 0: Diverged: not finite",
    ]
    assert rows[0].last == {"label_free": 0.4}
    assert rows[1].point == {"optim.lr": 0.1}
    assert rows[2].as_dict()["reason"].startswith("in worker 0")


def row(number: int, status: Any = "finished", epochs: int = 4, **metrics: float) -> TrialRow:
    history = [{"epoch": float(epoch), **metrics} for epoch in range(1, epochs + 1)]
    return TrialRow(number, f"id{number}", status, "", {"optim.lr": 0.02 * number}, history)


def test_the_best_is_the_best_of_those_that_finished() -> None:
    rows = [row(1, label_free=0.5), row(2, "stopped", 1, label_free=0.9), row(3, label_free=0.6), row(4, "failed", 0)]
    assert best_trial(rows, SPACE) is rows[2]
    assert best_trial(rows[1:2], SPACE) is rows[1]  # better than nothing
    assert best_trial(rows[3:], SPACE) is None


def test_of_several_objectives_the_first_counts_and_the_next_decide_between_equals() -> None:
    rows = [
        row(1, loss=1.00, images_per_second=100),
        row(2, loss=1.01, images_per_second=300),
        row(3, loss=1.02, images_per_second=200),  # beaten by 2
        row(4, loss=2.00, images_per_second=900),
    ]
    assert [r.number for r in pareto_front(rows, TWO)] == [1, 2, 4]
    assert best_trial(rows, TWO) is rows[1]
