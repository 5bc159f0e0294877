"""The driver's side of Ray Train: starts the workers, keeps them running, and makes their errors readable."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.train import (
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    Result,
    RunConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer

from pipeline.checks.capacity import worker_resources
from pipeline.checks.nodes import node_resources
from pipeline.cluster import on_driver_node
from pipeline.errors import first_line
from pipeline.memory import memory_shortage
from pipeline.ray_private import leave_signals_alone
from pipeline.storage import storage_fault
from pipeline.training.job import Job
from pipeline.training.progress import Board
from pipeline.training.rollback import HALT, as_rolled_back, roll_back
from pipeline.training.worker import train_worker

LESS_MEMORY = (
    "The same command resumes the run from its last checkpoint. It needs less memory with data.mode=streaming, with "
    "more resources.workers on other nodes or GPUs (each takes batch / workers images), or with fewer on one node"
)


def fit(job: Job, callbacks: Sequence[UserCallback] = ()) -> Result:
    """Run the workers to the end, and again from the last checkpoint whenever an alarm rolls the run back.

    Parameters
    ----------
    job : Job
    callbacks : sequence of UserCallback
        Called by Ray Train's controller at each report.

    Raises
    ------
    Alarmed
        When an alarm has ended the run.
    """
    while True:
        result = run_workers(as_rolled_back(job), callbacks)
        if (halt := (result.return_value or {}).get(HALT)) is None:
            return result
        line = roll_back(job, halt)
        if job.board is not None:
            job.board.post.remote({"message": line})


def run_workers(job: Job, callbacks: Sequence[UserCallback]) -> Result:
    """Run the workers until they return."""
    config, folder = job.config, job.folder
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=worker_resources(config, job.plan.mode, node_resources()).scaling(config.resources),
        run_config=RunConfig(
            name=folder.name,
            storage_path=folder.parent_root,
            storage_filesystem=folder.files,
            failure_config=FailureConfig(
                max_failures=config.resources.max_failures,
                controller_failure_limit=placement_attempts(config.resources.wait_minutes),
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            callbacks=list(callbacks),
        ),
    )
    leave_signals_alone(trainer)
    return fit_through_starts(trainer, config.resources.max_failures)


def placement_attempts(minutes: float) -> int:
    """How often Ray Train may fail to place the workers; each attempt ends after Ray Train's own start timeout."""
    timeout = float(os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60"))
    return math.ceil(minutes * 60 / timeout)


def fit_through_starts(trainer: TorchTrainer, retries: int) -> Result:
    """Fit, and retry up to `retries` times when a worker dies while it is being started.

    Ray Train itself retries when a worker dies during training, but gives up when one dies before.
    """
    for _ in range(retries):
        try:
            return trainer.fit()
        except ControllerError as error:
            if not isinstance(error.controller_failure, RayActorError):
                raise
    return trainer.fit()


def new_board() -> Any:
    """A board for the news of a run, on this process's node."""
    return Board.options(scheduling_strategy=on_driver_node()).remote()  # type: ignore[attr-defined]


def worker_errors(error: Exception) -> dict[int, BaseException]:
    """The error of each failed worker by its rank, without Ray's wrappers; empty if no worker has reported one."""
    failures: dict[int, Any] = getattr(error, "worker_failures", None) or {}
    return {rank: _unwrapped(failure) for rank, failure in failures.items()}


def _unwrapped(failure: Any) -> Any:
    """What a worker raised; or, if it died, how: Ray Train then reports a failed health check."""
    return getattr(failure, "cause", None) or getattr(failure, "health_check_failure", None) or failure


def failure_reason(error: Exception) -> str:
    """The first failed worker's own error, or Ray's error if no worker has reported one."""
    if not (failed := worker_errors(error)):
        cause = getattr(error, "controller_failure", error)
        return _shortage(cause) or f"{type(cause).__name__}: {first_line(cause)}"
    rank, cause = next(iter(failed.items()))
    return f"in worker {rank}: " + (_shortage(cause) or f"{type(cause).__name__}: {cause}")


def _shortage(cause: BaseException) -> str | None:
    """How memory ran out, or a store or disk failed, and the remedy; None for any other cause."""
    shortage = memory_shortage(cause)
    return f"{shortage}. {LESS_MEMORY}" if shortage else storage_fault(cause)
