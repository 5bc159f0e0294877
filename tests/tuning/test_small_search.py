"""A real search on Ray in under a minute: what it leaves, with a trial that finishes and one that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient

from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.tuning.search import search
from pipeline.tuning.space import load_space
from tests.helpers.runs import settings

pytestmark = pytest.mark.slow

# The second rate diverges. The first point is not the preset's own, whose rate the space does not hold.
SPACE = """
from ray import tune
SPACE = {"optim.lr": tune.choice([0.2, 1e6])}
FIRST = [{"optim.lr": 0.2}, {"optim.lr": 1e6}]
SETTINGS = {"optim.epochs": 2}
"""
TRIAL = [
    "name=small",
    "resources.workers=1",
    "resources.cpus_per_worker=0.2",
    "resources.max_failures=0",
    "checkpoint.every_steps=null",
    "tracking.system_metrics=false",
    "estep.probe=64",
]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("search")
    (folder / "space.py").write_text(SPACE)
    shared = ray.is_initialized()
    ingest("digits", f"{folder}/digits")  # sooner without Ray
    yield search(
        load_config("digits", settings(folder, *TRIAL)),
        load_space(str(folder / "space.py")),
        label="digits",
        trials=2,
        concurrent=2,
        echo=lines.append,
    )
    if not shared:
        ray.shutdown()


def test_the_summary_has_every_trial_and_the_best(summary: dict[str, Any]) -> None:
    good, bad = summary["trials"]
    assert (good["status"], good["epochs"], good["point"]) == ("finished", 2, {"optim.lr": 0.2})
    assert (bad["status"], bad["epochs"], bad["point"]) == ("failed", 0, {"optim.lr": 1e6})
    assert bad["reason"].startswith("in worker 0: ")
    assert "diverged" in bad["reason"].lower()
    assert summary["best"] == good
    assert summary["front"] == [0]
    assert (summary["epochs_trained"], summary["epochs_in_full"]) == (2, 4)
    assert json.loads(Path(summary["outputs"]["summary"]).read_text()) == summary


def test_the_best_is_a_finished_run_and_a_preset(summary: dict[str, Any]) -> None:
    assert "data:image/png" in Path(summary["outputs"]["page"]).read_text()
    config = load_config(summary["outputs"]["preset"])
    assert (config.optim.lr, config.optim.epochs, config.name) == (0.2, 3, None)
    best = {path.name for path in Path(summary["outputs"]["best run"]).iterdir()}
    assert {"summary.json", "clusters.png", "curves.png", "assignments.parquet"} <= best
    assert 0.1 < summary["scores"]["acc"] < 1


def test_mlflow_has_the_search_its_trials_and_the_best_model(summary: dict[str, Any]) -> None:
    client = MlflowClient(summary["mlflow"]["uri"])
    parent = client.get_run(summary["mlflow"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert {"search.html", "best.yaml"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([parent.info.experiment_id], query)
    good, bad = sorted(children, key=lambda child: child.data.tags["digpro.number"])
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert [point.step for point in client.get_metric_history(good.info.run_id, "loss")] == [1, 2]
    assert good.data.tags["digpro.best"] == "true"
    assert bad.data.tags["digpro.reason"] == summary["trials"][1]["reason"]
    (version,) = client.search_model_versions("name = 'digpro-digits'")
    assert version.run_id == good.info.run_id
    assert summary["mlflow"]["model"] == f"models:/digpro-digits/{version.version}"


def test_its_progress_can_be_read(summary: dict[str, Any], lines: list[str]) -> None:
    workers = "2 trials of 2 epochs, 2 at a time, each with 1 worker of 0.2 CPUs"
    assert f"search small: {workers}; label_free (max); no trial is stopped early" in lines
    assert "trial 0 starts: optim.lr=0.2" in lines
    assert any(line.startswith("trial 0 finished  epoch 2/2  label_free ") for line in lines)
    assert any(line.startswith("trial 1 failed: in worker 0: ") for line in lines), lines[4:]
