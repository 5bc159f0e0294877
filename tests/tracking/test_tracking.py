"""Tracking against a real MLflow: SQLite in a temporary folder, a server started by the test, and no server."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from pipeline.config.models import DataConfig, OptimConfig, RunConfig, TrackingConfig
from pipeline.errors import ConfigError
from pipeline.tracking import RunRef, RunWriter, deliver, flatten, log_final_model, open_run
from pipeline.tracking import writer as writer_module
from pipeline.tracking.store import tracking_uri

NOBODY = "http://127.0.0.1:9"  # the discard port: connections are refused at once


def config(uri: str | None = None) -> RunConfig:
    return RunConfig(data=DataConfig(path="shards"), optim=OptimConfig(lr=0.1), tracking=TrackingConfig(uri=uri))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database, copied by the tests: creating one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def storage(tmp_path: Path, empty_store: Path) -> Path:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mlflow.db").write_bytes(empty_store.read_bytes())
    return tmp_path / "storage"


@pytest.fixture
def ref(storage: Path) -> RunRef:
    return open_run(config(), str(storage), "run-1", None, {"preset": "digits"})


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "metrics.jsonl"


def client(ref: RunRef) -> MlflowClient:
    return MlflowClient(ref.uri)


def history(ref: RunRef, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client(ref).get_metric_history(ref.run_id, key)]


def files(ref: RunRef, folder: str | None = None) -> list[str]:
    return [item.path for item in client(ref).list_artifacts(ref.run_id, folder)]


def away(*_: object, **__: object) -> NoReturn:
    raise ConnectionError("gone")


def on_disk(spool: Path) -> list[list[object]]:
    return [json.loads(line) for line in spool.read_text().splitlines()]


def test_flatten_writes_dotted_keys_and_values_as_overrides_are_written() -> None:
    params = flatten(config())
    assert params["optim.lr"] == "0.1"
    assert params["views.crop_scale"] == "[0.08, 1.0]"
    assert params["model.small_stem"] == "true"
    assert params["tracking.uri"] == "null"
    assert params["data.path"] == "shards"


def test_flatten_respects_the_length_that_mlflow_takes() -> None:
    assert len(flatten(DataConfig(path="x" * 7000))["path"]) == 6000


def test_open_run_logs_params_and_environment(ref: RunRef, storage: Path) -> None:
    run = client(ref).get_run(ref.run_id)
    assert ref.uri == f"sqlite:///{storage}/mlflow.db"
    assert run.data.params == flatten(config())
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


@pytest.mark.parametrize(
    ("uri", "storage_dir", "remedy"),
    [
        (None, "s3://bucket/runs", "set tracking.uri"),
        ("./mlruns", "/runs", "give a server"),
        ("htp://host", "/runs", "give a server"),
        ("sqlite://", "/runs", "give a file"),
    ],
)
def test_uri_that_cannot_work_is_refused(uri: str | None, storage_dir: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        open_run(config(uri), storage_dir, "run", None, {})


def test_relative_database_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///a/b.db", "s3://bucket") == f"sqlite:///{tmp_path}/a/b.db"
    assert tracking_uri(None, "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri(None, f"file://{tmp_path}/my%20runs") == f"sqlite:///{tmp_path}/my runs/mlflow.db"


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
    assert client(ref).get_run(ref.run_id).info.status == "FINISHED"
    assert on_disk(spool) == []
    assert not [path for path in spool.with_suffix(".files").rglob("*") if path.is_file()]


def test_more_points_than_a_batch_holds(ref: RunRef, spool: Path) -> None:
    with RunWriter(ref, spool) as writer:
        for step in range(1100):
            writer.log({"loss": float(step)}, step)
    assert [step for step, _ in history(ref, "loss")] == list(range(1100))


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_leaving_by_an_exception_sets_the_status(
    ref: RunRef, spool: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), RunWriter(ref, spool):
        raise error
    assert client(ref).get_run(ref.run_id).info.status == status


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


def test_resumed_run_continues_without_duplicates(ref: RunRef, storage: Path, spool: Path, tmp_path: Path) -> None:
    with RunWriter(ref, spool) as writer:
        for step in range(5):
            writer.log({"loss": float(step)}, step)
        writer.log({"late": 1.0}, 2)
        writer.finish("FAILED")
    again = open_run(config(), str(storage), "run-1", ref.run_id, {})
    assert again.run_id == ref.run_id
    assert client(ref).get_run(ref.run_id).info.status == "RUNNING"
    with RunWriter(again, tmp_path / "other-node.jsonl") as writer:
        for step in range(3, 8):  # the checkpoint lies two epochs back
            writer.log({"loss": step + 0.5, "late": float(step)}, step)
    assert history(ref, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.5), (6, 6.5), (7, 7.5)]
    assert [step for step, _ in history(ref, "late")] == [2, 3, 4, 5, 6, 7]
    assert client(ref).get_run(ref.run_id).info.status == "FINISHED"


def test_run_that_was_deleted_is_replaced_once(
    ref: RunRef, storage: Path, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client(ref).delete_run(ref.run_id)
    first = open_run(config(), str(storage), "run-1", ref.run_id, {})
    assert first.run_id != ref.run_id
    assert "no longer exists" in caplog.text
    assert open_run(config(), str(storage), "run-1", ref.run_id, {}).run_id == first.run_id
    RunWriter(ref, spool).finish("FINISHED")  # a worker that still holds the old reference
    assert client(first).get_run(first.run_id).info.status == "FINISHED"


def test_server_that_goes_away_and_returns(
    ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pipeline.tracking")
    monkeypatch.setattr(writer_module, "SEND_SECONDS", 0.0)
    writer = RunWriter(ref, spool)
    writer.log({"loss": 0.0}, 0)
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", away)
        for step in range(1, 5):
            writer.log({"loss": float(step)}, step)
            writer.flush()
        assert [row[1] for row in on_disk(spool)] == [1, 2, 3, 4]
    writer.log({"loss": 5.0}, 5)
    assert [step for step, _ in history(ref, "loss")] == [0, 1, 2, 3, 4, 5]
    assert on_disk(spool) == []
    ours = [record.message for record in caplog.records if record.name == "pipeline.tracking.writer"]
    assert [message.split(",")[0] for message in ours] == ["MLflow is away", "MLflow is back"]


def test_tries_become_rare_while_the_server_is_away(ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(ref, spool)
    tries: list[int] = []

    def refuse(*_: object, **__: object) -> NoReturn:
        tries.append(1)
        away()

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    for step in range(20):
        writer.log({"loss": 0.0}, step)
        writer.flush()
    assert len(tries) == 1


@pytest.mark.parametrize("by_another_process", [False, True])
def test_lost_reply_does_not_double_points(
    ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch, by_another_process: bool
) -> None:
    monkeypatch.setattr(writer_module, "SEND_SECONDS", 0.0)
    send = MlflowClient.log_batch

    def lost_reply(self: MlflowClient, *args: Any, **kwargs: Any) -> NoReturn:
        send(self, *args, **kwargs)
        away()

    writer = RunWriter(ref, spool)
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", lost_reply)
        writer.log({"loss": 1.0}, 1)
    assert len(on_disk(spool)) == 1
    sent: list[object] = []
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args, **_: sent.append(args))
    if by_another_process:
        assert deliver(spool, ref) == 0
    else:
        writer.flush()
    assert on_disk(spool) == []
    assert sent == []
    assert history(ref, "loss") == [(1, 1.0)]


def test_points_of_a_dead_node_arrive_even_after_later_ones(ref: RunRef, spool: Path, tmp_path: Path) -> None:
    writer = RunWriter(ref, spool)
    writer._next_send = float("inf")  # the node dies before its next send
    for step in range(3):
        writer.log({"loss": float(step)}, step)
    with RunWriter(ref, tmp_path / "other-node.jsonl") as other:
        for step in range(2, 5):
            other.log({"loss": step + 0.5}, step)
    assert deliver(spool, ref) == 0
    assert history(ref, "loss") == [(0, 0.0), (1, 1.0), (2, 2.5), (3, 3.5), (4, 4.5)]
    assert client(ref).get_run(ref.run_id).info.status == "FINISHED"  # not reopened


def test_next_writer_sends_what_a_killed_one_left(ref: RunRef, spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed = RunWriter(ref, spool)
    killed._next_send = float("inf")
    killed.log({"loss": 0.0}, 0)
    with spool.open("a") as file:
        file.write('["loss", 1, 0.')  # killed in the middle of a line
    with RunWriter(ref, spool) as writer:
        writer.log({"loss": 9.0}, 0)
        writer.log({"loss": 1.0}, 1)
    assert history(ref, "loss") == [(0, 0.0), (1, 1.0)]
    assert "line 2 is damaged" in caplog.text


def test_deliver_names_a_wrong_path(ref: RunRef, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl"):
        deliver(tmp_path / "nothing.jsonl", ref)


def test_training_without_a_server_then_delivery(
    spool: Path, storage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    ref = open_run(config(NOBODY), "s3://bucket/runs", "offline", None, {"preset": "digits"})
    with RunWriter(ref, spool, system_metrics=True) as writer:
        writer.log({"loss": 1.0}, 0)
        (tmp_path / "config.yaml").write_text("seed: 0")
        writer.artifact(tmp_path / "config.yaml")
        (tmp_path / "config.yaml").unlink()  # the spool holds a copy
    assert time.monotonic() - started < 20
    assert ref.run_id.startswith("pending-")
    assert deliver(spool, ref) == 3  # a point, a file and the status
    assert f"3 points and files wait for MLflow in {spool}" in caplog.text

    there = RunRef(f"sqlite:///{storage}/mlflow.db", ref.run_id, ref.experiment, ref.name, ref.tags, ref.params)
    assert deliver(spool, there) == 0
    assert deliver(spool, there) == 0
    runs = client(there).search_runs([item.experiment_id for item in client(there).search_experiments()])
    assert [run.info.run_name for run in runs] == ["offline"]
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.params["optim.lr"] == "0.1"
    assert runs[0].data.metrics == {"loss": 1.0}
    resumed = open_run(config(), str(storage), "offline", ref.run_id, {})  # the id that the checkpoint holds
    assert resumed.run_id == runs[0].info.run_id
    assert files(resumed) == ["config.yaml"]


def test_passwords_stay_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    open_run(config("http://me:secret@127.0.0.1:9"), "/runs", "run", None, {})
    assert "cannot be reached" in caplog.text
    assert "secret" not in caplog.text


def test_system_metrics_continue_on_resume(ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    for attempt in (1, 2):
        with RunWriter(ref, spool, system_metrics=True) as writer:
            monitor = writer._monitor
            assert monitor is not None
            until = time.monotonic() + 20
            while monitor._logging_step < 2 * attempt and time.monotonic() < until:
                time.sleep(0.1)
        assert monitor._process is None  # its thread was joined
    steps = [step for step, _ in history(ref, "system/cpu_utilization_percentage")]
    assert len(steps) >= 4
    assert steps == list(range(len(steps)))


class Assigner(torch.nn.Module):
    """uint8 images (N, H, W, 3) to scores, with the layers that behave otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images.permute(0, 3, 1, 2).float() / 255)).mean((2, 3))


def test_final_model_has_a_signature_and_loads_back(ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    model, images = Assigner().train(), np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    with RunWriter(ref, spool) as writer:
        log_final_model(writer, model, images)
    assert model.training
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images)).numpy()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ref.uri)
    uri = f"runs:/{ref.run_id}/model"
    assert mlflow.models.get_model_info(uri).signature.inputs.inputs[0].shape == (-1, 8, 8, 3)
    assert [path for path in files(ref, "model/data") if not path.endswith(".pt2")] == []  # no pickle
    loaded = mlflow.pytorch.load_model(uri)
    np.testing.assert_allclose(loaded(torch.from_numpy(images)).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mlflow.pyfunc.load_model(uri).predict(images), expected, rtol=1e-5, atol=1e-6)


def test_final_model_needs_a_batch(ref: RunRef, spool: Path) -> None:
    with RunWriter(ref, spool) as writer, pytest.raises(ValueError, match=r"\(1, 8, 8, 3\)"):
        log_final_model(writer, Assigner(), np.zeros((1, 8, 8, 3), np.uint8))


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start_server(storage: Path, address: str) -> Iterator[Callable[[], None]]:
    """Start `mlflow server` on the address, and end its process group with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", address.rsplit(":", 1)[1], "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{storage}/mlflow.db", "--artifacts-destination", str(storage)]
        started.append(subprocess.Popen(command, cwd=storage, start_new_session=True, stderr=subprocess.DEVNULL))
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                urlopen(f"{address}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail("mlflow server did not start in 60 s")

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_real_server_that_starts_late(
    start_server: Callable[[], None], address: str, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SEND_SECONDS", 0.0)
    (tmp_path / "note.txt").write_text("note")
    ref = open_run(config(address), "s3://bucket", "late", None, {})
    with RunWriter(ref, spool) as writer:
        writer.log({"loss": 0.0}, 0)
        writer.artifact(tmp_path / "note.txt", "notes")
        assert len(on_disk(spool)) == 1
        start_server()
        writer.log({"loss": 1.0}, 1)
        assert on_disk(spool) == []
    ref = open_run(config(address), "s3://bucket", "late", ref.run_id, {})
    with RunWriter(ref, spool) as writer:
        writer.log({"loss": 7.0}, 1)
        writer.log({"loss": 2.0}, 2)
    assert history(ref, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert files(ref, "notes") == ["notes/note.txt"]
    assert client(ref).get_run(ref.run_id).info.status == "FINISHED"
