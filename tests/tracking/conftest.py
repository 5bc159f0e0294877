"""A real MLflow in SQLite for every test: a migrated database, copied, because creating one takes seconds."""

from __future__ import annotations

from pathlib import Path

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
