"""What a failed run leaves in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from pipeline.storage import Folder
from pipeline.training.failure import keep_failure


def test_tracebacks_and_last_lines_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def log(actor_id: str, **_: object) -> Iterator[str]:
        if actor_id == "gone":
            raise ConnectionError("no node")
        yield "Fatal Python error: Segmentation fault\n"

    monkeypatch.setattr("pipeline.training.failure.get_log", log)
    monkeypatch.setattr("pipeline.training.failure.get_actor", lambda *_, **__: SimpleNamespace(node_id="far", pid=7))
    context = SimpleNamespace(gcs_address="127.0.0.1:6379", get_node_id=lambda: "near")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    died, gone, own = RayActorError("here", "it died"), RayActorError("gone", "it died"), ValueError("bad")
    unhealthy = WorkerHealthCheckFailedError("A worker health check failed.", died)  # as Ray Train reports a death
    error = WorkerGroupError("Traceback of all", {0: own, 1: unhealthy, 2: gone})
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
