"""The table of trials, the best of them, the page: from results that were made up."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from ray import tune

from pipeline.report.search_page import page, short_names, study_of
from pipeline.tuning.logbook import Entry
from pipeline.tuning.result import Row, best, pareto_front, rows
from pipeline.tuning.schedule import START_FROM
from pipeline.tuning.space import Space

ONE = Space("one", {"optim.lr": tune.loguniform(0.01, 1), "method.reset_every": tune.choice([None, 30])})
TWO = Space("two", ONE.domains, objectives=[("loss", "min"), ("images_per_second", "max")])


def row(number: int, status: Any = "finished", epochs: int = 4, **figures: float) -> Row:
    point = {"optim.lr": 0.02 * number, "method.reset_every": None if number % 2 else 30}
    last = [{"epoch": float(epoch), **figures} for epoch in range(1, epochs + 1)]
    return Row(number, f"id{number}", status, "for a reason" if status != "finished" else "", point, last)


def test_rows_tell_how_each_trial_ended() -> None:
    def made_up(name: str, status: str, error: Exception | None = None, **settings: Any) -> Any:
        return SimpleNamespace(trial_id=name, status=status, config=settings, get_pickled_error=lambda: error)

    trials = [
        made_up("c", "ERROR", RuntimeError("in worker 0: Diverged: not finite\nmore")),
        made_up("b", "TERMINATED", **{"optim.lr": 0.1, START_FROM: "/r/a/checkpoint_1"}),
        made_up("a", "TERMINATED", **{"optim.lr": 0.2}),
    ]
    entries = {
        "a": Entry(1, [{"epoch": 1, "label_free": 0.1}, {"epoch": 4, "label_free": 0.4}]),
        "b": Entry(2, [{"epoch": 1, "label_free": 0.2}]),
        "c": Entry(3),
    }
    found = rows(trials, entries, epochs=4)
    assert [(r.trial, r.status, r.epochs) for r in found] == [
        ("a", "finished", 4),
        ("b", "stopped", 1),
        ("c", "failed", 0),
    ]
    assert [r.reason for r in found] == ["", "behind others after epoch 1", "in worker 0: Diverged: not finite"]
    assert found[0].last == {"label_free": 0.4}
    assert found[1].point == {"optim.lr": 0.1}
    assert found[1].run.startswith("b-")
    assert found[2].summary()["reason"].startswith("in worker 0")


def test_the_best_is_the_best_of_those_that_came_to_the_end() -> None:
    found = [row(1, label_free=0.5), row(2, "stopped", 1, label_free=0.9), row(3, label_free=0.6), row(4, "failed", 0)]
    assert best(found, ONE) is found[2]
    assert best(found[1:2], ONE) is found[1]  # better than nothing
    assert best(found[3:], ONE) is None


def test_of_several_objectives_the_first_counts_and_the_next_decide_between_equals() -> None:
    found = [
        row(1, loss=1.00, images_per_second=100),
        row(2, loss=1.01, images_per_second=300),
        row(3, loss=1.02, images_per_second=200),  # beaten by 2
        row(4, loss=2.00, images_per_second=900),
    ]
    assert [r.number for r in pareto_front(found, TWO)] == [1, 2, 4]
    assert best(found, TWO) is found[1]


@pytest.mark.parametrize("space", [ONE, TWO], ids=["one objective", "two"])
def test_the_study_has_every_trial(space: Space) -> None:
    figures = {"label_free": 0.5, "loss": 1.0, "images_per_second": 10.0}
    found = [row(1, **figures), row(2, "stopped", 2, **figures), row(3, "failed", 0)]
    study = study_of(found, space)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert study.trials[0].params == {key.partition(".")[2]: value for key, value in found[0].point.items()}
    if space is ONE:
        assert study.trials[1].intermediate_values == {1: 0.5, 2: 0.5}


def test_settings_lose_their_section_where_no_other_has_the_name() -> None:
    assert short_names(
        ["method.group_weight", "optim.batch_size", "estep.batch_size", "views.crop_scale.0", "seed"]
    ) == {
        "method.group_weight": "group_weight",
        "optim.batch_size": "optim.batch_size",
        "estep.batch_size": "estep.batch_size",
        "views.crop_scale.0": "crop_scale.0",
        "seed": "seed",
    }


@pytest.mark.parametrize("space", [ONE, TWO], ids=["one objective", "two"])
def test_the_page_needs_nothing_beside_it(space: Space) -> None:
    found = [row(n, label_free=n / 10, loss=1 / n, images_per_second=float(n), acc=0.5) for n in range(1, 7)]
    found += [row(7, "stopped", 2, label_free=0.1, loss=3.0, images_per_second=1.0), row(8, "failed", 0)]
    text = page("a <search>", ["It went well."], found, found[5], space)
    assert "a &lt;search&gt;" in text
    assert len(re.findall(r'src="data:image/png;base64,[\w+/=]{2000,}"', text)) == (4 if space is ONE else 3)
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert text.count('<tr class="finished">') == 5
    assert text.count('<tr class="best">') == 1
    assert "for a reason" in text
    assert "0.01 to 1, log" in text
    assert "could not draw" not in text


def test_a_page_of_too_few_trials_says_so() -> None:
    text = page("small", [], [row(1, label_free=0.5)], None, ONE)
    assert "It takes 2 finished trials; there are 1." in text
    assert "It takes 4 finished trials; there are 1." in text
    assert page("none", [], [row(1, "failed", 0)], None, ONE).count("It takes") == 3
