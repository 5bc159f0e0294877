"""Effects: a difference is compared seed by seed, after equally many epochs."""

from __future__ import annotations

import pytest

from benchmarks.results.effects import Effect, effect_of
from benchmarks.results.records import SeedResult
from tests.results.examples import definitions, record, result


def effect(theirs: list[SeedResult], ours: list[SeedResult]) -> Effect | None:
    return effect_of("theirs", {"theirs": record("theirs", *theirs), "ours": record("ours", *ours)}, definitions())


def test_seeds_are_paired() -> None:
    found = effect([result(0.1, 0.5), result(0.1, 0.9)], [result(0.1, 0.6), result(0.1, 0.7), result(0.1, 0.8)])
    assert found is not None
    assert found.differences["acc"] == pytest.approx({0: -0.1, 1: 0.2})
    assert found.spread("nmi") == pytest.approx((0.05, 0.15, 2))
    assert (found.epoch, found.planned) == (1, 4)


def test_a_run_that_was_stopped_is_compared_after_its_last_epoch() -> None:
    found = effect([result(0.1, 0.5, status="stopped")], [result(0.1, 0.6, 0.7, 0.8, 0.9)])
    assert found is not None
    assert (found.epoch, found.differences["acc"]) == (1, pytest.approx({0: -0.1}))


def test_pairs_that_did_not_come_as_far_are_left_out() -> None:
    found = effect([result(0.1, 0.5, 0.6), result(0.1, 0.5)], [result(0.1, 0.6, 0.5), result(0.1, 0.6, 0.7)])
    assert found is not None
    assert (found.epoch, found.differences["acc"]) == (2, pytest.approx({0: 0.1}))


def test_there_is_none_without_a_common_seed_or_without_a_difference() -> None:
    assert effect([], [result(0.1, 0.6)]) is None
    assert effect_of("theirs", {"theirs": record("theirs", result(0.1, 0.5))}, definitions()) is None
    assert effect_of("ours", {"ours": record("ours", result(0.1, 0.5))}, definitions()) is None
