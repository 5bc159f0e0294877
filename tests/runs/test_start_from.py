"""A run that begins with the weights of another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError
from pipeline.plan import make_plan
from pipeline.runs.identity import claim_folder, record_start, run_folder
from pipeline.runs.start_from import checkpoint_to_start_from, settings_of
from pipeline.runs.train import train
from pipeline.training.checkpoint import newest_in
from tests.helpers.runs import settings


@pytest.fixture(autouse=True)
def _without_ray_afterwards() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    folder = str(tmp_path_factory.mktemp("digits"))
    return folder, ingest("digits", folder)


def begun(place: Path, digits: tuple[str, Manifest], *more: str) -> str:
    """A run that was started with a warm-up of 24 epochs."""
    config = load_config("digits", [f"data.path={digits[0]}", f"storage={place}", "name=digits-0123abcd", *more])
    record_start(claim_folder(config), digits[1])
    return run_folder(config).path


def test_the_settings_are_those_of_the_run_but_for_those_given(digits: tuple[str, Manifest], tmp_path: Path) -> None:
    run = begun(tmp_path, digits, "optim.lr=0.07")
    config, label = settings_of(run, ["optim.epochs=5"])
    assert (config.optim.lr, config.optim.epochs, config.optim.warmup_epochs) == (0.07, 5, 0)
    assert (config.model.start_from, config.name, label) == (run, None, "digits")
    assert settings_of(run, ["optim.epochs=5", "optim.warmup_epochs=2"])[0].optim.warmup_epochs == 2
    with pytest.raises(ConfigError, match=r"optim\.epoch\b"):
        settings_of(run, ["optim.epoch=5"])
    with pytest.raises(ConfigError, match="holds no run"):
        settings_of(str(tmp_path), [])


def test_a_run_that_has_not_ended_is_refused(digits: tuple[str, Manifest], tmp_path: Path) -> None:
    config, _ = settings_of(begun(tmp_path, digits), [])
    with pytest.raises(ConfigError, match=r"model\.start_from=.* is not finished; let it end first"):
        checkpoint_to_start_from(config, make_plan(config, digits[1]))


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    """Its first E-step finds what the last one of the other found."""
    short = ["optim.epochs=2", "resources.workers=1", "tracking.enabled=false"]
    first = train(load_config("digits", settings(tmp_path, "name=first", *short)))
    config, label = settings_of(first["folder"], ["optim.epochs=1"])
    plan = make_plan(config, ingest("digits", config.data.path))
    assert Path(str(checkpoint_to_start_from(config, plan))).is_dir()

    wider = config.model_copy(update={"model": config.model.model_copy(update={"feature_size": 48})})
    with pytest.raises(ConfigError, match=r"do not fit: model\.feature_size was 32, is 48\. Give the settings that it"):
        checkpoint_to_start_from(wider, plan)

    second = train(config, label=label)
    assert second["folder"] != first["folder"]
    values = newest_in(second["folder"])
    assert values is not None
    assert values["epoch"] == 1
    for name in ("inertia", "acc"):
        assert values["history"][0][name] == pytest.approx(first["last_epoch"][name], rel=1e-5)
    assert values["history"][1]["acc"] != values["history"][0]["acc"]
