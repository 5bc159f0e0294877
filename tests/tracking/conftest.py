"""A real MLflow in SQLite for every test: a migrated database, copied, because creating one takes seconds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient

from pipeline.storage import Folder
from pipeline.tracking import RunRef, RunWriter, open_run, spool_path
from tests.tracking.helpers import config


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def storage(tmp_path: Path, empty_store: Path) -> Path:
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "mlflow.db").write_bytes(empty_store.read_bytes())
    return tmp_path / "storage"


@pytest.fixture
def folder(storage: Path) -> Folder:
    return Folder(f"{storage}/run-1").make()


@pytest.fixture
def ref(storage: Path, folder: Folder) -> RunRef:
    return open_run(config(storage), folder, tags={"preset": "digits"})


@pytest.fixture
def spool(folder: Folder) -> Path:
    return spool_path(folder)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers send when a test flushes them, and not in between."""
    monkeypatch.setattr(RunWriter, "_send_in_background", lambda self: None)


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start_server(storage: Path, address: str) -> Iterator[Callable[..., None]]:
    """Start `mlflow server` with further options on the address, and end its process group with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str, prefix: str = "") -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", address.rsplit(":", 1)[1], "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{storage}/mlflow.db", "--artifacts-destination", str(storage)]
        command += options
        started.append(subprocess.Popen(command, cwd=storage, start_new_session=True, stderr=subprocess.DEVNULL))
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                urlopen(f"{address}{prefix}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        pytest.fail("mlflow server did not start in 60 s")

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
