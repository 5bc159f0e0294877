"""A real `mlflow server` below a prefix, and one that asks for a login (docs/tracking.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.server.auth.client import AuthServiceClient

from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.tracking import RunRef, RunWriter, open_run, spool_path, store_fault
from tests.tracking.helpers import config, files, history, status

pytestmark = pytest.mark.chaos

ADMIN, PASSWORD = "admin", "a-long-password"


def record(folder: Folder, uri: str, **tracking: str) -> RunRef:
    """Record a run with a metric and a file on a server, and end it."""
    note = Path(folder.path) / "note.txt"
    note.write_text("note")
    ref = open_run(config("s3://bucket", uri, **tracking), folder)
    with RunWriter(ref, spool_path(folder)) as writer:
        writer.log({"loss": 1.0}, 1)
        writer.artifact(note, "notes")
    return ref


def assert_recorded(ref: RunRef) -> None:
    assert history(ref, "loss") == [(1, 1.0)]
    assert files(ref, "notes") == ["notes/note.txt"]
    assert status(ref) == "FINISHED"


def test_the_prefix_of_a_server_is_a_part_of_its_address(
    start_server: Callable[..., None], address: str, folder: Folder
) -> None:
    start_server("--static-prefix", "/mlflow", prefix="/mlflow")
    assert store_fault(f"{address}/mlflow", "digpro") == ""
    assert_recorded(record(folder, f"{address}/mlflow"))
    with pytest.raises(ConfigError, match=r"cannot be used: .*with its --static-prefix if it has one"):
        record(folder, address)


@pytest.fixture
def log_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def log_in(user: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    return log_in


@pytest.fixture
def users(
    start_server: Callable[..., None],
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    log_in: Callable[[str, str], None],
) -> AuthServiceClient:
    """The administrator's access to the users of a server that asks for a login."""
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "secret")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", PASSWORD)
    start_server("--app-name", "basic-auth")
    log_in(ADMIN, PASSWORD)
    return AuthServiceClient(address)


def test_a_login_and_the_permission_to_edit_are_needed(
    users: AuthServiceClient, log_in: Callable[[str, str], None], address: str, storage: Path
) -> None:
    def folder(name: str) -> Folder:
        return Folder(f"{storage}/{name}").make()

    assert_recorded(record(folder("by-admin"), address))
    users.create_user("anna", PASSWORD)
    experiment = MlflowClient(address).get_experiment_by_name("digpro")
    assert experiment is not None

    log_in("anna", "wrong-password")
    with pytest.raises(ConfigError, match="check the user and the password"):
        record(folder("wrong-password"), address)
    log_in("anna", PASSWORD)
    with pytest.raises(ConfigError, match="this user's permissions on the server"):
        record(folder("may-only-read"), address)
    assert "this user's permissions" in store_fault(address, "digpro")
    assert_recorded(record(folder("own-experiment"), address, experiment="annas"))

    log_in(ADMIN, PASSWORD)
    users.grant_user_permission("anna", "experiment", experiment.experiment_id, "EDIT")
    log_in("anna", PASSWORD)
    assert store_fault(address, "digpro") == ""
    assert_recorded(record(folder("may-edit"), address))
