"""What makes two searches the same, what is refused before Ray starts, and the configuration of a trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ray import tune

from pipeline.checks.capacity import Capacity
from pipeline.config.loading import load_config, with_settings
from pipeline.config.models import RunConfig
from pipeline.data.ingest import ingest
from pipeline.errors import ConfigError, RunFailed
from pipeline.storage import Folder
from pipeline.tracking import end_run, open_run, spool_path
from pipeline.tuning import search as module
from pipeline.tuning.search import (
    claim_search,
    end_interrupted_runs,
    first_message,
    has_state,
    limit_trial,
    resolve_search,
    search,
    search_identity,
    successful,
)
from pipeline.tuning.space import Space
from pipeline.tuning.strategy import Strategy, make_strategy
from pipeline.tuning.trial import SearchJob
from tests.helpers.manifests import manifest

SPACE = Space("mine", {"optim.lr": tune.loguniform(0.01, 1)}, settings={"optim.epochs": 20, "optim.warmup_epochs": 8})
CAPACITY = Capacity(3, 0.5, False)


@pytest.fixture(autouse=True)
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray would be a failure of these tests: everything is known before."""
    monkeypatch.setattr(module, "connect", lambda: pytest.fail("Ray was started"))


def config(folder: Path, *more: str) -> RunConfig:
    return load_config("digits", [f"storage={folder}/runs", f"data.path={folder}/digits", *more])


def name_of(chosen: RunConfig, space: Space = SPACE, trials: int = 8, scheduler: str = "asha") -> str:
    return resolve_search(chosen, "digits-mine", search_identity(chosen, space, trials, scheduler)).name or ""


def test_a_search_has_a_name_of_its_own_for_all_that_decides_it(tmp_path: Path) -> None:
    base = config(tmp_path)
    others = [
        name_of(config(tmp_path, "seed=1")),
        name_of(base, trials=9),
        name_of(base, scheduler="none"),
        name_of(base, Space("mine", {"optim.lr": tune.loguniform(0.02, 1)})),
        name_of(base, Space("mine", SPACE.domains, objectives=[("acc", "max")])),
    ]
    assert len({name_of(base), *others}) == 6
    assert name_of(base).startswith("digits-mine-")
    assert name_of(config(tmp_path, "resources.workers=1", "tracking.experiment=x")) == name_of(base)
    assert name_of(config(tmp_path, "name=mine")) == "mine"


def test_a_file_name_that_is_no_name_of_a_run_still_gives_one(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    found = resolve_search(chosen, "digits-my space (2)", search_identity(chosen, SPACE, 8, "asha"))
    assert (found.name or "").startswith("digits-my-space--2--")
    with_settings(found, {}, "test")  # a name that the configuration accepts


def test_a_name_in_use_says_what_differs(tmp_path: Path) -> None:
    chosen = config(tmp_path, "name=mine")
    identity = search_identity(chosen, SPACE, 8, "asha")
    claim_search(chosen, identity | {"trials": 9})
    claim_search(chosen, identity).update("search.json", mlflow_run="m")  # the other one had not started
    assert claim_search(chosen, identity).path == f"{tmp_path}/runs/mine"
    with pytest.raises(
        ConfigError, match=r"search 'mine' .* was started with a different value of trials\. Give another name"
    ):
        claim_search(chosen, identity | {"trials": 9})


def refused(folder: Path, space: Space, message: str, **options: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        search(config(folder), space, **options)


def test_a_bad_scheduler_or_setting_is_refused_before_images_are_ingested(tmp_path: Path) -> None:
    refused(tmp_path, SPACE, r"unknown scheduler 'ash'; did you mean 'asha'", scheduler="ash")
    short = Space("short", SPACE.domains, settings={"optim.epochs": 2})
    refused(
        tmp_path, short, r"'SETTINGS of space short' cannot be used:\n  .*warmup_epochs is 24, more than epochs \(2\)"
    )
    assert not (tmp_path / "digits").exists()


def test_what_no_trial_could_report_is_refused(tmp_path: Path) -> None:
    ingest("digits", str(tmp_path / "digits"), rows_per_shard=2000)
    silent = Space("silent", SPACE.domains, settings={"estep.probe": 0})
    refused(tmp_path, silent, r"label_free needs estep\.probe, which is 0")
    wide = Space("wide", {"optim.batch_size": tune.choice([64, 2048])})
    refused(tmp_path, wide, r"space 'wide' holds .*batch_size=2048 exceeds the 1797 images")


def test_scores_need_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_labels", lambda path: False)
    space = Space("scored", SPACE.domains, objectives=[("acc", "max"), ("loss", "min")])
    with pytest.raises(ConfigError, match=r"objective acc needs classes, and .*digits has none; use label_free"):
        module.check_objectives(config(tmp_path), space)


def test_a_space_that_needs_other_features_for_each_trial_is_refused(tmp_path: Path) -> None:
    frozen = config(tmp_path, "model.encoder=python:tests.helpers.backbones:network", "model.freeze=true")
    varied = Space("wide", {**SPACE.domains, "views.hue": tune.uniform(0, 0.5)}, objectives=[("loss", "min")])
    with pytest.raises(ConfigError, match=r"space wide varies views\.hue, but with model\.freeze=true"):
        module.check_cache_shared(frozen, varied)
    module.check_cache_shared(frozen, SPACE)
    module.check_cache_shared(config(tmp_path), varied)


def test_a_finished_search_shows_its_result_again_or_its_failure(tmp_path: Path) -> None:
    ingest("digits", str(tmp_path / "digits"), rows_per_shard=2000)
    lines: list[str] = []
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    summary = {"search": "mine", "best": {"number": 1}, "trials": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert search(config(tmp_path, "name=mine"), SPACE, echo=lines.append) == summary
    assert [line.partition(",")[0] for line in lines[:2]] == [
        "trials use optim.epochs=20 instead of 80",
        "trials use optim.warmup_epochs=8 instead of 24",
    ]
    assert "search mine is already finished" in lines[2]
    failed = summary | {"best": None, "trials": [{"reason": "no memory"}, {"reason": "no memory"}]}
    with pytest.raises(RunFailed, match=r"every trial of search mine failed: no memory\. Change the space"):
        successful(failed)


def strategy(folder: Path, scheduler: str) -> Strategy:
    return make_strategy(scheduler, with_settings(config(folder), SPACE.settings, "test"), SPACE, 8, [])


def job(folder: Path) -> SearchJob:
    base = with_settings(config(folder, "name=mine"), SPACE.settings, "test")
    limited = limit_trial(base, CAPACITY)
    return SearchJob(limited, SPACE, manifest(), f"{folder}/runs/mine/trials", "parent", "digits")


def test_a_trial_has_the_resources_of_one(tmp_path: Path) -> None:
    resources = job(tmp_path).config.resources
    assert (resources.cpus_per_worker, resources.gpus) == (0.5, False)


def test_the_first_line_says_what_will_happen(tmp_path: Path) -> None:
    assert first_message(job(tmp_path), strategy(tmp_path, "asha"), 8, CAPACITY) == (
        "search mine: 8 trials of 20 epochs, 3 at a time, each with 1 worker of 0.5 CPUs; label_free (max); "
        "poor trials are stopped after epoch 11"
    )
    few = first_message(job(tmp_path), strategy(tmp_path, "none"), 2, Capacity(3, 1.0, True))
    assert "2 at a time, each with 1 worker of 1 CPUs and a GPU; " in few


def test_a_search_resumes_once_tune_has_saved(tmp_path: Path) -> None:
    folder = Folder(f"{tmp_path}/mine").make()
    assert not has_state(folder)
    (tmp_path / "mine" / "tune").mkdir()
    assert not has_state(folder)
    (tmp_path / "mine" / "tune" / "experiment_state-2026.json").touch()
    assert has_state(folder)


def test_an_interrupted_search_and_its_unfinished_trials_are_killed_in_mlflow(tmp_path: Path) -> None:
    folder = Folder(f"{tmp_path}/runs/mine").make()
    parent = open_run(config(tmp_path), folder)
    search = job(tmp_path)
    refs = {trial: open_run(config(tmp_path), search.folder(trial).make()) for trial in ("done", "running")}
    end_run(refs["done"], spool_path(search.folder("done")), "FINISHED")
    end_interrupted_runs(search, folder, parent, {"running", "never-started"})
    client = MlflowClient(parent.uri)
    found = {name: client.get_run(ref.run_id).info.status for name, ref in (refs | {"parent": parent}).items()}
    assert found == {"done": "FINISHED", "running": "KILLED", "parent": "KILLED"}
