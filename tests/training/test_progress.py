"""The lines that a person reads, and the ledger behind the times."""

from __future__ import annotations

import time

import pytest

from pipeline.config.loading import load_config
from pipeline.training.progress import ProgressPrinter, Reporter, progress_line
from pipeline.training.timing import ENTRIES, Ledger


def test_a_line_has_scores_throughput_and_the_time_left() -> None:
    metrics = {"epoch": 12, "loss": -1.6234, "acc": 0.8612, "seconds_epoch": 1.5, "images_per_second": 1194.7}
    line = progress_line(metrics, 80, 1194.7, 1.5)
    assert line == "epoch 12/80  loss -1.623  acc 0.861  1,195 images/s  1:42 left"


def test_without_classes_a_line_has_the_score_that_needs_none() -> None:
    metrics = {"epoch": 12, "loss": -1.6, "label_free": 0.75, "label_churn": 0.02, "seconds_epoch": 1.5}
    assert "label_free 0.750  label_churn 0.020" in progress_line(metrics, 80, 1194.7, 1.5)
    assert "label_free" not in progress_line(metrics | {"acc": 0.9}, 80, 1194.7, 1.5)


def test_the_initial_estep_promises_no_time() -> None:
    assert progress_line({"epoch": 0, "acc": 0.4, "seconds_epoch": 3.0}, 80, 0, 0) == "epoch  0/80  acc 0.400"


def test_lines_are_few_but_the_last_one_comes() -> None:
    said: list[str] = []
    printer = ProgressPrinter(
        None, load_config("digits", ["optim.epochs=9", "optim.warmup_epochs=1"]), 100, said.append
    )
    for epoch in range(10):
        printer._line({"epoch": float(epoch), "seconds_epoch": 1.0})
    assert [line.split()[1] for line in said] == ["0/9", "9/9"]


def test_a_reporter_without_writer_and_board_is_silent() -> None:
    with Reporter() as reporter:
        reporter.epoch({"epoch": 1.0})
        reporter.resumed([], "nothing happens")


def test_the_ledger_tells_first_batch_wait_and_work_apart() -> None:
    ledger = Ledger()

    def batches():
        for pause in (0.05, 0.01, 0.01):
            time.sleep(pause)
            yield pause

    for _ in ledger.timed(batches()):
        with ledger.time("step"):
            time.sleep(0.02)
    page = ledger.close()
    assert set(page) == {*ENTRIES, "epoch"}
    assert 0.05 <= page["first_batch"] < 0.2
    assert 0.02 <= page["batch_wait"] < 0.2
    assert 0.06 <= page["step"] < 0.3
    assert page["epoch"] >= page["first_batch"] + page["batch_wait"] + page["step"]
    assert ledger.close()["step"] == 0


def _fail_slowly() -> None:
    time.sleep(0.01)
    raise KeyError


def test_an_error_inside_an_entry_still_counts_its_time() -> None:
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.time("estep"):
        _fail_slowly()
    assert ledger.close()["estep"] >= 0.01
