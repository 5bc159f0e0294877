"""Where the time of an epoch went."""

from __future__ import annotations

import time

import pytest

from pipeline.training.timing import ENTRIES, EpochTimer


def test_the_timer_tells_first_batch_wait_and_work_apart() -> None:
    timer = EpochTimer()

    def batches():
        for pause in (0.05, 0.01, 0.01):
            time.sleep(pause)
            yield pause

    for _ in timer.timed(batches()):
        with timer.time("step"):
            time.sleep(0.02)
    page = timer.page()
    assert set(page) == {*ENTRIES, "epoch"}
    assert 0.05 <= page["first_batch"] < 0.2
    assert 0.02 <= page["batch_wait"] < 0.2
    assert 0.06 <= page["step"] < 0.3
    assert page["epoch"] >= page["first_batch"] + page["batch_wait"] + page["step"]
    assert timer.batches == 3
    timer.restart()
    assert timer.page()["step"] == timer.batches == 0


def _fail_slowly() -> None:
    time.sleep(0.01)
    raise KeyError


def test_an_error_inside_an_entry_still_counts_its_time() -> None:
    timer = EpochTimer()
    with pytest.raises(KeyError), timer.time("estep"):
        _fail_slowly()
    assert timer.page()["estep"] >= 0.01
