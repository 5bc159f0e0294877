"""Where the time of an epoch went."""

from __future__ import annotations

import time

import pytest
import torch

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
    totals = timer.totals()
    assert set(totals) == {*ENTRIES, "epoch"}
    assert 0.05 <= totals["first_batch"] < 0.2
    assert 0.02 <= totals["batch_wait"] < 0.2
    assert 0.06 <= totals["step"] < 0.3
    assert totals["epoch"] >= totals["first_batch"] + totals["batch_wait"] + totals["step"]
    assert timer.batches == 3
    timer.restart()
    assert timer.totals()["step"] == timer.batches == 0


def _fail_slowly() -> None:
    time.sleep(0.01)
    raise KeyError


def test_an_error_inside_an_entry_still_counts_its_time() -> None:
    timer = EpochTimer()
    with pytest.raises(KeyError), timer.time("estep"):
        _fail_slowly()
    assert timer.totals()["estep"] >= 0.01


class Mark:
    """An event of a GPU whose clock stands at 1, 2, 4, 8, ... milliseconds."""

    now = 1.0

    def __init__(self, device: torch.device, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at, Mark.now = Mark.now, 2 * Mark.now

    def synchronize(self) -> None:
        assert self.at

    def elapsed_time(self, end: Mark) -> float:
        return end.at - self.at


def test_on_a_gpu_its_own_clock_times_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Event", Mark)
    timer = EpochTimer("cuda")
    for _ in range(2):
        with timer.time("step", on_device=True):
            time.sleep(0.01)
    with timer.time("estep"):
        time.sleep(0.01)
    totals = timer.totals()
    assert totals["step"] == pytest.approx(0.001 + 0.004)  # from 1 to 2, and from 4 to 8
    assert totals["estep"] >= 0.01
    assert timer.totals()["step"] == totals["step"]  # counted once
