"""What a search leaves, from made-up trials and without Ray running."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from ray import tune

from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.storage import Folder
from pipeline.tracking import RunRef, RunWriter, open_run, tracking_uri
from pipeline.tuning import results as module
from pipeline.tuning.results import end_trial_run, preset_text, write_results
from pipeline.tuning.space import Space
from pipeline.tuning.trial import SearchJob, open_trial_run
from pipeline.tuning.trials import TrialRow
from tests.helpers.manifests import manifest

SPACE = Space("mine", {"optim.lr": tune.loguniform(0.01, 1)}, settings={"optim.epochs": 20, "optim.warmup_epochs": 8})
WIDE = Space("wide", {"views.hue": tune.uniform(0, 1)})  # half of it is no hue
HISTORY = [{"epoch": 20, "label_free": 0.75}]


def config(folder: Path) -> RunConfig:
    chosen = load_config("digits", [f"storage={folder}/runs", f"data.path={folder}/digits", "name=mine"])
    uri = tracking_uri(None, f"{folder}/runs")
    return chosen.model_copy(update={"tracking": chosen.tracking.model_copy(update={"uri": uri})})


def job(folder: Path, space: Space = SPACE, parent: str = "parent") -> SearchJob:
    return SearchJob(config(folder), space, manifest(), f"{folder}/runs/mine/trials", parent, "digits")


def test_the_preset_has_the_best_point_and_none_of_the_trials_shortcuts(tmp_path: Path) -> None:
    best = TrialRow(3, "abc", "finished", "", {"optim.lr": 0.5}, HISTORY)
    text = preset_text(config(tmp_path), job(tmp_path), best, "mine")
    assert text.startswith("# The best configuration that the search mine found: trial 3, abc.\n")
    assert "# Objective: label_free 0.7500 (max) after 20 epochs.\n" in text
    assert "# The trials, but not this file, had optim.epochs=20, optim.warmup_epochs=8.\n" in text
    (tmp_path / "best.yaml").write_text(text)
    found = load_config(str(tmp_path / "best.yaml"))
    assert (found.optim.lr, found.optim.epochs, found.name) == (0.5, 80, None)
    assert found.data.path == f"{tmp_path}/digits"
    assert yaml.safe_load(text)["views"]["crop_scale"] == [0.35, 1.0]


def test_a_trial_that_was_no_configuration_does_not_cost_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both fail, one because its point is not a configuration; the search has its summary, its page and its records."""
    monkeypatch.setattr(module, "cluster_facts", dict)
    folder = Folder(f"{tmp_path}/runs/mine").make()
    parent: RunRef = open_run(config(tmp_path), folder)
    search = job(tmp_path, WIDE, parent.run_id)
    rows = [
        TrialRow(0, "a", "failed", "no memory", {"views.hue": 0.1}, []),
        TrialRow(1, "b", "failed", "views.hue: too large", {"views.hue": 0.9}, []),
    ]
    open_trial_run(search.config, search, "a")
    summary: dict[str, Any] = write_results(config(tmp_path), search, folder, parent, rows)
    assert summary == folder.read("summary.json")
    assert (summary["best"], summary["outputs"].keys()) == (None, {"summary", "page", "mlflow"})
    assert "No trial succeeded." in (tmp_path / "runs" / "mine" / "search.html").read_text()
    client = MlflowClient(parent.uri)
    children = client.search_runs(
        [client.get_run(parent.run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
    )
    found = {child.data.tags["digpro.number"]: child for child in children}
    assert {number: child.data.tags["digpro.reason"] for number, child in found.items()} == {
        "0": "no memory",
        "1": "views.hue: too large",
    }
    assert {child.info.status for child in children} == {"FAILED"}


def test_a_page_that_fails_costs_a_search_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(shown: object) -> str:
        raise TypeError("unhashable type: 'list'")

    monkeypatch.setattr(module, "cluster_facts", dict)
    monkeypatch.setattr(module, "search_page", fail)
    folder = Folder(f"{tmp_path}/runs/mine").make()
    parent = open_run(config(tmp_path), folder)
    search = job(tmp_path, parent=parent.run_id)
    open_trial_run(search.config, search, "a")
    rows = [TrialRow(0, "a", "failed", "no memory", {"optim.lr": 0.1}, [])]
    summary = write_results(config(tmp_path), search, folder, parent, rows)
    assert summary == folder.read("summary.json")
    assert summary["outputs"].keys() == {"summary", "mlflow"}
    assert "the page of this search failed (TypeError: unhashable type: 'list')" in caplog.text


def test_trials_keep_the_time_when_they_ended(tmp_path: Path) -> None:
    """One that had ended by itself, as something else than the search says, and one that a scheduler stopped."""
    search = job(tmp_path)
    refs = {trial: open_trial_run(search.config, search, trial) for trial in ("a", "b")}
    client = MlflowClient(refs["a"].uri)
    RunWriter(refs["a"], tmp_path / "worker.jsonl").finish("FINISHED")
    ended = client.get_run(refs["a"].run_id).info.end_time
    time.sleep(0.01)
    end_trial_run(TrialRow(0, "a", "failed", "no memory", {}, HISTORY, 5.0), search, is_best=False)
    end_trial_run(TrialRow(1, "b", "stopped", "", {}, HISTORY, ended / 1000 + 60), search, is_best=True)
    infos = [client.get_run(ref.run_id).info for ref in refs.values()]
    assert [(info.status, info.end_time) for info in infos] == [("FAILED", ended), ("KILLED", ended + 60_000)]
    assert client.get_run(refs["b"].run_id).data.tags["digpro.best"] == "true"
