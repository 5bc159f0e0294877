"""What stops a run before anything is started: settings and data that cannot work."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.exceptions import RayActorError
from ray.train.v2.api.exceptions import ControllerError

from pipeline import runs as trainer
from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.errors import ConfigError, DataError
from pipeline.runs import resolve_paths_and_name, train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    ingest("digits", str(tmp_path / "digits"), rows_per_shard=600)
    return tmp_path / "digits"


def _train(folder: Path, *settings: str) -> None:
    train(load_config("digits", [f"storage={folder}/runs", f"data.path={folder}/digits", *settings]))


@pytest.fixture(autouse=True)
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray would be a failure of these tests: everything is known before."""
    monkeypatch.setattr(trainer, "connect", lambda: pytest.fail("Ray was started"))


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


class DyingStart:
    """A trainer, of which a worker dies while it is being started, so many times."""

    def __init__(self, deaths: int, cause: Exception) -> None:
        self.deaths, self.cause, self.fits = deaths, cause, 0

    def fit(self) -> str:
        self.fits += 1
        if self.fits <= self.deaths:
            raise ControllerError(self.cause)
        return "result"


def test_a_worker_that_dies_while_it_is_started_is_started_again() -> None:
    starts = DyingStart(2, RayActorError())
    assert trainer.fit_through_starts(starts, retries=2) == "result"
    assert starts.fits == 3


@pytest.mark.parametrize(("deaths", "cause"), [(3, RayActorError()), (1, ValueError("a fault of ours"))])
def test_starts_that_never_work_are_given_up(deaths: int, cause: Exception) -> None:
    with pytest.raises(ControllerError):
        trainer.fit_through_starts(DyingStart(deaths, cause), retries=2)
