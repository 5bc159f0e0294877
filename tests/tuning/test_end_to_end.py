"""Real searches on Ray: killed and resumed, with trials that are stopped and that fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from mlflow import MlflowClient
from ray.util.state import list_actors, list_placement_groups

from pipeline.config.loading import load_config
from pipeline.tuning.search import search
from pipeline.tuning.space import load_space
from tests.helpers.runs import EPOCHS, end, family, options, settings, start_command, train_workers

pytestmark = pytest.mark.chaos  # kills, and minutes: run by `make chaos`

# The objective is the learning rate itself, so that it is known which trials are good; the preset's own point is first.
SPACE = """
from ray import tune
SPACE = {"optim.lr": tune.loguniform(0.001, 1e6), "estep.max_iter": tune.choice([200, 300])}
FIRST = [{"optim.lr": value, "estep.max_iter": 200} for value in (0.1, 0.01, 1e6)]
OBJECTIVES = [("lr", "max")]
"""
TRIAL = [
    "resources.workers=1",
    "resources.cpus_per_worker=0.2",
    "resources.max_failures=0",
    "tracking.system_metrics=false",
]
KEPT_BY_RAY = {"_AutoscalingCoordinatorActor"}  # one for the cluster, which stays
CALL: dict[str, Any] = {"trials": 4, "concurrent": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("tuning")
    (path / "space.py").write_text(SPACE)
    yield path
    ray.shutdown()


@pytest.fixture(scope="module")
def killed(folder: Path) -> float:
    """A search whose driver is killed after two of its four trials have ended; when that was."""
    arguments = ["tune", "--space", str(folder / "space.py"), *(f"--{name}={value}" for name, value in CALL.items())]
    log = folder / "log"
    process = start_command([*arguments, *options(settings(folder, "name=search", *TRIAL))], log)
    deadline = time.monotonic() + 240
    while log.read_text().count(" finished  epoch 3/3") < 2:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    time.sleep(6)  # Tune saves its state every 5 s
    cluster = family(process.pid)
    process.kill()
    process.wait()
    moment = time.time()
    _, alive = psutil.wait_procs(train_workers(cluster), timeout=40)
    assert not alive
    end(cluster)
    return moment


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def summary(folder: Path, killed: float, lines: list[str]) -> dict[str, Any]:
    """The same search, resumed."""
    return run(folder, lines)


def run(folder: Path, lines: list[str]) -> dict[str, Any]:
    config = load_config("digits", settings(folder, "name=search", *TRIAL))
    return search(config, load_space(str(folder / "space.py")), label="digits", echo=lines.append, **CALL)


def test_every_trial_ends_as_it_must(summary: dict[str, Any]) -> None:
    trials = summary["trials"]
    assert [trial["status"] for trial in trials] == ["finished", "finished", "stopped", "failed"]
    assert [trial["point"]["optim.lr"] for trial in trials] == [0.1, 0.1, 0.01, 1e6]
    assert [trial["epochs"] for trial in trials[:3]] == [EPOCHS, EPOCHS, 2]
    assert trials[2]["reason"] == "behind other trials after epoch 2"
    assert "Diverged" in trials[3]["reason"]
    assert summary["epochs_trained"] < summary["epochs_in_full"] == 4 * EPOCHS
    assert summary["best"]["number"] in (0, 1)


def test_a_finished_trial_is_not_trained_again(
    folder: Path, summary: dict[str, Any], lines: list[str], killed: float
) -> None:
    assert not [line for line in lines if line.startswith(("trial 0 ", "trial 1 "))]
    for trial in summary["trials"][:2]:
        saves = list((folder / "runs" / "search" / "trials" / trial["trial"]).glob("checkpoint_2*"))
        assert saves
        assert max(path.stat().st_mtime for path in saves) < killed


def test_its_progress_can_be_read(folder: Path, summary: dict[str, Any], lines: list[str]) -> None:
    before = (folder / "log").read_text().splitlines()
    first = "search search: 4 trials of 3 epochs, 2 at a time, each with 1 worker of 0.2 CPUs; lr (max); "
    assert f"{first}poor trials are stopped after epoch 2" in before
    assert any(line.startswith("trial 0 finished  epoch 3/3  lr ") for line in before)
    assert any(line.startswith("trial 2 stopped early  epoch 2/3  lr ") for line in lines)
    assert any(line.startswith("trial 3 failed: in worker 0: ") for line in lines)
    assert not [line for line in before if "╭" in line or "A new study" in line]


def test_the_best_is_a_finished_run_and_a_preset(summary: dict[str, Any]) -> None:
    for name in ("summary", "page", "preset"):
        assert Path(summary["outputs"][name]).stat().st_size > 1000, name
    best = Path(summary["outputs"]["best run"])
    assert {"summary.json", "clusters.png", "curves.png", "assignments.parquet"} <= {
        path.name for path in best.iterdir()
    }
    config = load_config(summary["outputs"]["preset"])
    assert (config.optim.lr, config.optim.epochs, config.name) == (0.1, EPOCHS, None)
    assert 0.3 < summary["scores"]["acc"] < 1


def test_mlflow_has_the_search_its_trials_and_the_best_model(summary: dict[str, Any]) -> None:
    client = MlflowClient(summary["mlflow"]["uri"])
    parent = client.get_run(summary["mlflow"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert "search.html" in {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    found = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    children = sorted(found, key=lambda child: child.data.tags["digpro.number"])
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED", "KILLED", "FAILED"]
    assert [child.data.params["optim.lr"] for child in children] == ["0.1", "0.1", "0.01", "1000000.0"]
    assert [point.step for point in client.get_metric_history(children[0].info.run_id, "loss")] == [1, 2, 3]
    best = [child for child in children if child.data.tags.get("digpro.best") == "true"]
    assert [child.data.tags["digpro.number"] for child in best] == [str(summary["best"]["number"])]
    assert "Diverged" in children[3].data.tags["digpro.reason"]
    (version,) = client.search_model_versions("name = 'digpro-digits'")
    assert version.run_id == best[0].info.run_id


def test_a_finished_search_shows_its_result_again(folder: Path, summary: dict[str, Any]) -> None:
    lines: list[str] = []
    assert run(folder, lines) == summary
    assert "already finished" in lines[0]


def test_nothing_is_left_on_the_cluster(summary: dict[str, Any]) -> None:
    deadline, cluster = time.monotonic() + 60, {"address": ray.get_runtime_context().gcs_address}
    while left := [
        *(group.placement_group_id for group in list_placement_groups(filters=[("state", "!=", "REMOVED")], **cluster)),
        *({actor.class_name for actor in list_actors(filters=[("state", "=", "ALIVE")], **cluster)} - KEPT_BY_RAY),
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(1)
