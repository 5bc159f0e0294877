"""Records that wait: sent once, by whoever comes first, and by the driver after a writer has died."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mlflow import MlflowClient

from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError
from pipeline.storage import Folder
from pipeline.tracking import (
    Delivery,
    RunRef,
    RunWriter,
    deliver_run,
    end_run,
    load_ref,
    open_run,
    records_wait,
    save_ref,
    spool_path,
)
from pipeline.tracking.delivery import end_now
from pipeline.tracking.spool import MetricPoint, Spool
from tests.tracking.helpers import NOBODY, client, config, files, history, on_disk, status, unreachable


def test_spools_of_runs_with_one_name_lie_apart() -> None:
    assert spool_path(Folder("/runs/name")) == Path("/runs/name/mlflow-spool.jsonl")
    assert spool_path(Folder("file:///my%20runs/name")) == Path("/my runs/name/mlflow-spool.jsonl")
    remote = [f"s3://bucket-{number}/runs/name?region=us-east-1" for number in range(2)]
    first, second = (spool_path(FarAway(path)) for path in remote)
    assert first != second
    assert first == spool_path(FarAway(remote[0]))
    assert "name" in first.parent.name


class FarAway(Folder):
    """A folder in a storage that needs no connection."""

    def __init__(self, path: str) -> None:
        self.path, self.name = path, path.split("?")[0].rpartition("/")[2]

    is_local = False  # type: ignore[assignment]


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("by_the_driver", [False, True])
def test_lost_reply_does_not_double_points(
    ref: RunRef, folder: Folder, spool: Path, monkeypatch: pytest.MonkeyPatch, by_the_driver: bool
) -> None:
    send = MlflowClient.log_batch

    def lost_reply(self: MlflowClient, *args: Any, **kwargs: Any) -> NoReturn:
        send(self, *args, **kwargs)
        unreachable()

    writer = RunWriter(ref, spool)
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", lost_reply)
        writer.log({"loss": 1.0}, 1)
        writer.flush()
    assert len(on_disk(spool)) == 1
    sent: list[object] = []
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args, **_: sent.append(args))
    if by_the_driver:
        assert deliver_run(folder.path) == Delivery(1, 0, ref.uri)
    else:
        writer._next_send = 0.0
        writer.flush()
    assert on_disk(spool) == []
    assert sent == []
    assert history(ref, "loss") == [(1, 1.0)]


@pytest.mark.usefixtures("by_hand")
def test_a_tag_waits_for_the_store_and_arrives_with_its_last_value(
    ref: RunRef, folder: Folder, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(ref, spool)
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_tag", unreachable)
        writer.tag("alarms", "collapse")
        writer.tag("alarms", "collapse, not_finite")
        writer.flush()
    assert on_disk(spool) == [["tag", "alarms", "collapse, not_finite"]]
    assert deliver_run(folder.path) == Delivery(1, 0, ref.uri)
    assert on_disk(spool) == []
    assert client(ref).get_run(ref.run_id).data.tags["alarms"] == "collapse, not_finite"


def test_a_tag_that_changes_while_it_is_sent_is_sent_again(spool: Path) -> None:
    records = Spool(spool)
    records.set_tag("alarms", "collapse")
    sent = dict(records.tags)
    Spool(spool).set_tag("alarms", "collapse, not_finite")
    records.confirm_tags(sent)
    assert Spool(spool).tags == {"alarms": "collapse, not_finite"}


def test_points_of_a_dead_node_arrive_even_after_later_ones(
    ref: RunRef, folder: Folder, spool: Path, tmp_path: Path
) -> None:
    Spool(spool).add(MetricPoint("loss", step, float(step), 0) for step in range(3))  # the node dies before it sends
    with RunWriter(ref, tmp_path / "other-node.jsonl") as other:
        for step in range(2, 5):
            other.log({"loss": step + 0.5}, step)
    assert deliver_run(folder.path).waiting == 0
    assert history(ref, "loss") == [(0, 0.0), (1, 1.0), (2, 2.5), (3, 3.5), (4, 4.5)]
    assert status(ref) == "FINISHED"  # not reopened


def offline_run(folder: Folder, storage: Path, note: Path) -> RunConfig:
    """A finished run whose store could not be reached at any time, and the configuration that reaches it now."""
    ref = open_run(config("s3://bucket/runs", NOBODY), folder, tags={"preset": "digits"})
    assert ref.run_id.startswith("pending-")
    note.write_text("seed: 0")
    with RunWriter(ref, spool_path(folder), system_metrics=True) as writer:
        writer.log({"loss": 1.0}, 0)
        writer.artifact(note)
        note.unlink()  # the spool holds a copy
    return config(storage)


def test_a_run_without_a_store_is_delivered_when_it_answers(
    folder: Folder, spool: Path, storage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    reachable = offline_run(folder, storage, tmp_path / "config.yaml")
    assert time.monotonic() - started < 20
    assert deliver_run(folder.path) == Delivery(0, 3, NOBODY)  # a point, a file and the status
    assert f"3 records wait for MLflow in {spool}" in caplog.text

    uri = f"sqlite:///{storage}/mlflow.db"
    assert deliver_run(folder.path, uri) == Delivery(3, 0, uri)
    assert deliver_run(folder.path, uri) == Delivery(0, 0, uri)
    ref = open_run(reachable, folder)  # the same run is found by the id that it had before it was created
    runs = client(ref).search_runs([item.experiment_id for item in client(ref).search_experiments()])
    assert [run.info.run_id for run in runs] == [ref.run_id]
    assert runs[0].info.run_name == "run-1"
    assert runs[0].data.params["optim.lr"] == "0.1"
    assert runs[0].data.tags["preset"] == "digits"
    assert runs[0].data.metrics == {"loss": 1.0}
    assert files(ref) == ["config.yaml"]


def test_the_end_of_a_delivered_run_is_when_it_ended(folder: Folder, storage: Path, tmp_path: Path) -> None:
    offline_run(folder, storage, tmp_path / "config.yaml")
    time.sleep(0.05)
    later = int(time.time() * 1000)
    deliver_run(folder.path, f"sqlite:///{storage}/mlflow.db")
    (run,) = MlflowClient(f"sqlite:///{storage}/mlflow.db").search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert run.info.end_time < later


def test_delivery_of_a_run_that_never_recorded_is_nothing(folder: Folder) -> None:
    save_ref(folder, RunRef("", "", "digpro", "run", {}, {}))
    assert deliver_run(folder.path) == Delivery(0, 0, "")


def test_delivery_names_what_is_not_a_run(tmp_path: Path, folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"no mlflow\.json; give the folder of a training run"):
        deliver_run(str(tmp_path))
    folder.write("mlflow.json", {"run": 1})
    with pytest.raises(ConfigError, match=r"mlflow\.json is damaged .*delete it"):
        deliver_run(folder.path)


def test_delivery_makes_no_new_database_in_the_old_place(ref: RunRef, folder: Folder, storage: Path) -> None:
    RunWriter(ref, spool_path(folder))
    (storage / "mlflow.db").unlink()
    with pytest.raises(ConfigError, match=r"mlflow\.db, which does not exist"):
        deliver_run(folder.path)
    assert not (storage / "mlflow.db").exists()


def test_delivery_refuses_a_store_that_is_wrong(ref: RunRef, folder: Folder, storage: Path) -> None:
    RunWriter(ref, spool_path(folder))
    client(ref).delete_experiment(client(ref).get_experiment_by_name("digpro").experiment_id)
    with pytest.raises(ConfigError, match="was deleted; restore it"):
        deliver_run(folder.path)


def test_a_password_is_asked_for_not_kept(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "http://me:secret@127.0.0.1:9"
    open_run(config("/runs", whole), folder)
    with pytest.raises(ConfigError, match=r"http://\*\*\*@127.0.0.1:9.*set MLFLOW_TRACKING_URI"):
        load_ref(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@elsewhere")
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI"):
        load_ref(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    assert load_ref(folder).uri == whole
    assert load_ref(folder, whole).uri == whole


def test_the_driver_ends_a_run_whose_writer_died(ref: RunRef, spool: Path) -> None:
    Spool(spool).add([MetricPoint("loss", 0, 1.0, 0)])
    assert end_run(ref, spool, "KILLED") == 0
    assert history(ref, "loss") == [(0, 1.0)]
    assert status(ref) == "KILLED"


@pytest.mark.usefixtures("by_hand")
def test_a_writer_that_outlives_the_end_loses_nothing_and_does_not_resurrect_the_run(
    ref: RunRef, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(ref, spool)
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", unreachable)
        writer.log({"loss": 0.0}, 0)
        writer.flush()  # the writer has to connect again
    assert end_run(ref, spool, "KILLED") == 0
    writer.log({"loss": 1.0}, 1)
    writer._next_send = 0.0
    writer.flush()
    assert history(ref, "loss") == [(0, 0.0), (1, 1.0)]
    assert status(ref) == "KILLED"


def test_an_end_that_could_not_be_sent_waits_and_a_resumed_run_forgets_it(
    ref: RunRef, folder: Folder, spool: Path, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_terminated", unreachable)
        assert end_run(ref, spool, "KILLED") == 1
    assert status(ref) == "RUNNING"
    resumed = RunWriter(open_run(config(storage), folder), spool)
    assert (deliver_run(folder.path).sent, status(ref)) == (0, "RUNNING")
    resumed.finish("FINISHED")
    assert status(ref) == "FINISHED"


def test_the_end_in_an_old_spool_does_not_replace_a_later_one(
    ref: RunRef, folder: Folder, spool: Path, tmp_path: Path
) -> None:
    Spool(spool).set_end(end_now(ref, "KILLED", by_driver=False))  # on a node that could not reach the store
    RunWriter(ref, tmp_path / "other-node.jsonl").finish("FINISHED")
    assert deliver_run(folder.path).waiting == 0
    assert status(ref) == "FINISHED"


def test_an_attempt_with_a_clock_ahead_does_not_keep_the_next_one_running(
    ref: RunRef, folder: Folder, spool: Path, storage: Path
) -> None:
    assert end_run(ref, spool, "FAILED", ended=time.time() + 86_400) == 0
    again = open_run(config(storage), folder)
    assert status(again) == "RUNNING"
    end_run(again, spool, "KILLED")
    assert status(again) == "KILLED"


def test_the_end_of_an_earlier_attempt_does_not_end_the_next_one(
    ref: RunRef, folder: Folder, spool: Path, storage: Path, tmp_path: Path
) -> None:
    Spool(tmp_path / "other-node.jsonl").set_end(end_now(ref, "FAILED", by_driver=True))
    again = open_run(config(storage), folder)
    shutil.move(tmp_path / "other-node.jsonl", spool)
    assert deliver_run(folder.path).waiting == 0
    assert status(again) == "RUNNING"


@pytest.mark.usefixtures("by_hand")
def test_a_worker_that_comes_late_does_not_open_what_the_driver_has_ended(ref: RunRef, spool: Path) -> None:
    writer = RunWriter(ref, spool)
    end_run(ref, spool, "KILLED")
    writer.flush()  # its first connection
    assert status(ref) == "KILLED"


def test_a_later_word_of_the_driver_keeps_the_time_when_the_run_ended(ref: RunRef, spool: Path) -> None:
    RunWriter(ref, spool).finish("FINISHED")
    ended = client(ref).get_run(ref.run_id).info.end_time
    time.sleep(0.01)
    end_run(ref, spool, "FAILED")
    run = client(ref).get_run(ref.run_id)
    assert (run.info.status, run.info.end_time) == ("FAILED", ended)
    with RunWriter(ref, spool, reopen=False) as writer:
        writer.log({"late": 1.0}, 0)
    run = client(ref).get_run(ref.run_id)
    assert (run.info.status, run.info.end_time) == ("FAILED", ended)
    assert history(ref, "late") == [(0, 1.0)]


def test_the_status_arrives_while_the_store_of_files_is_away(
    ref: RunRef, spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note.txt").write_text("note")
    monkeypatch.setattr(MlflowClient, "log_artifact", unreachable)
    with RunWriter(ref, spool) as writer:
        writer.artifact(tmp_path / "note.txt")
        writer.log({"loss": 1.0}, 0)
    assert (status(ref), history(ref, "loss")) == ("FINISHED", [(0, 1.0)])
    assert Spool(spool).pending == 1


def test_what_waits_outlives_its_node_in_a_remote_storage(
    storage: Path, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points, a file and the end, on a node whose disk goes with it; delivered from another, and the copy is gone."""
    monkeypatch.setattr(Folder, "is_local", property(lambda folder: False))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "note.txt").write_text("note")
    ref = open_run(config("s3://bucket/runs", NOBODY), folder)
    with RunWriter(ref, spool_path(folder)) as writer:
        writer.log({"loss": 1.0}, 0)
        writer.artifact(tmp_path / "note.txt")
    assert records_wait(folder)
    shutil.rmtree(spool_path(folder).parent)
    monkeypatch.setattr(platform, "node", lambda: "another")
    uri = f"sqlite:///{storage}/mlflow.db"
    assert deliver_run(folder.path) == Delivery(0, 3, NOBODY)
    assert deliver_run(folder.path, uri) == Delivery(3, 0, uri)
    assert not records_wait(folder)
    assert [name for name in folder.names() if "spool" in name] == []
    (run,) = MlflowClient(uri).search_runs(["1"])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0})


def test_a_copy_is_gone_once_its_node_has_delivered(
    ref: RunRef, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "is_local", property(lambda folder: False))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    far = dataclasses.replace(ref, remote=folder.path)
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "get_run", unreachable)
        assert end_run(far, spool_path(folder), "KILLED") == 1
    assert records_wait(folder)
    assert end_run(far, spool_path(folder), "KILLED") == 0
    assert not records_wait(folder)
    assert status(ref) == "KILLED"


def test_ending_a_run_without_a_store_does_not_raise(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    ref = open_run(config("/runs", NOBODY), folder)
    assert end_run(ref, spool_path(folder), "KILLED") == 1
    assert "1 records wait for MLflow" in caplog.text
    assert end_run(RunRef("", "", "digpro", "off", {}, {}), folder.root / Path("none.jsonl"), "KILLED") == 0


def test_two_processes_on_one_spool_lose_nothing(spool: Path) -> None:
    """One adds while the other confirms all that it sees, over and over."""
    script = (
        "import sys; from pathlib import Path; from pipeline.tracking.spool import MetricPoint, Spool\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "for step in range(300): spool.add([MetricPoint('loss', step, 1.0, 0)])\n"
    )
    seen: set[int] = set()
    adding = subprocess.Popen([sys.executable, "-c", script, spool], cwd=Path(__file__).parents[2])
    reader = Spool(spool)
    while adding.poll() is None or reader.points:
        reader.reload()
        seen |= {point.step for point in reader.points.values()}
        reader.confirm(list(reader.points.values()))
    assert adding.returncode == 0
    assert seen == set(range(300))


def test_a_half_written_line_costs_only_itself(spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    living = Spool(spool)
    with spool.open("a") as file:
        file.write('\n["loss", 1, 0.')  # another process, killed in the middle of a line
    living.add([MetricPoint("loss", 2, 1.0, 0)])
    living.reload()
    assert [point.step for point in living.points.values()] == [2]
    assert "is damaged and was skipped" in caplog.text


def test_delivery_and_the_end_of_a_run_at_once(ref: RunRef, folder: Folder, spool: Path, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(str(number))
    waiting = Spool(spool)
    waiting.add(MetricPoint("loss", step, float(step), 1) for step in range(500))
    for number in range(20):
        waiting.add_file(tmp_path / f"{number}.txt", "")
    threads = [
        threading.Thread(target=deliver_run, args=(folder.path,)),
        threading.Thread(target=end_run, args=(ref, spool, "KILLED")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deliver_run(folder.path)
    assert history(ref, "loss") == [(step, float(step)) for step in range(500)]
    assert len(files(ref)) == 20
    assert status(ref) == "KILLED"
    assert on_disk(spool) == []
