"""The trained model in MLflow: as the LoggedModel of its run, and as a version in the registry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel

from pipeline.tracking import MODEL, RunRef, RunWriter, register_model, tag_run
from pipeline.tracking.spool import Spool
from tests.tracking.helpers import NOBODY


def mlflow_model(folder: Path, content: str = "flavors: {}") -> Path:
    """A folder as MLflow's models are, with nothing in it that could be loaded."""
    (folder / MODEL / "code").mkdir(parents=True, exist_ok=True)
    (folder / MODEL / "MLmodel").write_text(content)
    (folder / MODEL / "code" / "part.py").write_text("")
    return folder / MODEL


def logged(ref: RunRef) -> list[LoggedModel]:
    client = MlflowClient(ref.uri)
    found = client.search_logged_models([client.get_run(ref.run_id).info.experiment_id])
    return [model for model in found if model.source_run_id == ref.run_id]


def content(model: LoggedModel) -> dict[str, str]:
    place = Path(model.artifact_location.removeprefix("file://"))
    return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}


def test_a_model_becomes_the_runs_logged_model(ref: RunRef, spool: Path, tmp_path: Path) -> None:
    with RunWriter(ref, spool) as writer:
        writer.model(mlflow_model(tmp_path))
    (model,) = logged(ref)
    assert (model.name, str(model.status)) == (MODEL, "READY")
    assert content(model) == {"MLmodel": "flavors: {}", "code/part.py": ""}
    run = MlflowClient(ref.uri).get_run(ref.run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


def test_a_run_that_ends_twice_has_one_model_with_the_newest_content(ref: RunRef, spool: Path, tmp_path: Path) -> None:
    """A kill after the model was sent and before the summary was written makes the end of a run happen again."""
    for text in ("flavors: {}", "flavors: {a: 1}"):
        with RunWriter(ref, spool) as writer:
            writer.model(mlflow_model(tmp_path, text))
    (model,) = logged(ref)
    assert content(model)["MLmodel"] == "flavors: {a: 1}"


def test_a_model_waits_for_a_store_that_is_unreachable(spool: Path, tmp_path: Path) -> None:
    nobody = RunRef(NOBODY, "pending-1", "digpro", "run", {}, {})
    with RunWriter(nobody, spool) as writer:
        writer.model(mlflow_model(tmp_path))
    (waiting,) = Spool(spool).models()
    assert (waiting / "code" / "part.py").is_file()


def test_tags_are_set_after_the_end(ref: RunRef) -> None:
    tag_run(ref, {"digpro.best": "true", "digpro.reason": "x" * 10_000})
    tags = MlflowClient(ref.uri).get_run(ref.run_id).data.tags
    assert tags["digpro.best"] == "true"
    assert set(tags["digpro.reason"]) == {"x"}


def test_a_runs_model_is_registered_once(ref: RunRef, spool: Path, tmp_path: Path) -> None:
    with RunWriter(ref, spool) as writer:
        writer.model(mlflow_model(tmp_path))
    assert [register_model(ref, "mine", {"digpro.search": "s"}) for _ in range(2)] == ["1", "1"]
    (version,) = MlflowClient(ref.uri).search_model_versions("name = 'mine'")
    assert version.run_id == ref.run_id
    assert version.tags == {"digpro.search": "s"}
    assert json.loads(logged(ref)[0].tags["mlflow.modelVersions"]) == [{"name": "mine", "version": 1}]
    assert Path(version.source.removeprefix("file://"), "MLmodel").is_file()


def test_an_unreachable_server_is_named_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    nobody = RunRef(NOBODY, "pending-1", "digpro", "run", {}, {})
    tag_run(nobody, {"digpro.best": "true"})
    assert register_model(nobody, "mine", {}) is None
    assert "could not be tagged" in caplog.text
    assert "could not be registered" in caplog.text
