"""Evaluating a run: what is refused at once, and what is counted. For a finished run see test_end_to_end.py."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.loading import load_config
from pipeline.errors import ConfigError, DataError
from pipeline.inference.assign import AssignReport
from pipeline.runs import evaluate as module
from pipeline.runs.assign import assign_images, group_key, group_sizes
from pipeline.runs.evaluate import contingency, count_assignments, evaluate
from pipeline.runs.models import TrainedModel
from pipeline.storage import Folder
from tests.helpers.images import encoded
from tests.helpers.manifests import manifest
from tests.helpers.models import card, cluster_model


@pytest.fixture
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started() -> None:
        raise AssertionError("Ray was started before the input was checked")

    monkeypatch.setattr("pipeline.runs.assign.connect", started)


@pytest.mark.usefixtures("_no_ray")
@pytest.mark.parametrize("content", [None, "a folder", "a run that never started"])
def test_what_is_no_finished_run_is_refused(tmp_path: Path, content: str | None) -> None:
    run = tmp_path / "run"
    if content:
        run.mkdir()
    if content == "a run that never started":
        identity = {"config": load_config("digits").model_dump()}
        (run / "run.json").write_text(json.dumps(identity))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="run holds no run; give the folder"):
        evaluate(str(run))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_without_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runs.assign.connect", lambda: None)
    (tmp_path / "data").mkdir()
    manifest().write(str(tmp_path / "data"))
    config = load_config("digits", [f"data.path={tmp_path / 'data'}"])
    identity = {"config": config.model_dump(), "manifest": manifest().model_dump()}
    (tmp_path / "run.json").write_text(json.dumps(identity))
    with pytest.raises(ConfigError, match=r"no readable checkpoint; run its `digpro train` again"):
        evaluate(str(tmp_path))
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.usefixtures("_no_ray")
def test_images_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = TrainedModel(cluster_model(), card(), "digest", 4, str(tmp_path / "run"))
    monkeypatch.setattr("pipeline.runs.assign.open_model", lambda _: known)
    with pytest.raises(DataError, match=r"none.* is neither a kind of source nor an existing path"):
        evaluate(str(tmp_path / "run"), data=str(tmp_path / "none"))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("_no_ray")
def test_a_run_without_its_images_asks_for_them(tmp_path: Path) -> None:
    config = load_config("digits", [f"data.path={tmp_path / 'moved'}"])
    identity = {"config": config.model_dump(), "manifest": manifest().model_dump()}
    (tmp_path / "run.json").write_text(json.dumps(identity))
    with pytest.raises(
        ConfigError, match=r"was trained on the images in \S+/moved, but .* give their folder as --data"
    ):
        evaluate(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.usefixtures("_no_ray")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"manifest": {}}, r"run\.json is damaged, or of another version \(\S+: Field required\); restore it"),
        ({"manifest": manifest().model_dump(), "config": None}, r"run\.json is damaged, or of another version"),
        ({"manifest": None}, r"run\.json is damaged, or of another version"),
    ],
)
def test_a_damaged_record_of_a_run_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    config = load_config("digits", [f"data.path={tmp_path / 'data'}"])
    (tmp_path / "run.json").write_text(json.dumps({"config": config.model_dump()} | values))
    with pytest.raises(ConfigError, match=message):
        evaluate(str(tmp_path))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "assignments.parquet").mkdir()
    (tmp_path / "assignments.parquet/part-00000.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"assignments.parquet/part-00000.parquet cannot be read .*; delete the folder"):
        count_assignments(Folder(str(tmp_path)))


def test_an_output_belongs_to_a_model_and_images_whatever_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an operating system left there, and another name of the run or of clusters, change nothing."""
    images, out = tmp_path / "images", tmp_path / "out"
    for folder in (images, out):
        folder.mkdir()
    (images / "a.png").write_bytes(encoded())
    (out / ".DS_Store").touch()
    model = TrainedModel(cluster_model(), card(), "digest", 4, str(tmp_path / "run"))
    monkeypatch.setattr("pipeline.runs.assign.open_model", lambda _: model)
    monkeypatch.setattr("pipeline.runs.assign.connect", lambda: None)
    monkeypatch.setattr("pipeline.runs.assign._assign", lambda *_: AssignReport(images=1, sizes=[1, 0, 0, 0]))
    monkeypatch.setattr("pipeline.runs.assign.cluster_facts", dict)
    lines = list[str]()
    first = assign_images("run", str(images), str(out), echo=lines.append)
    renamed = replace(model, card=card({1: "one"}).model_copy(update={"run": "renamed"}))
    monkeypatch.setattr("pipeline.runs.assign.open_model", lambda _: renamed)
    second = assign_images("run", str(images), str(out), echo=lines.append)
    assert [cluster["name"] for cluster in first["clusters"]] == [None] * 4
    assert [cluster["name"] for cluster in second["clusters"]] == [None, "one", None, None]
    assert lines == [f"{out} has earlier names of clusters; they are replaced"]
    monkeypatch.setattr("pipeline.runs.assign.open_model", lambda _: replace(model, weights="another"))
    with pytest.raises(ConfigError, match=r"holds other assignments: model 'weights digest, .*, now 'weights another"):
        assign_images("run", str(images), str(out))
    with pytest.raises(DataError, match="images/out lies inside the source"):
        assign_images("run", str(images), str(images / "out"))


def test_a_model_of_mlflow_has_no_images_and_no_folder_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"photos/3 is an MLflow model, not a folder; give --data and --out"):
        evaluate("photos/3", data="digits")


def test_assignments_are_counted_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARTS_AT_ONCE", 2)
    (tmp_path / "assignments.parquet").mkdir()
    for part, (label, cluster) in enumerate([([1, 1, -1], [0, 2, 0]), ([1], [2]), ([0, 1], [0, 0])]):
        table = pa.table({"label": label, "cluster": cluster})
        pq.write_table(table, tmp_path / f"assignments.parquet/part-{part:05}.parquet")
    (tmp_path / "assignments.parquet/part-00003.parquet.tmp").write_bytes(b"of a killed actor")
    found = count_assignments(Folder(str(tmp_path)))
    assert found == {(1, 0): 2, (1, 2): 2, (-1, 0): 1, (0, 0): 1}


def test_a_name_that_is_a_number_merges_nothing_with_the_cluster_of_that_number() -> None:
    named = [(0, "2"), (1, "cat"), (2, None), (3, "cat")]
    clusters = [{"cluster": number, "name": name, "images": 10 + number} for number, name in named]
    assert group_sizes({"clusters": clusters}) == {"2": 10, "cat": 24, 2: 12}
    counts = Counter({(4, 0): 3, (4, 2): 1, (9, 1): 5, (9, 3): 1})
    table = contingency(counts, [group_key(cluster) for cluster in clusters])
    np.testing.assert_array_equal(table.toarray()[[4, 9]], [[3, 0, 1], [0, 6, 0]])


def test_counts_become_a_table_of_the_classes_that_are_known() -> None:
    counts = Counter({(4, 0): 3, (4, 2): 1, (9, 2): 5, (-1, 1): 7})
    np.testing.assert_array_equal(contingency(counts, [0, 1, 2]).toarray()[[4, 9]], [[3, 0, 1], [0, 0, 5]])
    np.testing.assert_array_equal(contingency(counts, ["cat", "dog", "cat"]).toarray()[[4, 9]], [[4, 0], [5, 0]])
