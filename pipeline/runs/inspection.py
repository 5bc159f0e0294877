"""One look into a run's folder before anything starts: whose it is, and how far the run has come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.config.models import RunConfig
from pipeline.lease import hold
from pipeline.runs.identity import SUMMARY, claim_folder, run_folder, was_started
from pipeline.storage import Folder
from pipeline.training.checkpoint import check_resumable


class RunStatus(StrEnum):
    """How far a run has come."""

    NEW = "new"
    STARTED = "started, without a checkpoint"
    RESUMABLE = "resumable"
    FINISHED = "finished"


@dataclass(frozen=True)
class Inspection:
    """What a run's folder holds; `summary` is None unless the run is finished."""

    folder: Folder
    status: RunStatus
    summary: dict[str, Any] | None = None


@contextlib.contextmanager
def open_run_folder(config: RunConfig) -> Iterator[Inspection]:
    """Hold the folder of a named configuration for this command alone, and say what it holds.

    Raises
    ------
    ConfigError
        When another command is at work in the folder, or the run in it has other settings or other images.
    CheckpointError
        When it holds checkpoints that cannot be used: the run must not silently restart at epoch 0.
    """
    with hold(run_folder(config).make()):
        folder = claim_folder(config)
        folder.delete_unfinished()
        yield _inspect(folder)


def _inspect(folder: Folder) -> Inspection:
    if (summary := folder.read(SUMMARY)) is not None:
        return Inspection(folder, RunStatus.FINISHED, summary)
    if check_resumable(folder):
        return Inspection(folder, RunStatus.RESUMABLE)
    return Inspection(folder, RunStatus.STARTED if was_started(folder) else RunStatus.NEW)
