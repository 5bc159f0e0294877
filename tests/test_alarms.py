"""Alarms: each kind is provoked, and sound runs raise none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.alarms import CHURN_ESTEPS, RULES, Alarm, Facts, all_alarms, collapse, judge, new_alarms
from pipeline.config.models import AlarmsConfig

SOUND = {
    "feature_spread": 0.8, "size_entropy": 0.95, "clusters_empty": 0.0, "cluster_largest": 150.0,
    "label_churn": 0.05, "group_rank_spread": 0.0, "steps_skipped": 0.0, "acc": 0.9, "nmi": 0.8,
}  # fmt: skip
FACTS = Facts(num_clusters=10, num_images=1000, warmup_epochs=2)
HISTORIES = Path(__file__).parent / "histories" / "digits.json"


def _history(*changes: dict[str, float]) -> list[dict[str, float]]:
    """Epochs after the warm-up, each sound but for its changes."""
    return [{"epoch": 3.0 + number, **SOUND, **change} for number, change in enumerate(changes)]


def test_a_sound_run_raises_no_alarm() -> None:
    assert collapse(SOUND) is None
    assert all_alarms(_history(*[{}] * 50), FACTS) == []
    assert judge([{"epoch": 3.0}], FACTS) == []  # without E-step


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"feature_spread": 0.002}, "collapse", "collapsed: feature_spread is 0.0020 (below 0.01); lower optim.lr"),
        ({"clusters_empty": 3.0}, "empty_clusters", "3 of 10 clusters are empty (0 expected); lower method.num_cl"),
        ({"cluster_largest": 551.0}, "giant_cluster", "has 55% of the images (more than 55%); lower method.proto"),
        ({"size_entropy": 0.84}, "falling_entropy", "from 0.950 after epoch 3 to 0.840, by more than 0.1"),
        ({"group_rank_spread": 0.01}, "rank_spread", "group_rank_spread is 0.01 (above 0.0001): the workers' groups"),
        ({"steps_skipped": 2.0}, "not_finite", "2 steps were skipped (0 expected): gradients are not finite; lower"),
        ({"acc": 0.97, "nmi": 0.01}, "empty_scores", "acc is 0.970 while nmi is 0.010 (above 0.5 and below 0.05)"),
    ],
)
def test_each_alarm_can_be_provoked(change: dict[str, float], kind: str, sentence: str) -> None:
    (alarm,) = judge(_history({}, change), FACTS)
    assert (alarm.epoch, alarm.kind) == (4, kind)
    assert sentence in alarm.text
    assert judge(_history({}, change), Facts(10, 1000, 2, ignored={kind})) == []
    assert judge(_history(change, {}), FACTS) == []


def test_sizes_show_a_collapse_too() -> None:
    (first, second) = judge(_history({}, {"size_entropy": 0.02}), FACTS)
    assert (first.kind, second.kind) == ("collapse", "falling_entropy")
    assert "size_entropy is 0.0200 (below 0.1)" in first.text


@pytest.mark.parametrize(
    ("before", "now", "alarmed"), [(0.3, 0.31, True), (0.32, 0.31, False), (0.1, 0.19, False), (0.1, 0.21, True)]
)
def test_churn_that_does_not_fall_is_found_where_it_is_high(before: float, now: float, alarmed: bool) -> None:
    churn = [{"label_churn": value} for value in [before] * CHURN_ESTEPS + [now] * CHURN_ESTEPS]
    assert [alarm.kind for alarm in judge(_history(*churn), FACTS)] == ["steady_churn"] * alarmed
    assert judge(_history(*churn[1:]), FACTS) == []  # one E-step too few


def test_the_largest_cluster_of_two_may_have_more() -> None:
    history = _history({"cluster_largest": 700.0})
    assert judge(history, Facts(2, 1000, 2)) == []
    assert judge(history, FACTS) != []


def test_the_warm_up_is_judged_only_by_what_must_always_hold() -> None:
    bad = {"feature_spread": 0.0, "clusters_empty": 9.0, "group_rank_spread": 1.0, "steps_skipped": 1.0}
    warm = Facts(10, 1000, warmup_epochs=9)
    assert {alarm.kind for alarm in judge(_history(bad), warm)} == {"rank_spread", "not_finite"}
    falls = _history({"size_entropy": 0.99}, {"size_entropy": 0.8})
    assert judge(falls, Facts(10, 1000, warmup_epochs=3)) == []  # the higher one was in the warm-up


def test_an_alarm_is_new_once_for_as_long_as_it_lasts() -> None:
    bad = {"clusters_empty": 1.0}
    history = _history({}, bad, bad, {}, bad)
    history.insert(3, {"epoch": 5.5})  # an epoch without E-step ends nothing
    history.insert(4, history[2] | {"epoch": 5.7})
    assert [alarm.epoch for alarm in all_alarms(history, FACTS)] == [4, 7]
    assert new_alarms(history[:3], FACTS) == []
    assert judge(history[:3], FACTS) == [Alarm(5, "empty_clusters", all_alarms(history, FACTS)[0].text)]


def test_every_kind_has_a_level() -> None:
    assert AlarmsConfig().levels.keys() == RULES.keys()


@pytest.mark.parametrize("run", json.loads(HISTORIES.read_text()), ids=lambda run: run["name"])
def test_recorded_runs_of_digits_raise_none(run: dict) -> None:
    facts = Facts(10, 1797, run["warmup_epochs"])
    assert len(run["history"]) == 81
    assert all_alarms(run["history"], facts) == []
