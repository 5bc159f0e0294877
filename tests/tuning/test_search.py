"""What makes two searches the same, what is refused before Ray starts, and the configuration of a trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import tune

from pipeline.checks.capacity import Capacity
from pipeline.config.loading import load_config
from pipeline.config.models import RunConfig
from pipeline.data.ingest import ingest
from pipeline.errors import ConfigError, RunFailed
from pipeline.training.run_folder import RunFolder
from pipeline.tuning import search as module
from pipeline.tuning.record import preset
from pipeline.tuning.result import Row
from pipeline.tuning.search import claim, concluded, described, has_state, named, opening, search, trial_base_config
from pipeline.tuning.space import Space, configured
from pipeline.tuning.trial import TrialJob
from tests.helpers.manifests import manifest

SPACE = Space("mine", {"optim.lr": tune.loguniform(0.01, 1)}, settings={"optim.epochs": 20, "optim.warmup_epochs": 8})


@pytest.fixture(autouse=True)
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting Ray would be a failure of these tests: everything is known before."""
    monkeypatch.setattr(module, "connect", lambda: pytest.fail("Ray was started"))


def config(folder: Path, *more: str) -> RunConfig:
    return load_config("digits", [f"storage={folder}/runs", f"data.path={folder}/digits", *more])


def name_of(chosen: RunConfig, space: Space = SPACE, trials: int = 8, schedule: str = "asha") -> str:
    return named(chosen, "digits-mine", described(chosen, space, trials, schedule)).name or ""


def test_a_search_has_a_name_of_its_own_for_all_that_decides_it(tmp_path: Path) -> None:
    base = config(tmp_path)
    others = [
        name_of(config(tmp_path, "seed=1")),
        name_of(base, trials=9),
        name_of(base, schedule="none"),
        name_of(base, Space("mine", {"optim.lr": tune.loguniform(0.02, 1)})),
        name_of(base, Space("mine", SPACE.domains, objectives=[("acc", "max")])),
    ]
    assert len({name_of(base), *others}) == 6
    assert name_of(base).startswith("digits-mine-")
    assert name_of(config(tmp_path, "resources.workers=1", "tracking.experiment=x")) == name_of(base)
    assert name_of(config(tmp_path, "name=mine")) == "mine"


def test_a_name_in_use_says_what_differs(tmp_path: Path) -> None:
    chosen = config(tmp_path, "name=mine")
    identity = described(chosen, SPACE, 8, "asha")
    claim(chosen, identity | {"trials": 9})
    claim(chosen, identity).update("search.json", mlflow_run="m")  # the other one had not started
    assert claim(chosen, identity).path == f"{tmp_path}/runs/mine"
    with pytest.raises(ConfigError, match=r"search 'mine' .* was started with other trials\. Give another name"):
        claim(chosen, identity | {"trials": 9})


def refused(folder: Path, space: Space, said: str, **options: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        search(config(folder), space, **options)


def test_what_no_trial_could_report_is_refused(tmp_path: Path) -> None:
    ingest("digits", str(tmp_path / "digits"), rows_per_shard=2000)
    silent = Space("silent", SPACE.domains, settings={"estep.probe": 0})
    refused(tmp_path, silent, r"label_free needs estep\.probe, which is 0")
    refused(tmp_path, SPACE, r"there is no scheduler 'ash'; take one of asha, pbt, none", schedule="ash")
    wide = Space("wide", {"optim.batch_size": tune.choice([64, 2048])})
    refused(tmp_path, wide, r"space 'wide' holds .*batch_size=2048 exceeds the 1797 images")


def test_scores_need_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_labels", lambda path: None)
    space = Space("scored", SPACE.domains, objectives=[("acc", "max"), ("loss", "min")])
    with pytest.raises(ConfigError, match=r"objective acc needs classes, and .*digits has none; take label_free"):
        module.check_objectives(config(tmp_path), space)


def test_a_finished_search_shows_its_result_again_or_its_failure(tmp_path: Path) -> None:
    ingest("digits", str(tmp_path / "digits"), rows_per_shard=2000)
    said: list[str] = []
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    summary = {"search": "mine", "best": {"number": 1}, "trials": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert search(config(tmp_path, "name=mine"), SPACE, say=said.append) == summary
    assert "search mine is already finished" in said[0]
    lost = summary | {"best": None, "trials": [{"reason": "no memory"}, {"reason": "no memory"}]}
    with pytest.raises(RunFailed, match=r"no trial of search mine came to anything: no memory$"):
        concluded(lost)


def job(folder: Path, schedule: str = "asha") -> TrialJob:
    base = configured(config(folder, "name=mine"), SPACE.settings)
    trial = trial_base_config(base, Capacity(3, 0.5, False), schedule)
    return TrialJob(trial, SPACE, manifest(), f"{folder}/runs/mine/trials", "parent", "digits")


def test_a_trial_has_the_resources_of_one_and_a_population_saves_for_others(tmp_path: Path) -> None:
    plain, pbt = job(tmp_path).config, job(tmp_path, "pbt").config
    assert (plain.resources.cpus_per_worker, plain.resources.gpus) == (0.5, False)
    assert (plain.checkpoint.every_epochs, plain.checkpoint.keep) == (10, 2)
    assert (pbt.checkpoint.every_epochs, pbt.checkpoint.every_steps, pbt.checkpoint.keep) == (2, None, 4)


def test_the_first_line_says_what_will_happen(tmp_path: Path) -> None:
    room = Capacity(3, 0.5, False)
    assert opening(job(tmp_path), room, 8, "asha") == (
        "search mine: 8 trials of 20 epochs, 3 at a time, each with 2 workers of 0.5 CPUs; label_free (max); "
        "poor ones are stopped after epoch 11"
    )
    assert opening(job(tmp_path), room, 2, "none").endswith("none is stopped early")
    assert "take over from the best every 2 epochs" in opening(job(tmp_path, "pbt"), room, 3, "pbt")


def test_the_preset_has_the_best_point_and_none_of_the_trials_shortcuts(tmp_path: Path) -> None:
    row = Row(3, "abc", "finished", "", {"optim.lr": 0.5}, [{"epoch": 20, "label_free": 0.75}])
    text = preset(config(tmp_path, "name=mine"), job(tmp_path), row, RunFolder(str(tmp_path), "mine"))
    assert text.startswith("# The best configuration that the search mine found: trial 3, abc.\n")
    assert "# Objective: label_free 0.7500 (max) after 20 epochs.\n" in text
    assert "# The trials, and they alone, had optim.epochs=20, optim.warmup_epochs=8.\n" in text
    (tmp_path / "best.yaml").write_text(text)
    found = load_config(str(tmp_path / "best.yaml"))
    assert (found.optim.lr, found.optim.epochs, found.name) == (0.5, 80, None)
    assert found.data.path == f"{tmp_path}/digits"
    assert yaml.safe_load(text)["views"]["crop_scale"] == [0.35, 1.0]


def test_there_is_something_to_go_on_from_once_tune_has_saved(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "mine").make()
    assert not has_state(folder)
    (tmp_path / "mine" / "tune").mkdir()
    assert not has_state(folder)
    (tmp_path / "mine" / "tune" / "experiment_state-2026.json").touch()
    assert has_state(folder)
