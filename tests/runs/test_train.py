"""What stops a run before anything is started: settings and data that cannot work."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data.class_lists import ClassList
from pipeline.data.ingest import ingest
from pipeline.data.shards import read_manifest
from pipeline.errors import ConfigError, DataError
from pipeline.runs import train as module
from pipeline.runs.identity import SUMMARY, claim_folder, record_start
from pipeline.runs.train import load_or_ingest, resolve, train
from pipeline.tracking import open_run, spool_path
from pipeline.tracking.spool import MetricPoint, Spool


@pytest.fixture
def data(tmp_path: Path) -> Path:
    ingest("digits", str(tmp_path / "digits"), rows_per_shard=600)
    return tmp_path / "digits"


def _train(folder: Path, *settings: str) -> None:
    train(load_config("digits", [f"storage={folder}/runs", f"data.path={folder}/digits", *settings]))


@pytest.fixture(autouse=True)
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray would be a failure of these tests: everything is known before."""
    monkeypatch.setattr(module, "connect", lambda: pytest.fail("Ray was started"))


def test_a_truncated_shard_is_named(data: Path) -> None:
    shard = sorted(data.glob("shard-*.parquet"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=shard.name):
        _train(data.parent)


def test_a_missing_column_is_named(data: Path) -> None:
    shard = sorted(data.glob("shard-*.parquet"))[0]
    pq.write_table(pq.read_table(shard).drop_columns(["image"]), shard)
    with pytest.raises(DataError, match="column 'image' is missing"):
        _train(data.parent)


def test_a_wrong_index_is_named(data: Path) -> None:
    shard = sorted(data.glob("shard-*.parquet"))[0]
    table = pq.read_table(shard)
    pq.write_table(table.set_column(2, "index", pc.add(table["index"], 1)), shard)
    with pytest.raises(DataError, match="has index 1, not 0"):
        _train(data.parent)


def test_a_data_set_that_lacks_images_goes_on_with_a_line(tmp_path: Path) -> None:
    counts = dict.fromkeys(map(str, range(10)), None) | {"0": 178, "1": 200}
    ingest("digits", str(tmp_path / "digits"), classes=ClassList(name="mine", images=counts))
    lines = list[str]()
    found = load_or_ingest(load_config("digits", [f"data.path={tmp_path}/digits"]), lines.append)
    assert found.num_images == 1797
    said = "class counts differ from mine: 1,797 images; 1: 182 images, 200 expected"
    assert lines == [f"warning: {tmp_path}/digits: {said}"]


def test_a_data_set_of_another_source_goes_on_with_a_line(tmp_path: Path) -> None:
    ingest("digits", str(tmp_path / "digits"))
    lines = list[str]()
    for source in ("digits", "null", "imagefolder:photos"):
        load_or_ingest(load_config("digits", [f"data.path={tmp_path}/digits", f"data.source={source}"]), lines.append)
    assert lines == [
        f"warning: {tmp_path}/digits holds the images of digits; to use data.source=imagefolder:photos, give another "
        "data.path"
    ]


def test_train_takes_the_classes_on_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ingests no others, and says when the folder holds others."""
    monkeypatch.setattr(module, "connect", lambda: None)  # a source is read with Ray where there is much of it
    for name, classes in [("few", "3\n5\t182\n"), ("more", "3\n5\n7\n")]:
        (tmp_path / name).write_text(classes)
    lines = list[str]()
    for name in ("few", "few", "more"):
        settings = [f"data.path={tmp_path}/digits", f"data.classes={tmp_path}/{name}"]
        found = load_or_ingest(load_config("digits", settings), lines.append)
        assert found.class_names == ["3", "5"]
    assert found.num_images == 365
    assert lines == [
        f"ingesting digits into {tmp_path}/digits",
        f"warning: the classes of {tmp_path}/digits are not those of data.classes={tmp_path}/more (they differ in "
        "'7'); to use that list, give another data.path",
    ]


def test_a_list_of_classes_that_does_not_exist_is_named(tmp_path: Path) -> None:
    ingest("digits", str(tmp_path / "digits"))
    with pytest.raises(DataError, match=r"'imagenet10' is neither a list .*did you mean 'imagenet-10'"):
        _train(tmp_path, "data.classes=imagenet10")


def test_more_clusters_than_images_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.num_clusters=5000 exceeds the 1,?797 images"):
        _train(data.parent, "method.num_clusters=5000")
    assert not list((data.parent / "runs").glob("*/run.json"))  # and the name is not taken


def test_a_storage_path_that_cannot_be_written_is_refused(data: Path) -> None:
    (data.parent / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        _train(data.parent, f"storage={data.parent}/file/runs")


def test_paths_mean_the_same_in_every_process() -> None:
    config = resolve(load_config("digits", ["storage=runs", "data.path=data/digits"]), "digits")
    assert Path(config.storage).is_absolute()
    assert Path(config.data.path).is_absolute()
    assert config.name is not None
    assert config.name.startswith("digits-")


def _finished_with_waiting_records(folder: Path) -> RunConfig:
    """A finished run whose last metric was spooled while MLflow was unreachable."""
    config = resolve(
        load_config("digits", [f"storage={folder}/runs", f"data.path={folder}/digits", "name=mine"]), "digits"
    )
    run = claim_folder(config)
    record_start(run, read_manifest(config.data.path))
    open_run(config, run)
    run.write(SUMMARY, {"scores": {}})
    Spool(spool_path(run)).add([MetricPoint("acc", 1, 0.5, 1000)])
    return config


def test_the_command_of_a_finished_run_delivers_what_waits(data: Path) -> None:
    lines: list[str] = []
    config = _finished_with_waiting_records(data.parent)
    assert train(config, echo=lines.append) == {"scores": {}}
    assert lines[1] == f"1 waiting records were sent to sqlite:///{data.parent}/runs/mlflow.db"
    assert train(config, echo=lines.append) == {"scores": {}}
    assert len(lines) == 3  # nothing waits any more


def test_a_store_that_is_gone_does_not_hide_a_finished_result(data: Path) -> None:
    lines: list[str] = []
    config = _finished_with_waiting_records(data.parent)
    (data.parent / "runs" / "mlflow.db").unlink()
    assert train(config, echo=lines.append) == {"scores": {}}
    assert lines[1].startswith("records wait for MLflow and cannot be sent: ")
