"""What is added to runs that have ended, against a real MLflow in SQLite, and against none."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.config.models import DataConfig, RunConfig
from pipeline.tracking import RunRef, RunWriter, open_run, register_model, tag_run

pytestmark = pytest.mark.slow  # MLflow takes seconds to make a database


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> RunRef:
    folder = tmp_path_factory.mktemp("registry")
    found = open_run(RunConfig(data=DataConfig(path="shards")), str(folder), "run", None, {})
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").write_text("flavors: {}")
    with RunWriter(found, folder / "spool.jsonl") as writer:
        writer.artifact(folder / "model")
    return found


def test_tags_are_set_after_the_end(ref: RunRef) -> None:
    tag_run(ref, {"digpro.best": "true", "digpro.reason": "x" * 10_000})
    tags = MlflowClient(ref.uri).get_run(ref.run_id).data.tags
    assert tags["digpro.best"] == "true"
    assert set(tags["digpro.reason"]) == {"x"}


def test_a_runs_model_is_registered_once(ref: RunRef) -> None:
    assert [register_model(ref, "mine", {"digpro.search": "s"}) for _ in range(2)] == ["1", "1"]
    (version,) = MlflowClient(ref.uri).search_model_versions("name = 'mine'")
    assert version.run_id == ref.run_id
    assert version.tags == {"digpro.search": "s"}
    assert Path(version.source.removeprefix("file://"), "MLmodel").is_file()


def test_a_server_that_is_away_is_named_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    nobody = RunRef("http://127.0.0.1:9", "pending-1", "digpro", "run", {}, {})
    tag_run(nobody, {"digpro.best": "true"})
    assert register_model(nobody, "mine", {}) is None
    assert "could not be tagged" in caplog.text
    assert "could not be registered" in caplog.text
