"""What stops a run before anything is started: settings and data that cannot work."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.errors import ConfigError, DataError
from pipeline.runs import train as module
from pipeline.runs.train import resolve_paths_and_name, train


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
    pq.write_table(table.take([*range(1, len(table)), 0]), shard)
    with pytest.raises(DataError, match="has index 1, not 0"):
        _train(data.parent)


def test_more_clusters_than_images_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.num_clusters=5000 exceeds the 1,?797 images"):
        _train(data.parent, "method.num_clusters=5000")
    assert not list((data.parent / "runs").glob("*/run.json"))  # and the name is not taken


def test_a_storage_path_that_cannot_be_written_is_refused(data: Path) -> None:
    (data.parent / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        _train(data.parent, f"storage={data.parent}/file/runs")


def test_paths_mean_the_same_in_every_process() -> None:
    config = resolve_paths_and_name(load_config("digits", ["storage=runs", "data.path=data/digits"]), "digits")
    assert Path(config.storage).is_absolute()
    assert Path(config.data.path).is_absolute()
    assert config.name is not None
    assert config.name.startswith("digits-")
