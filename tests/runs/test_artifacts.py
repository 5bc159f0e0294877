"""What a finished run leaves: assignments, what of it goes to MLflow, and the profile with the ledger of its epochs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from pipeline.build import settle_images
from pipeline.collectives import RowRange
from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.read import regroup
from pipeline.data.shards import read_manifest
from pipeline.errors import DataError
from pipeline.inference.card import TRAINING_CLUSTERS
from pipeline.inference.predict import TrainingClusters, measure_clusters, predict
from pipeline.inference.run_features import prediction_table, write_features
from pipeline.runs import artifacts as module
from pipeline.runs.artifacts import draw, keep_profile, log_file, log_model, write_assignments
from pipeline.storage import Folder
from pipeline.tracking import RunRef, RunWriter
from tests.helpers.images import encoded, put
from tests.helpers.models import BranchingModel, card

IMAGES, CLUSTERS = 50, 3


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Shards of 50 images, in folders by class."""
    for number in range(IMAGES):
        put(tmp_path / f"images/{number % 2}/{number:02}.png", encoded(5 * number))
    ingest(f"imagefolder:{tmp_path}/images", str(tmp_path / "data"), rows_per_shard=20)
    return str(tmp_path / "data")


def write_predictions(run: Path, *parts: range) -> pa.Table:
    """Features of the images in parts of these indices; returns them as one table."""
    similarities = F.normalize(torch.randn(IMAGES, CLUSTERS, generator=torch.Generator().manual_seed(0)), dim=1)
    (run / "features").mkdir(parents=True)
    table = prediction_table(predict(similarities), index=torch.arange(IMAGES), features=similarities)
    for number, part in enumerate(parts):
        rows = table.slice(part.start, len(part))
        pq.write_table(rows, run / f"features/part-{number:05}-of-{len(parts):05}.parquet", row_group_size=8)
    return table


@pytest.mark.parametrize("block", [7, 65_536])
def test_assignments_join_predictions_paths_and_labels(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    run = Folder(str(tmp_path / "run"))
    written = write_predictions(tmp_path / "run", range(30), range(30, IMAGES))
    write_assignments(run, data, IMAGES, CLUSTERS)
    table = pq.read_table(tmp_path / "run/assignments.parquet")
    columns = ["index", "path", "cluster", "similarity", "runner_up", "margin", "outlier", "label"]
    types = ["int64", "string", "int64", "float", "int64", "float", "float", "int64"]
    assert list(zip(table.column_names, map(str, table.schema.types), strict=True)) == list(
        zip(columns, types, strict=True)
    )
    for name in ("index", "cluster", "similarity", "runner_up", "margin"):
        assert table.column(name).to_pylist() == written.column(name).to_pylist()
    shards = pa.concat_tables([pq.read_table(path) for path in sorted(Path(data).glob("shard-*"))])
    assert table.column("path").to_pylist() == [image["path"] for image in shards.column("image").to_pylist()]
    assert table.column("label").to_pylist() == shards.column("label").to_pylist()
    assert set(table.column("label").to_pylist()) == {0, 1}
    clusters = json.loads((tmp_path / "run" / TRAINING_CLUSTERS).read_text())
    own = table.column("cluster").to_numpy()
    assert clusters["sizes"] == np.bincount(own, minlength=CLUSTERS).tolist()
    below = np.array(clusters["median"])[own] - table.column("similarity").to_numpy()
    expected = (below / np.array(clusters["deviation"])[own]).astype(np.float32)
    assert np.array_equal(table.column("outlier").to_numpy(), expected)


def test_other_images_are_compared_with_what_the_model_sees_in_those_of_the_training(data: str, tmp_path: Path) -> None:
    """And the run's own images with those by which they were clustered."""
    draw = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(IMAGES, CLUSTERS, generator=draw), dim=1)
    seen = F.normalize(features + 0.5 * torch.randn(IMAGES, CLUSTERS, generator=draw), dim=1)
    run, centers = Folder(str(tmp_path / "run")), torch.eye(CLUSTERS)
    write_features(run, features, centers, RowRange(0, IMAGES, IMAGES), seen)
    write_assignments(run, data, IMAGES, CLUSTERS)
    table = pq.read_table(tmp_path / "run/assignments.parquet")
    assert table.column("cluster").to_pylist() == features.argmax(dim=1).tolist()
    own = measure_clusters(lambda: [(features.argmax(dim=1).numpy(), features.amax(dim=1).numpy())], CLUSTERS)
    expected = own.outlier(table.column("cluster").to_numpy(), table.column("similarity").to_numpy())
    np.testing.assert_allclose(table.column("outlier").to_numpy(), expected, rtol=1e-4, atol=1e-4)
    by_model = measure_clusters(lambda: [(seen.argmax(dim=1).numpy(), seen.amax(dim=1).numpy())], CLUSTERS)
    found = TrainingClusters.model_validate_json((tmp_path / "run" / TRAINING_CLUSTERS).read_text())
    assert found.sizes == by_model.sizes != own.sizes
    assert found.median == pytest.approx(by_model.median, abs=1e-5)


def test_the_picture_of_the_clusters_counts_all_images(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are a sample; the shares of classes and the sizes must be those of the atlas."""
    drawn: dict[str, Any] = {}

    def keep(path: Path, images: Any, cluster: Any, similarity: Any, totals: Any, names: Any) -> None:
        drawn.update(images=len(images), totals=totals)

    monkeypatch.setattr(module, "SAMPLE", 10)
    monkeypatch.setattr(module, "draw_clusters", keep)
    run = Folder(str(tmp_path / "run"))
    clusters = write_predictions(tmp_path / "run", range(IMAGES)).column("cluster").to_numpy()
    write_assignments(run, data, IMAGES, CLUSTERS)
    config = settle_images(load_config("digits", [f"data.path={data}", "name=run"]))
    values = {"centers": torch.zeros(CLUSTERS, 3), "history": []}
    draw(run, config, read_manifest(data), values, tmp_path)
    assert drawn["images"] < IMAGES
    assert drawn["totals"].sizes.tolist() == np.bincount(clusters, minlength=CLUSTERS).tolist()
    assert drawn["totals"].classes[:, 2].sum() == IMAGES


def test_a_run_keeps_its_results_when_torch_cannot_export_its_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A network of one's own may decide by values, which no export can follow; hours of training must not be lost."""
    ref = RunRef("", "", "digpro", "mine", {}, {})  # without records
    with RunWriter(ref, tmp_path / "spool") as writer:
        log_model(BranchingModel(), card(), tmp_path, writer)
    assert "MLflow gets no model of run mine: torch.export cannot convert the network" in caplog.text


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([range(30), range(30, 40)], "has 40 features, not one for each of 50 images"),
        ([range(30), range(35, 50)], "has index 35 to 49 where 30 should follow"),
    ],
)
def test_features_of_other_images_are_refused(data: str, tmp_path: Path, parts: list[range], said: str) -> None:
    write_predictions(tmp_path / "run", *parts)
    with pytest.raises(DataError, match=said):
        write_assignments(Folder(str(tmp_path / "run")), data, IMAGES, CLUSTERS)


def test_tables_are_cut_anew() -> None:
    tables = [pa.table({"x": list(rows)}) for rows in (range(1), range(1, 2), range(2, 9), range(9, 10))]
    assert [table.column("x").to_pylist() for table in regroup(tables, 3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_mlflow_gets_a_pointer_to_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MLFLOW_BYTES", 3)
    sent: dict[str, bytes] = {}
    writer: Any = SimpleNamespace(artifact=lambda path: sent.update({path.name: path.read_bytes()}))
    run, local = Folder(str(tmp_path / "run")).make(), tmp_path / "local"
    local.mkdir()
    run.write_bytes("small.png", b"abc")
    run.write_bytes("large.parquet", b"abcd")
    for name in ("small.png", "large.parquet"):
        log_file(run, name, local, writer)
    assert sent.keys() == {"small.png", "large.parquet.json"}
    assert sent["small.png"] == b"abc"
    assert json.loads(sent["large.parquet.json"]) == {"file": f"{run.path}/large.parquet", "bytes": 4}


def test_the_profile_gets_a_ledger_and_goes_to_mlflow(tmp_path: Path) -> None:
    profile, local = Folder(str(tmp_path / "run/profile")).make(), tmp_path / "local"
    profile.write_bytes("trace-0.json.gz", b"trace")
    local.mkdir()
    sent: dict[str, bytes] = {}
    writer = SimpleNamespace(artifact=lambda path, folder: sent.update({f"{folder}/{path.name}": path.read_bytes()}))
    keep_profile(profile, [{"epoch": 1.0, "seconds_step": 2.0, "loss": 3.0}], local, writer)
    assert sent.keys() == {"profile/trace-0.json.gz", "profile/ledger.json"}
    assert sent["profile/trace-0.json.gz"] == b"trace"
    assert json.loads(sent["profile/ledger.json"]) == {"epochs": [{"epoch": 1.0, "seconds_step": 2.0}]}
