"""A store that answers and is wrong is refused before training; one that is unreachable is bridged by the spool."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests import exceptions as http
from sqlalchemy.exc import OperationalError

from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.tracking import RunRef, RunWriter, diagnosis, end_run, open_run, spool_path, store_fault
from pipeline.tracking.diagnosis import is_unreachable
from tests.tracking.helpers import NOBODY, client, config, server_that_answers


def execute(database: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def delete_experiment(database: Path) -> None:
    client = MlflowClient(f"sqlite:///{database}")
    client.delete_experiment(client.create_experiment("digpro"))


def other_program(database: Path) -> None:
    database.unlink()
    execute(database, "CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE studies (x)")


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (delete_experiment, r"was deleted; restore it \(`MLFLOW_TRACKING_URI=\S+ mlflow experiments restore .*experiment="),
    (
        lambda db: execute(db, "UPDATE alembic_version SET version_num = 'cc1f77228345'"),
        r"schema is old .*mlflow db upgrade sqlite:////",
    ),
    (
        lambda db: execute(db, "UPDATE alembic_version SET version_num = 'ffffffffffff'"),
        r"ffffffffffff is unknown .*upgrade mlflow",
    ),
    (lambda db: execute(db, "DELETE FROM alembic_version"), r"version none is unknown"),
    (lambda db: db.write_text("not a database\n" * 100), r"not a database; restore it from a backup"),
    (lambda db: os.truncate(db, db.stat().st_size // 2), r"malformed; restore it from a backup"),
    (lambda db: (db.unlink(), db.mkdir()), r"unable to open database file; make the file"),
    (other_program, r"another program \(tables: alembic_version, studies\)"),
]


@pytest.mark.parametrize(("damage", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_database_is_refused_at_once_and_left_as_it_is(
    storage: Path, folder: Folder, damage: Callable[[Path], object], message: str
) -> None:
    database = storage / "mlflow.db"
    damage(database)
    before = database.read_bytes() if database.is_file() else b""
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message) as error:
        open_run(config(storage), folder)
    assert time.monotonic() - started < 10  # MLflow alone tries some of them for 100 s
    assert "--set tracking.enabled=false" in str(error.value)
    assert "\n" not in str(error.value)
    assert (database.read_bytes() if database.is_file() else b"") == before
    assert folder.read("mlflow.json") is None


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """A user whom permissions bind: root may write everywhere."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    yield
    os.seteuid(user)


@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o444, 0o777), (0o666, 0o555), (None, 0o555)])
def test_a_database_that_may_not_be_written_is_refused(
    empty_store: Path, file_mode: int | None, folder_mode: int
) -> None:
    with tempfile.TemporaryDirectory() as place:  # unlike tmp_path, it can be opened to others
        os.chmod(place, 0o755)
        database = Path(place, "records", "mlflow.db")
        database.parent.mkdir()
        if file_mode is not None:
            database.write_bytes(empty_store.read_bytes())
            database.chmod(file_mode)
        database.parent.chmod(folder_mode)
        with ordinary_user(), pytest.raises(ConfigError, match="make the file and its folder writable for this user"):
            diagnosis.check_store(f"sqlite:///{database}")


@pytest.mark.slow
def test_an_empty_file_is_a_new_database(storage: Path, folder: Folder) -> None:
    (storage / "mlflow.db").write_bytes(b"")
    assert not open_run(config(storage), folder).run_id.startswith("pending-")


def test_a_locked_database_is_bridged(
    storage: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def locked(*_: object, **__: object) -> None:
        raise MlflowException("database is locked") from OperationalError("", {}, Exception("database is locked"))

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", locked)
    assert open_run(config(storage), folder).run_id.startswith("pending-")
    assert "MLflow is unreachable; the run is created once it answers" in caplog.text


CASES = Path(__file__).parents[3] / "shared" / "cases" / "mlflow_states.py"
STATES = {
    "deleted_experiment": "was deleted; restore it",
    "old_schema": "schema is old",
    "future_schema": "is unknown to the MLflow installed here",
    "garbage": "not a database",
    "readonly": "make the file and its folder writable",
    "empty": "",
}


@pytest.mark.slow
@pytest.mark.skipif(not CASES.is_file(), reason="the generators of cases are not here")
@pytest.mark.parametrize("kind", STATES)
def test_every_state_of_the_shared_cases(tmp_path: Path, kind: str) -> None:
    database = tmp_path / "mlflow.db"
    subprocess.run([sys.executable, CASES, database, kind], check=True, capture_output=True)
    if kind == "readonly" and os.geteuid() == 0:
        pytest.skip("root may write it; see the test of an ordinary user")
    expected = pytest.raises(ConfigError, match=STATES[kind]) if STATES[kind] else contextlib.nullcontext()
    with expected:
        open_run(config(tmp_path), Folder(f"{tmp_path}/run").make())


def test_files_that_cannot_be_written_are_refused_before_training(
    storage: Path, folder: Folder, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file where the folder of artifacts should be")
    location = (tmp_path / "taken" / "artifacts").as_uri()
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.create_experiment("digpro", artifact_location=location)
    with pytest.raises(
        ConfigError, match=r"experiment stores its files in .*taken/artifacts/.*tracking\.experiment.*enabled=false"
    ):
        open_run(config(storage), folder)
    assert [run.info.status for run in client.search_runs([experiment])] == ["FAILED"]


def test_files_that_go_to_the_place_before_a_move_are_reported(
    storage: Path, folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_run(config(storage), folder)
    assert caplog.text == ""
    storage.rename(tmp_path / "moved")
    open_run(config(tmp_path / "moved"), Folder(f"{tmp_path}/moved/run-1"))
    assert f"experiment 'digpro' stores its files in {storage}/mlflow-artifacts" in caplog.text


ANSWERS = [
    (401, "You are not authenticated", "401.*MLFLOW_TRACKING_USERNAME"),
    (403, "Invalid Host header", "403.*Invalid Host header"),
    (404, "<html>Not here</html>", "404.*address of an MLflow server"),
    (405, "Method Not Allowed", "405"),
    (200, "<html>Please log in</html>", "address of an MLflow server"),
    (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "bad name"}', "bad name"),
]


@pytest.mark.parametrize(("code", "body", "message"), ANSWERS)
def test_a_server_that_answers_and_is_wrong_is_refused(folder: Folder, code: int, body: str, message: str) -> None:
    with server_that_answers(code, body) as address, pytest.raises(ConfigError, match=message) as error:
        open_run(config("/runs", address.replace("//", "//me:secret@")), folder)
    assert "secret" not in str(error.value)
    assert "--set tracking.enabled=false" in str(error.value)


@pytest.mark.parametrize(
    ("code", "body"), [(500, "oops"), (502, ""), (503, "busy"), (500, '{"error_code": "INTERNAL_ERROR"}')]
)
def test_a_server_in_trouble_is_bridged(folder: Folder, code: int, body: str) -> None:
    with server_that_answers(code, body) as address:
        assert open_run(config("/runs", address), folder).run_id.startswith("pending-")


def test_a_missing_driver_is_refused(folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"No module named .*install the Python driver"):
        open_run(config("/runs", "postgresql://me:secret@127.0.0.1:9/mlflow"), folder)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError("refused"), True),
        (http.ConnectTimeout("slow"), True),
        (http.ConnectionError("no route"), True),
        (http.SSLError(ssl.SSLError("self-signed")), False),
        (http.InvalidURL("no host"), False),
        (OperationalError("", {}, Exception('connection to server at "db" failed: Connection refused')), True),
        (OperationalError("", {}, Exception("FATAL: password authentication failed for user")), False),
        (OperationalError("", {}, Exception("attempt to write a readonly database")), False),
        (ConfigError("deleted"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_is_unreachable_and_what_is_wrong(error: Exception, expected: bool) -> None:
    assert is_unreachable(error) is expected
    wrapped = MlflowException("request failed")
    wrapped.__context__ = error
    assert is_unreachable(wrapped) is expected


def test_passwords_stay_out_of_the_log(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ref = open_run(config("/runs", NOBODY.replace("//", "//me:secret@")), folder)
    assert ref.uri == "http://me:secret@127.0.0.1:9"
    RunWriter(ref, spool_path(folder)).finish("FINISHED")
    end_run(ref, spool_path(folder), "KILLED")
    assert "MLflow is unreachable" in caplog.text
    kept = "".join(path.read_text() for path in Path(folder.root).rglob("*") if path.is_file())
    for text in (caplog.text, repr(ref), str(ref.params), kept, ref.public_uri):
        assert "secret" not in text


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (401, "You are not authenticated", "check the user and the password"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", "with this name in --allowed-hosts"),
        (404, "Not Found", "with its --static-prefix if it has one"),
        (200, "<html>", "give the address of an MLflow server"),
    ],
)
def test_the_doctor_hears_what_a_run_would_hear(code: int, body: str, said: str) -> None:
    """All of them answer `/health`."""
    with server_that_answers(code, body) as address:
        fault = store_fault(address, "digpro")
    assert f"MLflow at {address} cannot be used" in fault
    assert said in fault


def test_the_doctor_tries_to_write(ref: RunRef, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_fault(ref.uri, "digpro") == ""
    assert client(ref).get_experiment_by_name("digpro").tags["digpro.checked"] == "by digpro doctor"
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", denied)
    assert "Permission denied" in store_fault(ref.uri, "digpro")
    assert store_fault(ref.uri, "new") == ""  # it is made by the first run


def denied(*_: object) -> NoReturn:
    raise MlflowException("API request failed with error code 403 != 200. Response body: 'Permission denied'")


def test_a_server_with_logins_is_not_asked_for_a_run_that_cannot_exist(
    storage: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer to all but administrators is that the permission is missing."""
    monkeypatch.setattr(MlflowClient, "get_run", denied)
    assert not open_run(config(storage), folder).run_id.startswith("pending-")


def test_a_bucket_that_does_not_answer_is_unreachable() -> None:
    """By name: botocore is there only where it is needed."""
    base = type("HTTPClientError", (Exception,), {"__module__": "botocore.exceptions"})
    assert is_unreachable(type("EndpointConnectionError", (base,), {"__module__": "botocore.exceptions"})())
    assert not is_unreachable(type("ClientError", (Exception,), {"__module__": "botocore.exceptions"})())


def test_mlflow_does_not_print_addresses_which_may_hold_a_password() -> None:
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"
