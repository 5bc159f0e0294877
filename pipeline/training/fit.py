"""Ray Train's own run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, Result, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from pipeline.checks.capacity import worker_resources
from pipeline.cluster import on_driver_node
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.data.streaming import build_datasets
from pipeline.tracking import RunRef
from pipeline.training.progress import Board
from pipeline.training.run_folder import RunFolder
from pipeline.training.worker import train_worker


def ray_reason(error: TrainingFailedError) -> str:
    """The first worker's own error, without Ray's layers around it."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, cause = next(iter(failures.items()))
    cause = getattr(cause, "cause", None) or cause
    return f"in worker {rank}: {type(cause).__name__}: {cause}"


def waits_for_a_place(config: RunConfig) -> int:
    """How often Ray Train may find no place for the workers, each time after its own start timeout."""
    timeout = float(os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60"))
    return math.ceil(config.resources.wait_minutes * 60 / timeout)


def new_board() -> Any:
    """A board for the news of a run, on this process's node."""
    return Board.options(scheduling_strategy=on_driver_node()).remote()  # type: ignore[attr-defined]


def fit(
    config: RunConfig,
    manifest: Manifest,
    mode: str,
    folder: RunFolder,
    tracking: RunRef,
    board: Any = None,
    *,
    start_from: str | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> Result:
    """Run the workers to the end.

    Parameters
    ----------
    board : actor handle, optional
        Where rank 0 posts its news.
    start_from : str, optional
        Checkpoint of another run, by absolute path or URI, that this one starts from when it has none of its own.
    callbacks : sequence of UserCallback
        Called by Ray Train's controller at each report.
    """
    scaling = worker_resources(config, mode).scaling(config.resources)
    datasets, data_config = build_datasets(config, manifest, mode, folder.path)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "manifest": manifest.model_dump(mode="json"),
            "mode": mode,
            "tracking": tracking,
            "board": board,
            "start_from": start_from,
        },
        datasets=datasets,
        dataset_config=data_config,
        scaling_config=scaling,
        run_config=RayRunConfig(
            name=folder.name,
            storage_path=folder.storage_root,
            storage_filesystem=folder.files,
            failure_config=FailureConfig(
                max_failures=config.resources.max_failures,
                controller_failure_limit=waits_for_a_place(config),
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            callbacks=list(callbacks),
        ),
    )
    return fit_through_starts(trainer, config.resources.max_failures)


def fit_through_starts(trainer: TorchTrainer, retries: int) -> Result:
    """Fit, and once more for each worker that dies while it is being started, up to `retries`.

    Ray Train retries by itself when a worker dies at work, and gives up on one that dies before.
    """
    for _ in range(retries):
        try:
            return trainer.fit()
        except ControllerError as error:
            if not isinstance(error.controller_failure, RayActorError):
                raise
    return trainer.fit()
