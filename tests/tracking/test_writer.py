"""The writer of a run against a real MLflow: SQLite in a temporary folder, a server started by the test, and none."""

from __future__ import annotations

import logging
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from mlflow import MlflowClient

from pipeline.config.models import DataConfig
from pipeline.storage import Folder
from pipeline.tracking import RunRef, RunWriter, end_run, open_run, register_model, spool_path, tag_run
from pipeline.tracking import writer as writer_module
from pipeline.tracking.delivery import Sender
from pipeline.tracking.run import config_params
from pipeline.tracking.spool import MetricPoint, Spool
from tests.tracking.helpers import client, config, eventually, files, history, on_disk, status, unreachable


def test_params_have_dotted_keys_and_values_as_overrides_are_written() -> None:
    params = config_params(config("runs"))
    assert params["optim.lr"] == "0.1"
    assert params["views.crop_scale"] == "[0.08, 1.0]"
    assert params["model.small_stem"] == "true"
    assert params["tracking.uri"] == "null"
    assert params["data.path"] == "shards"


def test_params_respect_the_length_that_mlflow_takes() -> None:
    cut = config_params(DataConfig(path="x" * 7000))["path"]
    assert len(cut) == 6000
    assert cut.endswith("xxx ... (cut; run.json has the whole)")
    assert config_params(DataConfig(path="x" * 6000))["path"] == "x" * 6000


def test_open_run_logs_params_and_environment(ref: RunRef, storage: Path) -> None:
    run = client(ref).get_run(ref.run_id)
    assert ref.uri == f"sqlite:///{storage}/mlflow.db"
    assert run.data.params == config_params(config(storage))
    assert run.info.run_name == "run-1"
    assert run.info.artifact_uri.startswith(f"file://{storage}/mlflow-artifacts/")
    assert run.data.tags["preset"] == "digits"
    assert run.data.tags["env.torch"].startswith(torch.__version__.split("+")[0])
    assert {"env.python", "env.ray", "env.mlflow", "env.hostname", "env.cpus", "env.gpus"} <= set(run.data.tags)


def test_ref_travels_to_workers(ref: RunRef) -> None:
    assert pickle.loads(pickle.dumps(ref)) == ref


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, pipeline.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_metrics_files_and_status_arrive(ref: RunRef, spool: Path, tmp_path: Path) -> None:
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "page.html").write_text("page")
    (tmp_path / "config.yaml").write_text("seed: 0")
    with RunWriter(ref, spool) as writer:
        for step in range(3):
            writer.log({"train/loss": 3.0 - step, "acc": step / 2}, step)
        writer.artifact(tmp_path / "config.yaml")
        writer.artifact(tmp_path / "atlas", "reports")
    assert history(ref, "train/loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert history(ref, "acc") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert files(ref) == ["config.yaml", "reports"]
    assert files(ref, "reports/atlas") == ["reports/atlas/page.html"]
    assert status(ref) == "FINISHED"
    assert on_disk(spool) == []
    assert not [path for path in spool.with_suffix(".files").rglob("*") if path.is_file()]


def test_more_points_than_a_batch_holds(ref: RunRef, spool: Path) -> None:
    with RunWriter(ref, spool) as writer:
        for step in range(1100):
            writer.log({"loss": float(step)}, step)
    assert [step for step, _ in history(ref, "loss")] == list(range(1100))


@pytest.mark.parametrize(("error", "expected"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_leaving_by_an_exception_sets_the_status(
    ref: RunRef, spool: Path, error: type[BaseException], expected: str
) -> None:
    with pytest.raises(error), RunWriter(ref, spool):
        raise error
    assert status(ref) == expected


@pytest.mark.parametrize("reachable", [True, False])
def test_a_writer_that_outlives_the_driver_does_not_change_how_it_ended_the_run(
    ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    writer = RunWriter(ref, spool)
    with monkeypatch.context() as broken:
        writer.flush()
        if not reachable:
            broken.setattr(MlflowClient, "set_terminated", unreachable)
        end_run(ref, spool, "KILLED")
    writer.finish("FAILED")
    assert status(ref) == "KILLED"


def test_values_that_are_not_finite_are_counted_not_drawn(ref: RunRef, spool: Path) -> None:
    with RunWriter(ref, spool) as writer:
        writer.log({"loss": 1.0}, 0)
        writer.log({"loss": float("nan"), "acc": 0.5}, 1)
        writer.log({"loss": float("inf")}, 2)
    assert history(ref, "loss") == [(0, 1.0)]
    assert history(ref, "acc") == [(1, 0.5)]
    assert history(ref, "non_finite/loss") == [(1, 1.0), (2, 1.0)]


def test_name_that_mlflow_refuses_is_an_error_before_anything_is_spooled(ref: RunRef, spool: Path) -> None:
    with RunWriter(ref, spool) as writer:
        with pytest.raises(ValueError, match=r"'a\$'"):
            writer.log({"good": 1.0, "a$": 1.0}, 0)
        writer.log({"fine/name_1-2.3 x": 1.0}, 0)
    assert history(ref, "good") == []
    assert history(ref, "fine/name_1-2.3 x") == [(0, 1.0)]


def test_resumed_run_continues_without_duplicates(
    ref: RunRef, storage: Path, folder: Folder, spool: Path, tmp_path: Path
) -> None:
    with RunWriter(ref, spool) as writer:
        for step in range(5):
            writer.log({"loss": float(step)}, step)
        writer.log({"late": 1.0}, 2)
        writer.finish("FAILED")
    again = open_run(config(storage), folder)
    assert again.run_id == ref.run_id
    assert status(ref) == "RUNNING"
    with RunWriter(again, tmp_path / "other-node.jsonl") as writer:
        for step in range(3, 8):  # the checkpoint lies two epochs back
            writer.log({"loss": step + 0.5, "late": float(step)}, step)
    assert history(ref, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.5), (6, 6.5), (7, 7.5)]
    assert [step for step, _ in history(ref, "late")] == [2, 3, 4, 5, 6, 7]
    assert status(ref) == "FINISHED"


def test_run_that_was_deleted_is_replaced_once(
    ref: RunRef, storage: Path, folder: Folder, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client(ref).delete_run(ref.run_id)
    first = open_run(config(storage), folder)
    assert first.run_id != ref.run_id
    assert "no longer exists" in caplog.text
    assert open_run(config(storage), folder).run_id == first.run_id
    RunWriter(ref, spool).finish("FINISHED")  # a worker that still holds the old reference
    assert status(first) == "FINISHED"


@pytest.mark.usefixtures("by_hand")
def test_a_run_that_is_deleted_while_it_trains_is_replaced_with_all_that_it_had(ref: RunRef, spool: Path) -> None:
    with RunWriter(ref, spool) as writer:
        for step in range(3):
            writer.log({"loss": float(step)}, step)
        writer.tag("alarms", "collapse")
        writer.flush()
        client(ref).delete_run(ref.run_id)
        writer.log({"loss": 3.0}, 3)
        writer.flush()  # the store refuses: the run is deleted
        writer._next_send = 0.0
        writer.flush()
        replaced = writer.ref
    assert replaced.run_id != ref.run_id
    assert history(replaced, "loss") == [(step, float(step)) for step in range(4)]
    assert client(ref).get_run(replaced.run_id).data.tags["alarms"] == "collapse"
    assert status(replaced) == "FINISHED"


def test_a_folder_that_was_copied_to_another_name_is_a_run_of_its_own(
    ref: RunRef, storage: Path, folder: Folder
) -> None:
    shutil.copytree(folder.path, storage / "run-2")
    other = open_run(config(storage), Folder(f"{storage}/run-2"))
    assert other.run_id != ref.run_id
    assert client(ref).get_run(other.run_id).info.run_name == "run-2"
    assert open_run(config(storage), folder).run_id == ref.run_id
    assert open_run(config(storage), Folder(f"{storage}/run-2")).run_id == other.run_id


def test_nobody_waits_for_a_store_but_who_ends_the_run(
    ref: RunRef, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store holds its answer back until the loop is done; all that the loop has logged arrives."""
    answers, asked, send = threading.Event(), threading.Event(), Sender.send

    def slow(self: Sender) -> None:
        asked.set()
        assert answers.wait(60)
        send(self)

    monkeypatch.setattr(Sender, "send", slow)
    (tmp_path / "note.txt").write_text("note")
    with RunWriter(ref, spool) as writer:
        assert asked.wait(60)
        for step in range(50):
            writer.log({"loss": float(step)}, step)
        writer.tag("alarms", "collapse")
        writer.artifact(tmp_path / "note.txt")
        assert not answers.is_set()
        answers.set()
    assert [step for step, _ in history(ref, "loss")] == list(range(50))
    assert files(ref) == ["note.txt"]
    assert status(ref) == "FINISHED"


def test_a_store_that_is_unreachable_for_a_while(
    ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pipeline.tracking")
    monkeypatch.setattr(writer_module, "SEND_SECONDS", 0.01)
    writer = RunWriter(ref, spool)
    writer.log({"loss": 0.0}, 0)
    writer.flush()
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", unreachable)
        for step in range(1, 5):
            writer.log({"loss": float(step)}, step)
            writer.flush()
        assert [row[1] for row in on_disk(spool)] == [1, 2, 3, 4]
    writer.log({"loss": 5.0}, 5)
    assert eventually(lambda: on_disk(spool) == [])
    assert [step for step, _ in history(ref, "loss")] == [0, 1, 2, 3, 4, 5]
    writer.finish("FINISHED")
    ours = [record.message for record in caplog.records if record.name == "pipeline.tracking.writer"]
    assert [message.split(" wait in ")[0] for message in ours] == [
        "MLflow cannot be reached; records",
        "MLflow answers again; all waiting records were sent",
    ]


def test_tries_become_rare_while_the_store_is_unreachable(
    ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(ref, spool)
    tries: list[int] = []

    def refuse(*_: object, **__: object) -> NoReturn:
        tries.append(1)
        unreachable()

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    for step in range(20):
        writer.log({"loss": 0.0}, step)
        writer.flush()
    assert len(tries) == 1


def test_next_writer_sends_what_a_killed_one_left(ref: RunRef, spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    Spool(spool).add([MetricPoint("loss", 0, 0.0, 0)])
    with spool.open("a") as file:
        file.write('\n["loss", 1, 0.')  # killed in the middle of a line
    with RunWriter(ref, spool) as writer:
        writer.log({"loss": 9.0}, 0)
        writer.log({"loss": 1.0}, 1)
    assert history(ref, "loss") == [(0, 0.0), (1, 1.0)]
    assert "line 3 is damaged" in caplog.text


def test_system_metrics_continue_on_resume(ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    for attempt in (1, 2):
        with RunWriter(ref, spool, system_metrics=True) as writer:
            writer.flush()
            monitor = writer._monitor
            assert monitor is not None
            until = time.monotonic() + 20
            while monitor._logging_step < 2 * attempt and time.monotonic() < until:
                time.sleep(0.1)
        assert monitor._process is None  # its thread was joined
    steps = [step for step, _ in history(ref, "system/cpu_utilization_percentage")]
    assert len(steps) >= 4
    assert steps == list(range(len(steps)))


@pytest.mark.slow
def test_real_server_that_starts_late(
    start_server: Callable[[], None], address: str, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SEND_SECONDS", 0.1)
    (tmp_path / "note.txt").write_text("note")
    spool = spool_path(folder)
    ref = open_run(config("s3://bucket", address), folder)
    with RunWriter(ref, spool) as writer:
        writer.log({"loss": 0.0}, 0)
        writer.artifact(tmp_path / "note.txt", "notes")
        assert len(on_disk(spool)) == 1
        start_server()
        writer.log({"loss": 1.0}, 1)
        assert eventually(lambda: on_disk(spool) == [])
    ref = open_run(config("s3://bucket", address), folder)
    with RunWriter(ref, spool) as writer:
        writer.log({"loss": 7.0}, 1)
        writer.log({"loss": 2.0}, 2)
    assert history(ref, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert files(ref, "notes") == ["notes/note.txt"]
    assert status(ref) == "FINISHED"


def test_nothing_is_recorded_where_records_are_off(storage: Path, folder: Folder, tmp_path: Path) -> None:
    (storage / "mlflow.db").unlink()
    (tmp_path / "note.txt").write_text("note")
    ref = open_run(config("s3://bucket", "no store", enabled=False), folder)
    with RunWriter(ref, spool_path(folder), system_metrics=True) as writer:
        writer.log({"loss": 1.0}, 0)
        with pytest.raises(ValueError, match=r"'a\$'"):
            writer.log({"a$": 1.0}, 0)
        writer.artifact(tmp_path / "note.txt")
        writer.flush()
        assert writer.ref == ref
    tag_run(ref, {"digpro.best": "true"})
    assert register_model(ref, "mine", {}) is None
    assert ref.public_uri == ""
    assert [path.name for path in storage.rglob("*")] == ["run-1", "mlflow.json"]


def test_records_that_were_off_can_be_switched_on(storage: Path, folder: Folder, spool: Path) -> None:
    open_run(config(storage, enabled=False), folder)
    ref = open_run(config(storage), folder)
    RunWriter(ref, spool).finish("FINISHED")
    assert status(ref) == "FINISHED"


def test_what_the_store_refuses_keeps_back_nothing_else(
    ref: RunRef, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept = MlflowClient.log_artifact

    def refuse_large(self: MlflowClient, run_id: str, path: str, folder: str | None = None) -> None:
        if path.endswith("large.txt"):
            raise PermissionError("413: too large")
        accept(self, run_id, path, folder)

    monkeypatch.setattr(MlflowClient, "log_artifact", refuse_large)
    for name in ("large.txt", "small.txt"):
        (tmp_path / name).write_text(name)
    with RunWriter(ref, spool) as writer:
        writer.artifact(tmp_path / "large.txt")
        writer.artifact(tmp_path / "small.txt")
        writer.log({"loss": 1.0}, 0)
    assert history(ref, "loss") == [(0, 1.0)]
    assert files(ref) == ["small.txt"]
    assert status(ref) == "FINISHED"
    assert "MLflow refuses the records" in caplog.text
    assert "1 records wait for MLflow" in caplog.text
