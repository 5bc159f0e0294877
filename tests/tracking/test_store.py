"""Where the records go: URIs, and storage in folders of every name."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.tracking import RunRef, open_run, redacted, spool_path, tracking_uri
from pipeline.tracking.store import database_path
from tests.tracking.helpers import client, config, files, history, status

NAMES = [
    "plain", "ümlaut", "日本😀", "a b", " lead", "50%", "%41", "a#b", "a?b", "a'b", 'a"b', "a[b]", "a\\b", "a\nb",
    "a;b&c=d:e+f@g*h|i,j~{k}<l>`$m",
]  # fmt: skip

WORKER = """
import pickle, sys
from pathlib import Path
from pipeline.tracking import RunWriter
for ref, spool, file in pickle.load(open(sys.argv[1], "rb")):
    with RunWriter(ref, spool) as writer:
        writer.log({"loss": 2.0}, 1)
        writer.artifact(file, "notes")
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[str, tuple[Path, RunRef]]:
    """A run below every name: opened by this process, written by another one that works elsewhere."""
    top, runs, jobs = tmp_path_factory.mktemp("names"), {}, []
    (top / "driver").mkdir()
    (top / "worker").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(top / "driver")
        for number, name in enumerate(NAMES):
            storage = top / str(number) / name
            storage.mkdir(parents=True)
            (storage / "mlflow.db").write_bytes(empty_store.read_bytes())
            folder = Folder(f"{storage}/run").make()
            (storage / "note.txt").write_text(name)
            runs[name] = (storage, open_run(config(storage), folder))
            jobs.append((runs[name][1], spool_path(folder), storage / "note.txt"))
    (top / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    here = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", WORKER, top / "jobs.pickle"]
    subprocess.run(command, cwd=top / "worker", env=os.environ | {"PYTHONPATH": here}, check=True)
    return runs


@pytest.mark.parametrize("name", NAMES)
def test_records_lie_below_every_name_and_nowhere_else(recorded: dict[str, tuple[Path, RunRef]], name: str) -> None:
    storage, ref = recorded[name]
    assert database_path(ref.uri) == storage / "mlflow.db"
    assert history(ref, "loss") == [(1, 2.0)]
    assert files(ref, "notes") == ["notes/note.txt"]
    assert status(ref) == "FINISHED"
    (artifact,) = (storage / "mlflow-artifacts").rglob("note.txt")
    assert artifact.read_text() == name
    assert [path.name for path in storage.parent.iterdir()] == [name]
    assert {path.name for path in storage.iterdir()} == {"mlflow.db", "mlflow-artifacts", "note.txt", "run"}
    top = storage.parents[1]
    assert [*(top / "driver").iterdir(), *(top / "worker").iterdir()] == []


@pytest.mark.slow
def test_a_database_is_created_below_the_worst_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    storage = tmp_path / "here" / "ü %41#?'\"[]\\😀;&=:"
    ref = open_run(config(storage), Folder(f"{storage}/run").make())
    assert client(ref).get_run(ref.run_id).info.status == "RUNNING"
    assert [path.name for path in storage.parent.iterdir()] == [storage.name]
    assert {path.name for path in storage.iterdir()} == {"mlflow.db", "mlflow-artifacts", "run"}
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_uri_stays_the_same_when_it_is_read_again(name: str) -> None:
    uri = tracking_uri(None, f"/runs/{name}")
    assert tracking_uri(uri, "/elsewhere") == uri


def test_a_plain_path_makes_the_uri_that_everyone_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///a/b.db", "s3://bucket") == f"sqlite:///{tmp_path}/a/b.db"
    assert tracking_uri(None, "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri(None, f"file://{tmp_path}/my%20runs") == f"sqlite:///{tmp_path}/my runs/mlflow.db"


def test_a_path_that_is_not_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\\udcff.*rename the folder"):
        tracking_uri(None, "/runs/\udcff")


@pytest.mark.parametrize(
    ("uri", "storage", "message"),
    [
        (None, "s3://bucket/runs?region=x", r"set tracking\.uri .*tracking\.enabled=false"),
        ("./mlruns", "/runs", "give a server"),
        ("htp://me:secret@host", "/runs", r"htp://\*\*\*@host.*give a server"),
        ("sqlite://", "/runs", "in-memory database that ends with its process; give a server"),
        ("sqlite:///:memory:", "/runs", "in-memory database that ends with its process"),
        ("sqlite://home/me/x.db", "/runs", "four slashes"),
        ("sqlite:////home/what?/x.db", "/runs", "%3F"),
    ],
)
def test_a_uri_that_cannot_work_is_refused(uri: str | None, storage: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tracking_uri(uri, storage)


def test_the_environment_variable_is_named_when_it_is_wrong_and_unset_when_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is 'mlruns'"):
        tracking_uri(None, "/runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(None, "/runs") == "sqlite:////runs/mlflow.db"


@pytest.mark.parametrize("login", ["me:secret", "me:se@cret", "secret", "me:secret@", ":secret"])
def test_no_part_of_a_login_is_shown(login: str) -> None:
    shown = redacted(f"at http://{login}@host:5000/x and postgresql://{login}@db/y")
    assert shown == "at http://***@host:5000/x and postgresql://***@db/y"


OPEN = """
import sys
from pipeline.tracking.diagnosis import check_store
from pipeline.tracking.store import client_for
check_store(sys.argv[1])
print(len(client_for(sys.argv[1]).search_experiments()))
"""


def test_commands_that_create_the_store_at_the_same_time_wait_for_each_other(tmp_path: Path) -> None:
    """MLflow alone runs its migrations twice, and leaves a damaged database."""
    command = [sys.executable, "-c", OPEN, f"sqlite:///{tmp_path}/new/mlflow.db"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=120) for process in started]
    assert [out for out, _ in answers] == ["1\n"] * 3, answers
