"""The driver's side of a run: configuration in, a finished run out."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, Result, UserCallback
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

from pipeline.build import steps_per_epoch
from pipeline.cluster import beside_driver, connect
from pipeline.config import RunConfig, fingerprint
from pipeline.data.ingest import ingest
from pipeline.data.shards import MANIFEST, Manifest, absolute, filesystem, read_manifest, validate_shards
from pipeline.data.stream import build_datasets, choose_mode
from pipeline.errors import RunFailed
from pipeline.tracking import RunRef, RunWriter, open_run
from pipeline.training.nodes import check_nodes
from pipeline.training.outcome import write_outcome
from pipeline.training.preflight import check_run, check_storage, worker_resources
from pipeline.training.progress import Board, ProgressPrinter
from pipeline.training.run_folder import IDENTITY, SUMMARY, RunFolder
from pipeline.training.worker import train_worker

Say = Callable[[str], None]


def train(config: RunConfig, *, label: str = "run", say: Say = print) -> dict[str, Any]:
    """Train to the end, or go on where an earlier call with the same configuration stopped.

    Parameters
    ----------
    config : RunConfig
    label : str
        First part of the run's name where the configuration gives none: usually the preset.
    say : callable
        Takes the lines of progress.

    Returns
    -------
    dict
        The summary, as it lies in summary.json of the run's folder.

    Raises
    ------
    ConfigError, DataError
        For what can be known beforehand; nothing has been started then.
    RunFailed
        When workers failed more often than resources.max_failures. The same call goes on from the last checkpoint.
    """
    config = located(config, label)
    check_storage(config.storage)
    manifest = available_data(config, say)
    check_run(config, manifest)
    folder = RunFolder.claim(config)
    if (summary := folder.read(SUMMARY)) is not None:
        say(f"run {config.name} is already finished; a new one needs another name (--set name=...)")
        return summary
    validate_shards(config.data.path)
    mode, reason = choose_mode(config, manifest)
    say(f"run {config.name}: {manifest.num_images:,} images, {mode} ({reason})")
    tracking = open_run(config, config.storage, folder.name, (folder.read(IDENTITY) or {}).get("mlflow_run"), {})
    folder.update(IDENTITY, mlflow_run=tracking.run_id, manifest=manifest.model_dump(mode="json"))
    connect()
    check_nodes(config)
    board = new_board()
    images = steps_per_epoch(config, manifest) * config.optim.batch_size
    try:
        with ProgressPrinter(board, config, images, say):
            fit(config, manifest, mode, folder, tracking, board)
    except TrainingFailedError as error:
        with contextlib.suppress(OSError):  # a full disk must not hide what happened
            RunWriter(tracking, folder.spool).finish("FAILED")
        raise RunFailed(f"run {folder.name} failed {ray_reason(error)}") from error
    return write_outcome(config, manifest, folder, tracking)


def ray_reason(error: TrainingFailedError) -> str:
    """The first worker's own error, without Ray's layers around it."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, cause = next(iter(failures.items()))
    cause = getattr(cause, "cause", None) or cause
    return f"in worker {rank}: {type(cause).__name__}: {cause}"


def located(config: RunConfig, label: str) -> RunConfig:
    """The configuration with a name, and with paths that mean the same in every process."""
    return config.model_copy(
        update={
            "name": config.name or f"{label}-{fingerprint(config)}",
            "storage": absolute(config.storage),
            "data": config.data.model_copy(update={"path": absolute(config.data.path)}),
        }
    )


def available_data(config: RunConfig, say: Say) -> Manifest:
    """The manifest of the run's data set, which is ingested first when it is missing and a source is given."""
    files, root = filesystem(config.data.path)
    if config.data.source is not None and not files.get_file_info(f"{root}/{MANIFEST}").is_file:
        say(f"ingesting {config.data.source} into {config.data.path}")
        connect()
        return ingest(config.data.source, config.data.path)
    return read_manifest(config.data.path)


def waits_for_a_place(config: RunConfig) -> int:
    """How often Ray Train may find no place for the workers, each time after its own start timeout."""
    timeout = float(os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60"))
    return math.ceil(config.resources.wait_minutes * 60 / timeout)


def new_board() -> Any:
    """A board for the news of a run, on this process's node."""
    return Board.options(scheduling_strategy=beside_driver()).remote()  # type: ignore[attr-defined]


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
