"""What else can go wrong while a run is on: the server, the disk, the numbers, the data."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient

from pipeline import runs as trainer
from pipeline.collectives import rank
from pipeline.config.loading import load_config
from pipeline.errors import RunFailed
from pipeline.runs.train import train
from pipeline.training import worker
from tests.helpers.runs import EPOCHS, outcome, settings

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module", autouse=True)
def ray_stops() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    return run(folder, "name=whole")


def run(folder: Path, *more: str) -> dict[str, Any]:
    return train(load_config("digits", settings(folder, *more)))


def after_epoch(run_folder: Path, act: Callable[[], None]) -> threading.Thread:
    """A thread that acts once, when a run has saved its second checkpoint."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while len(list(run_folder.glob("checkpoint_2*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def mlflow_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A server on the loopback interface, once it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    process = subprocess.Popen([*command, *stores], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return process
        except OSError:
            time.sleep(0.3)
    raise AssertionError("mlflow server did not start")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_mlflow_server_that_is_away_for_a_while_loses_nothing(folder: Path, whole: dict[str, Any]) -> None:
    port, servers = free_port(), []
    servers.append(mlflow_server(folder, port))

    def away() -> None:
        stop(servers[0])
        time.sleep(3)
        servers.append(mlflow_server(folder, port))

    thread = after_epoch(folder / "runs" / "away", away)
    uri = f"http://127.0.0.1:{port}"
    summary = run(folder, "name=away", f"tracking.uri={uri}", "tracking.system_metrics=false")
    thread.join()
    try:
        history = MlflowClient(uri).get_metric_history(summary["mlflow"]["run_id"], "inertia")
        assert [point.step for point in history] == list(range(EPOCHS + 1))
        assert MlflowClient(uri).get_run(summary["mlflow"]["run_id"]).info.status == "FINISHED"
        assert outcome(summary["folder"]) == outcome(whole["folder"])
    finally:
        stop(servers[-1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk: {mount.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_ends_the_run_with_its_reason_and_space_brings_it_back(
    folder: Path, small_disk: Path, whole: dict[str, Any]
) -> None:
    filler = small_disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)

    mine = [
        f"storage={small_disk}",
        f"tracking.uri=sqlite:///{folder}/disk.db",
        "name=disk",
        "resources.max_failures=1",
    ]
    thread = after_epoch(small_disk / "disk", fill)
    with pytest.raises(RunFailed, match=r"[Nn]o space left"):
        run(folder, *mine)
    thread.join()
    filler.unlink()
    assert outcome(run(folder, *mine)["folder"]) == outcome(whole["folder"])


def nan_at(step: int, times: int, marks: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A worker function that spoils the weights before a step of epoch 2, the first `times` times it gets there."""

    def poisoned(job: dict[str, Any]) -> dict[str, Any]:
        honest = worker.train_step

        def train_step(run: worker.Run, batch: Any) -> None:
            if (run.state.epoch, run.state.step) == (1, step):
                passes = len(list(marks.glob(f"{rank()}-*")))
                (marks / f"{rank()}-{passes}").touch()
                if passes < times:
                    next(run.state.model.parameters()).data.fill_(float("nan"))
            honest(run, batch)

        worker.train_step = train_step
        return worker.train_worker(job)

    return poisoned


def test_numbers_that_go_wrong_once_are_healed_by_a_restart(
    folder: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "train_worker", nan_at(step=3, times=1, marks=tmp_path))
    assert outcome(run(folder, "name=nanonce")["folder"]) == outcome(whole["folder"])
    assert len(list(tmp_path.iterdir())) == 4  # two workers passed there twice


def test_numbers_that_always_go_wrong_end_the_run_with_the_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "train_worker", nan_at(step=3, times=99, marks=tmp_path))
    with pytest.raises(RunFailed, match=r"Diverged.*not finite in epoch 2, at or before step 5.*lower optim\.lr"):
        run(folder, "name=nanalways", "resources.max_failures=1")


def test_a_shard_that_breaks_during_a_streaming_run_is_named_and_mended(folder: Path) -> None:
    expected = outcome(run(folder, "name=stream", "data.mode=streaming")["folder"])
    shard = next((folder / "digits").glob("shard-*.parquet"))
    sound = shard.read_bytes()
    thread = after_epoch(folder / "runs" / "broken", lambda: shard.write_bytes(sound[: len(sound) // 2]))
    mine = ["name=broken", "data.mode=streaming", "resources.max_failures=1"]
    with pytest.raises(RunFailed, match=shard.name):
        run(folder, *mine)
    thread.join()
    shard.write_bytes(sound)
    assert outcome(run(folder, *mine)["folder"]) == expected
