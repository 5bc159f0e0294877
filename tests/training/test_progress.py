"""The lines of progress that a person reads."""

from __future__ import annotations

import pytest
import ray

from pipeline.training.progress import Board, ProgressPrinter, Reporter, progress_line


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
    lines: list[str] = []
    printer = ProgressPrinter(None, 9, 100, lines.append)
    for epoch in range(10):
        printer._print_epoch({"epoch": float(epoch), "images_per_second": 100.0})
    assert [line.split()[1] for line in lines] == ["0/9", "9/9"]


def test_the_time_left_is_that_of_whole_epochs() -> None:
    """An epoch that was resumed near its end is short; the ones to come are not."""
    lines: list[str] = []
    printer = ProgressPrinter(None, 11, 600, lines.append)
    printer._print_epoch({"epoch": 1.0, "seconds_epoch": 0.1, "images_per_second": 100.0})
    assert lines[0].endswith("100 images/s  1:00 left")


def test_a_reporter_without_writer_and_board_is_silent() -> None:
    with Reporter() as reporter:
        reporter.epoch({"epoch": 1.0})
        reporter.resumed([], "nothing happens")


class _LocalBoard:
    """A board in this process, called as an actor is."""

    def __init__(self) -> None:
        self._board = Board.__ray_metadata__.modified_class()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        method = getattr(self._board, name)
        return type("Method", (), {"remote": staticmethod(method)})


def test_a_request_for_the_last_checkpoint_outlives_a_lost_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The board has answered, but rank 0 gave up waiting; the next check finds the request, and the one after none."""
    answers: list[object] = []

    def first_answer_is_lost(answer: object, timeout: float) -> object:
        answers.append(answer)
        if len(answers) == 1:
            raise ray.exceptions.GetTimeoutError
        return answer

    monkeypatch.setattr(ray, "get", first_answer_is_lost)
    board = _LocalBoard()
    board._board.request_checkpoint()
    reporter = Reporter(board=board)
    assert [reporter.take_request() for _ in range(3)] == [False, True, False]
    assert Reporter(board=board).take_request()  # a worker that was started again asks anew
