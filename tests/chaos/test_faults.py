"""Faults during a run: of the MLflow server, the disk, the numbers and the data."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from mlflow import MlflowClient

from pipeline.collectives import rank
from pipeline.config.loading import load_config
from pipeline.errors import Alarmed, RunFailed
from pipeline.runs.train import train
from pipeline.training import fit, mstep, worker
from pipeline.training.run import Run
from tests.helpers.runs import EPOCHS, TWO_WORKERS, outcome, settings

pytestmark = pytest.mark.chaos
SMALLEST_STORE, OBJECT = 80 << 20, 10 << 20  # bytes; Ray refuses a smaller store


@pytest.fixture(scope="module", autouse=True)
def stop_ray() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> dict[str, Any]:
    return run(folder, "name=uninterrupted")


def run(folder: Path, *more: str) -> dict[str, Any]:
    return train(load_config("digits", settings(folder, TWO_WORKERS, *more)))


def after_second_checkpoint(run_folder: Path, act: Callable[[], None]) -> threading.Thread:
    """Start a thread that acts once, after a run has saved its second checkpoint."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while len(list(run_folder.glob("checkpoint_2*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def start_mlflow_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a server on the loopback interface and wait until it responds."""
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
    raise AssertionError(f"the MLflow server on port {port} did not respond within 120 s")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_restart_of_the_mlflow_server_loses_no_metrics(folder: Path, uninterrupted: dict[str, Any]) -> None:
    port, servers = free_port(), []
    servers.append(start_mlflow_server(folder, port))

    def restart() -> None:
        stop(servers[0])
        time.sleep(3)
        servers.append(start_mlflow_server(folder, port))

    thread = after_second_checkpoint(folder / "runs" / "restart", restart)
    uri = f"http://127.0.0.1:{port}"
    summary = run(folder, "name=restart", f"tracking.uri={uri}", "tracking.system_metrics=false")
    thread.join()
    try:
        history = MlflowClient(uri).get_metric_history(summary["mlflow"]["run_id"], "inertia")
        assert [point.step for point in history] == list(range(EPOCHS + 1))
        assert MlflowClient(uri).get_run(summary["mlflow"]["run_id"]).info.status == "FINISHED"
        assert outcome(summary["folder"]) == outcome(uninterrupted["folder"])
    finally:
        stop(servers[-1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB, or skip where none can be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=48m", "tmpfs", place):
        yield place


@pytest.fixture
def quota(tmp_path: Path) -> Iterator[Path]:
    """A folder with a quota of 48 MB, or skip where none can be set; btrfs limits root as well."""
    if shutil.which("btrfs") is None:
        pytest.skip("btrfs-progs is not installed")
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    place.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    with mounted("-o", "loop", image, place):
        for words in (["quota", "enable"], ["subvolume", "create"], ["qgroup", "limit", "48M"]):
            target = place if words[0] == "quota" else place / "mine"
            subprocess.run(["btrfs", *words, target], check=True, capture_output=True)
        yield place / "mine"


@contextlib.contextmanager
def mounted(*arguments: str | Path) -> Iterator[None]:
    """Inside, a file system is mounted, the last argument being the place; skips where it cannot be."""
    mount = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk: {mount.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", arguments[-1]], check=True)


def fill_disk(filler: Path) -> None:
    """Write a file until its disk is full."""
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)


@pytest.mark.parametrize(("disk", "reason"), [("small_disk", "[Nn]o space left"), ("quota", "quota exceeded")])
def test_a_full_disk_ends_the_run_with_the_reason_and_it_resumes_once_there_is_space(
    folder: Path, uninterrupted: dict[str, Any], request: pytest.FixtureRequest, disk: str, reason: str
) -> None:
    storage: Path = request.getfixturevalue(disk)
    filler = storage / "filler"
    mine = [
        f"storage={storage}",
        f"tracking.uri=sqlite:///{folder}/{disk}.db",
        "name=disk",
        "resources.max_failures=1",
    ]
    thread = after_second_checkpoint(storage / "disk", lambda: fill_disk(filler))
    with pytest.raises(RunFailed, match=reason):
        run(folder, *mine)
    thread.join()
    filler.unlink()
    os.sync()  # btrfs counts deleted files until then
    assert outcome(run(folder, *mine)["folder"]) == outcome(uninterrupted["folder"])


def worker_with_nan(step: int, times: int, marks: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A worker function that sets weights to NaN before a step of epoch 2, the first `times` times it reaches it."""

    def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
        original = mstep.train_step

        def train_step(run: Run, batch: Any) -> None:
            if (run.state.epochs_done, run.state.step) == (1, step):
                passes = len(list(marks.glob(f"{rank()}-*")))
                (marks / f"{rank()}-{passes}").touch()
                if passes < times:
                    next(run.state.model.parameters()).data.fill_(float("nan"))
            original(run, batch)

        mstep.train_step = train_step
        return worker.train_worker(settings)

    return train_worker


def test_a_restart_recovers_from_nan_that_occurs_once(
    folder: Path, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "train_worker", worker_with_nan(step=3, times=1, marks=tmp_path))
    assert outcome(run(folder, "name=nanonce")["folder"]) == outcome(uninterrupted["folder"])
    assert len(list(tmp_path.iterdir())) == 4  # each of two workers reached the step twice


def test_nan_that_recurs_ends_the_run_and_names_the_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "train_worker", worker_with_nan(step=3, times=99, marks=tmp_path))
    with pytest.raises(RunFailed, match=r"Diverged.*not finite in epoch 2, at or before step 5.*lower optim\.lr"):
        run(folder, "name=nanalways", "resources.max_failures=1")


def worker_that_dies() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A worker function that writes a line in its first step, and is gone."""

    def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
        def train_step(run: Run, batch: Any) -> None:
            print("these are my last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        mstep.train_step = train_step
        return worker.train_worker(settings)

    return train_worker


def test_the_last_lines_of_a_worker_that_died_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "train_worker", worker_that_dies())
    with pytest.raises(RunFailed, match=r"failure\.txt"):
        run(folder, "name=dead", "resources.max_failures=0")
    assert "these are my last words" in (folder / "runs" / "dead" / "failure.txt").read_text()


def worker_with_bad_gradients() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A worker function whose gradients are NaN in a step of epoch 2, with the run's first seed."""

    def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
        original = mstep.train_step

        def train_step(run: Run, batch: Any) -> None:
            weight = next(run.state.model.networks.online.parameters())
            bad = (run.state.epochs_done, run.state.step) == (1, 3) and run.job.config.seed == 0
            hook = weight.register_hook(lambda gradient: gradient * (float("nan") if bad else 1))
            original(run, batch)
            hook.remove()

        mstep.train_step = train_step
        return worker.train_worker(settings)

    return train_worker


def test_an_alarm_takes_a_run_back_with_another_seed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "train_worker", worker_with_bad_gradients())
    lines: list[str] = []
    config = load_config("digits", settings(folder, TWO_WORKERS, "name=back", "alarms.not_finite=roll_back"))
    summary = train(config, echo=lines.append)
    assert [(entry["epoch"], entry["kind"], entry["lr"]) for entry in summary["rollbacks"]] == [(2, "not_finite", 0.05)]
    assert (summary["epochs"], summary["alarms"]) == (EPOCHS, [])
    assert [line for line in lines if line.startswith("rolled back to the last checkpoint, with seed")]
    tags = MlflowClient(summary["mlflow"]["uri"]).get_run(summary["mlflow"]["run_id"]).data.tags
    assert tags["alarms"] == "not_finite"


def test_an_alarm_stops_a_run_once_and_a_warning_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "train_worker", worker_with_bad_gradients())
    for _ in range(2):
        with pytest.raises(Alarmed, match=r"halted at epoch 2: 1 step was skipped.*alarms\.not_finite=warn resumes"):
            run(folder, "name=stopped", "alarms.not_finite=stop")
    summary = run(folder, "name=stopped")
    assert [(alarm["epoch"], alarm["kind"]) for alarm in summary["alarms"]] == [(2, "not_finite")]
    assert summary["last_epoch"]["epoch"] == EPOCHS


@contextlib.contextmanager
def full_object_store(spilled: Path) -> Iterator[None]:
    """A Ray cluster whose object store is full of objects in use; what does not fit goes to the folder."""
    ray.shutdown()
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    ray.init(num_cpus=2, object_store_memory=SMALLEST_STORE, object_spilling_directory=str(spilled), **options)
    held = [ray.get(ray.put(np.zeros(OBJECT, dtype=np.uint8))) for _ in range(SMALLEST_STORE // OBJECT + 1)]
    yield
    del held
    ray.shutdown()


# 44 MB a pass for each of two workers, which read the first 24 MB themselves: readers have the rest of the run.
LARGE = ["data.mode=streaming", "data.image_size=128"]


@pytest.fixture(scope="module")
def streamed_large(folder: Path) -> dict[str, Any]:
    return run(folder, "name=large", *LARGE)


def test_a_full_object_store_changes_nothing(folder: Path, tmp_path: Path, streamed_large: dict[str, Any]) -> None:
    """Ray puts what does not fit into files; that it must, the next test shows."""
    with full_object_store(tmp_path):
        found = run(folder, "name=fullstore", *LARGE)
    assert outcome(found["folder"]) == outcome(streamed_large["folder"])


def test_a_full_object_store_beside_a_full_disk_ends_the_run_with_the_reason(
    folder: Path, small_disk: Path, streamed_large: dict[str, Any]
) -> None:
    mine = ["name=fulldisk", *LARGE, "resources.max_failures=1"]
    with full_object_store(small_disk):
        fill_disk(small_disk / "filler")
        with pytest.raises(RunFailed, match="Ray's object store is full, and so is the disk"):
            run(folder, *mine)
    assert outcome(run(folder, *mine)["folder"]) == outcome(streamed_large["folder"])


def test_a_truncated_shard_is_named_and_the_run_resumes_after_its_repair(
    folder: Path, streamed_large: dict[str, Any]
) -> None:
    """Ray Data's processes find it: by then they read all, and less than the rest of the run has been read ahead."""
    shard = next((folder / "digits").glob("shard-*.parquet"))
    intact = shard.read_bytes()
    thread = after_second_checkpoint(folder / "runs" / "broken", lambda: shard.write_bytes(intact[: len(intact) // 2]))
    mine = ["name=broken", *LARGE, "resources.max_failures=1"]
    with pytest.raises(RunFailed, match=shard.name):
        run(folder, *mine)
    thread.join()
    shard.write_bytes(intact)
    assert outcome(run(folder, *mine)["folder"]) == outcome(streamed_large["folder"])
