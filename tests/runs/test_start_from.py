"""Whether a run can begin with the weights of another. For one that does see test_end_to_end.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.loading import load_config
from pipeline.data.ingest import ingest
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError
from pipeline.plan import make_plan
from pipeline.runs.identity import claim_folder, record_start, run_folder
from pipeline.runs.start_from import checkpoint_to_start_from, settings_of
from tests.helpers.command_line import refused


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    folder = str(tmp_path_factory.mktemp("digits"))
    return folder, ingest("digits", folder)


def begun(place: Path, digits: tuple[str, Manifest], *more: str) -> str:
    """A run that was started with a warm-up of 24 epochs."""
    config = load_config("digits", [f"data.path={digits[0]}", f"storage={place}", "name=digits-0123abcd", *more])
    record_start(claim_folder(config), digits[1])
    return run_folder(config).path


def test_a_preset_and_a_run_are_not_both_given(digpro, digits: tuple[str, Manifest], tmp_path: Path) -> None:
    run = begun(tmp_path, digits)
    refused(digpro("train", "--from", run, "--preset", "photos"), f"--preset photos and --from {run} both give")


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
    with pytest.raises(ConfigError, match=r"model\.start_from=.* is not finished; finish it first"):
        checkpoint_to_start_from(config, make_plan(config, digits[1]))
