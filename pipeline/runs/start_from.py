"""Start a new run from the weights of another."""

from __future__ import annotations

from typing import Any

from pipeline.config.loading import override
from pipeline.config.models import ModelConfig, RunConfig
from pipeline.errors import ConfigError
from pipeline.plan import Plan, make_plan
from pipeline.runs.identity import SUMMARY, read_started_run
from pipeline.storage import Folder, absolute
from pipeline.training.checkpoint import CONSENSUS, registered_checkpoints

OWN = {"start_from", "weights", "weights_prefix", "partial_weights"}  # a run's own, although they are network settings


def settings_of(run: str, overrides: list[str]) -> tuple[RunConfig, str]:
    """The settings of a finished run with changes, to start from its weights; and the first part of its name.

    There is no warm-up unless one is set: it is for untrained networks.

    Raises
    ------
    ConfigError
        When there is no such run, or a change is not a setting.
    """
    folder = Folder(absolute(run))
    config, _ = read_started_run(folder)
    if folder.names(CONSENSUS):
        raise ConfigError(f"{folder.path} is the consensus of several runs; start from one of its members")
    model = config.model.model_copy(update={"start_from": folder.path})
    optim = config.optim.model_copy(update={"warmup_epochs": 0})
    begun = config.model_copy(update={"name": None, "model": model, "optim": optim})
    return override(begun, overrides, folder.name), folder.name.rpartition("-")[0] or folder.name


def checkpoint_to_start_from(config: RunConfig, plan: Plan) -> str | None:
    """The newest checkpoint of the run that the settings name; None where they name none.

    Raises
    ------
    ConfigError
        When that run is not finished, or its networks, groups or bank have other sizes.
    """
    if config.model.start_from is None:
        return None
    folder = Folder(config.model.start_from)
    other, manifest = read_started_run(folder)
    if folder.read(SUMMARY) is None or not (checkpoints := registered_checkpoints(folder)):
        raise ConfigError(f"model.start_from={folder.path} is not finished; finish it first, or give another run")
    before = _sizes(other.model, make_plan(other, manifest).num_groups, other.method.bank_size)
    now = _sizes(config.model, plan.num_groups, config.method.bank_size)
    if changed := [f"{key} was {before[key]}, is {value}" for key, value in now.items() if before[key] != value]:
        raise ConfigError(
            f"the weights of {folder.path} do not fit: {'; '.join(changed)}. Give the settings of that run, or leave "
            "model.start_from out"
        )
    return folder.file(checkpoints[0].path.rpartition("/")[2])


def _sizes(model: ModelConfig, groups: int, bank: int) -> dict[str, Any]:
    networks = {f"model.{key}": value for key, value in model.model_dump().items() if key not in OWN}
    return networks | {"method.num_groups": groups, "method.bank_size": bank}
