"""What a failed run leaves in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError

from pipeline.storage import Folder
from pipeline.training.failure import keep_failure


def test_tracebacks_and_last_lines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def log(actor_id: str, **_: object) -> Iterator[str]:
        if actor_id == "gone":
            raise ConnectionError("no node")
        yield "Fatal Python error: Segmentation fault\n"

    monkeypatch.setattr("pipeline.training.failure.get_log", log)
    died, gone, own = RayActorError("here", "it died"), RayActorError("gone", "it died"), ValueError("bad")
    error = WorkerGroupError("Traceback of all", {0: own, 1: died, 2: gone})
    clause = keep_failure(Folder(str(tmp_path)), error)
    assert clause == f"; tracebacks and workers' last lines are in {tmp_path}/failure.txt"
    text = (tmp_path / "failure.txt").read_text()
    assert "Traceback of all" in text
    assert "The last lines of worker 1:\nFatal Python error: Segmentation fault" in text
    assert "The last lines of worker 2:\nnot available: no node" in text
    assert "worker 0:" not in text


def test_a_folder_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert keep_failure(Folder(f"{tmp_path}/file/run"), RuntimeError("odd")) == ""
