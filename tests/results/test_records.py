"""Records: what a run reached, over seeds, in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.results.records import furthest, read_record, record_path, seed_result, spread, with_seed, write_record
from pipeline.errors import ConfigError
from tests.results.examples import CALL, history, record, result


def test_a_result_has_the_last_scores_the_median_rate_and_the_curves() -> None:
    found = seed_result(history(0.1, 0.2, 0.3, 0.4), 4, "stopped", "", [CALL])
    assert (found.epochs, found.planned, found.status) == (3, 4, "stopped")
    assert found.scores == {"nmi": 0.4, "acc": 0.4, "ari": 0.4}
    assert found.images_per_second == 200
    assert found.curves["epoch"] == [0, 1, 2, 3]
    assert found.curves["loss"] == [None, 1.0, 1.0, 1.0]
    assert "label_free" not in found.curves
    assert found.score_at(2, "acc") == 0.3
    assert found.score_at(9, "acc") is None


def test_wall_time_is_that_of_the_calls_and_at_least_that_of_the_epochs() -> None:
    assert seed_result(history(0.1, 0.2), 4, "stopped", "", [CALL, CALL]).seconds == 400
    assert seed_result(history(0.1, 0.2), 4, "stopped", "", []).seconds == 40


def test_a_run_without_a_checkpoint_has_no_scores() -> None:
    found = seed_result([], 4, "failed", "no memory", [CALL])
    assert (found.epochs, found.scores, found.curves) == (0, {}, {})
    assert furthest(record("ours", found)) == []


def test_epochs_without_scores_do_not_hide_the_last_ones() -> None:
    found = seed_result([*history(0.1, 0.2), {"epoch": 2, "loss": 0.5}], 4, "stopped", "", [])
    assert (found.epochs, found.scores["acc"]) == (2, 0.2)
    assert found.score_at(2, "acc") is None


def test_a_mean_is_over_the_seeds_that_came_furthest() -> None:
    seeds = result(0.1, 0.2, 0.3, 0.4, 0.5), result(0.1, 0.2, status="stopped"), result(0.1, 0.2, 0.3, 0.4, 0.7)
    found = furthest(record("ours", *seeds))
    assert [seed.scores["acc"] for seed in found] == [0.5, 0.7]
    assert spread([seed.scores["acc"] for seed in found]) == pytest.approx((0.6, 0.1, 2))


def test_a_seed_replaces_itself_and_seeds_of_other_settings_are_dropped() -> None:
    before = record("ours", result(0.1, 0.2), result(0.1, 0.3))
    same = with_seed(before, "ours", "again", {"optim.epochs": 4, "new.setting": 1}, 1, result(0.1, 0.9))
    assert {seed: found.scores["acc"] for seed, found in same.seeds.items()} == {0: 0.2, 1: 0.9}
    assert same.floor is not None
    assert same.settings == {"optim.epochs": 4, "new.setting": 1}
    other = with_seed(before, "ours", "again", {"optim.epochs": 5}, 1, result(0.1, 0.9))
    assert list(other.seeds) == [1]
    assert other.floor is None


def test_a_record_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    assert read_record(tmp_path, "ours") is None
    written = record("ours", result(0.1, 0.25), result(0.1, 0.3, status="failed", reason="no [memory]"))
    write_record(tmp_path, written)
    assert read_record(tmp_path, "ours") == written
    lines = record_path(tmp_path, "ours").read_text().splitlines()
    assert '"acc": [0.1, 0.25],' in [line.strip() for line in lines]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    record_path(tmp_path, "ours").write_text('{"row": "ours", "command": 7}')
    with pytest.raises(ConfigError, match=r"ours\.json: command: .* valid string; restore the file"):
        read_record(tmp_path, "ours")
