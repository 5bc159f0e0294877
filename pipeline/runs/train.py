"""A training run from the driver's side: prepare, fit, write the results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.train import TrainingFailedError

from pipeline.backbones.names import DEFAULT
from pipeline.build import open_encoder, settle_images
from pipeline.checks.nodes import check_nodes
from pipeline.checks.settings import check_settings
from pipeline.cluster import connect
from pipeline.config.identity import run_name
from pipeline.config.models import RunConfig
from pipeline.data.class_lists import ClassList, load_class_list
from pipeline.data.ingest import ingest
from pipeline.data.read import has_labels, with_row_groups
from pipeline.data.shards import Manifest, has_manifest, read_manifest, validate_shards
from pipeline.data.sources.listing import printable
from pipeline.data.sources.selection import some_of
from pipeline.errors import CheckpointError, ConfigError, RunFailed
from pipeline.plan import Plan
from pipeline.progress import Echo
from pipeline.runs.identity import claim_features, record_start, run_folder
from pipeline.runs.inspection import RunStatus, open_run_folder
from pipeline.runs.start_from import checkpoint_to_start_from
from pipeline.storage import Folder, absolute, check_readable, check_writable, join
from pipeline.tracking import RECORD, deliver_run, end_run, open_run, records_wait, spool_path
from pipeline.training.checkpoint import registered_checkpoints
from pipeline.training.failure import keep_failure
from pipeline.training.fit import failure_reason, fit, new_board
from pipeline.training.job import Job
from pipeline.training.monitors import monitor_warnings
from pipeline.training.precision import begun_precision, keep_precision
from pipeline.training.progress import ProgressPrinter

GRACE_SECONDS = 20.0  # for the last checkpoint of an interrupted run; Kubernetes and Slurm give 30 s by default


def train(config: RunConfig, *, label: str = "run", echo: Echo = print) -> dict[str, Any]:
    """Train to the end, or resume where an earlier call with the same configuration stopped.

    Parameters
    ----------
    config : RunConfig
    label : str
        First part of the run's name where the configuration gives none: usually the preset.
    echo : callable
        Takes the lines of progress.

    Returns
    -------
    dict
        The summary, as it lies in summary.json of the run's folder.

    Raises
    ------
    ConfigError, DataError
        For errors found before anything starts.
    RunFailed
        When workers failed more often than resources.max_failures. The same call resumes from the last checkpoint.
    """
    config = resolve(config, label)
    check_writable(config.storage)
    check_readable(config.data.path, "data.path")
    manifest = load_or_ingest(config, echo)
    plan = check_settings(config, manifest)
    with open_run_folder(config) as run:
        if run.summary is not None:
            echo(f"run {config.name} is already finished; to train a new one, give another name (--set name=...)")
            deliver_waiting(run.folder, config.tracking.uri, echo)
            return run.summary
        if run.status is RunStatus.STARTED:
            echo(f"run {config.name} was started before but has no checkpoint yet; it starts from epoch 0")
        job = prepare(config, manifest, plan, label, echo)
        fit_with_progress(job, echo)
        from pipeline.runs.artifacts import write_artifacts

        return write_artifacts(job)


def deliver_waiting(folder: Folder, uri: str | None, echo: Echo) -> None:
    """Send records that still wait because MLflow was unreachable when the run ended; a failure is only reported."""
    if folder.read(RECORD) is None or not records_wait(folder):
        return
    try:
        delivery = deliver_run(folder.path, uri)
    except ConfigError as error:
        echo(f"records wait for MLflow and cannot be sent: {error}")
        return
    if delivery.sent:
        echo(f"{delivery.sent} waiting records were sent to {delivery.uri}")
    if delivery.waiting:
        echo(
            f"{delivery.waiting} records still wait for {delivery.uri}; run `digpro deliver {folder.path}` to send them"
        )


def prepare(config: RunConfig, manifest: Manifest, plan: Plan, preset: str, echo: Echo) -> Job:
    """The job of a run whose folder is claimed: images and checkpoints checked, MLflow's run opened, Ray connected."""
    folder = run_folder(config)
    validate_shards(config.data.path)
    echo(f"run {config.name}: {manifest.num_images:,} images, {plan.mode} ({plan.mode_reason})")
    for warning in monitor_warnings(config, has_classes=has_labels(config.data.path)):
        echo(f"warning: {warning}")
    if not config.model.freeze and config.model.weights not in (None, DEFAULT):
        open_encoder(config, echo)  # find faults of the file before workers are started
    weights_from = checkpoint_to_start_from(config, plan)
    tracking = open_run(config, folder)
    record_start(folder, manifest, preset)
    connect()
    check_nodes(config)
    job = Job(config, manifest, plan, tracking, board=new_board(), weights_from=weights_from)
    return prepare_cache(job, echo) if config.model.freeze else job


def prepare_cache(job: Job, echo: Echo) -> Job:
    """The job with its cached backbone features, which are computed first if there are none."""
    from pipeline.backbone_features.build_cache import ensure_cache

    try:
        folder, cache = ensure_cache(job.config, job.manifest, echo, begun=begun_precision(job.folder))
        claim_features(job.folder, cache)
        keep_precision(job.folder, cache.key.precision)
    except BaseException as error:
        end_run(job.tracking, spool_path(job.folder), "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    return replace(job, feature_cache=folder.path)


def fit_with_progress(job: Job, echo: Echo) -> None:
    """Run the workers and show their progress.

    Raises
    ------
    RunFailed
        With the first worker's error, or Ray's, when the workers fail for good.
    KeyboardInterrupt
        After a last checkpoint, if one is saved in time; MLflow's run is then KILLED.
    """
    try:
        with ProgressPrinter(job.board, job.config.optim.epochs, job.plan.images_per_epoch, echo):
            fit(job)
    except KeyboardInterrupt:
        try:
            save_last_checkpoint(job, echo)
        finally:
            end_run(job.tracking, spool_path(job.folder), "KILLED")
        raise
    except (TrainingFailedError, ray.exceptions.RayError) as error:  # the latter where Ray's controller is gone
        with contextlib.suppress(OSError):  # a full disk must not hide what happened
            end_run(job.tracking, spool_path(job.folder), "FAILED")
        details = keep_failure(job.folder, error)
        raise RunFailed(f"run {job.folder.name} failed: {failure_reason(error)}{details}") from error


def save_last_checkpoint(job: Job, echo: Echo) -> None:
    """Ask the workers for a checkpoint, and wait until it is registered.

    The workers keep running while the interrupt is handled. A second interrupt ends the wait.
    """
    before = newest_path(job.folder)
    echo(f"saving a last checkpoint, {GRACE_SECONDS:.0f} s at most; interrupt again to leave at once")
    with contextlib.suppress(ray.exceptions.RayError):  # workers that are gone save nothing
        ray.get(job.board.request_checkpoint.remote(), timeout=5)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        if newest_path(job.folder) not in (None, before):
            return
        time.sleep(0.2)
    echo("no checkpoint was saved in time; the run will resume from the previous one")


def newest_path(folder: Folder) -> str | None:
    """Path of the newest registered checkpoint; None without one, or while the record is being written."""
    with contextlib.suppress(CheckpointError):
        return next((checkpoint.path for checkpoint in registered_checkpoints(folder)), None)
    return None


def resolve(config: RunConfig, label: str) -> RunConfig:
    """The configuration with a name, paths that mean the same in every process, and all image settings filled in."""
    settled, storage = settle_images(config), absolute(config.storage)
    places = {
        "path": absolute(config.data.path),
        "features": absolute(config.data.features) if config.data.features else join(storage, "features"),
    }
    model = config.model
    weights = model.weights if model.weights in (None, DEFAULT) else absolute(model.weights)
    start_from = absolute(model.start_from) if model.start_from else None
    return settled.model_copy(
        update={
            "name": run_name(config, label),
            "storage": storage,
            "data": settled.data.model_copy(update=places),
            "model": model.model_copy(update={"weights": weights, "start_from": start_from}),
        }
    )


def load_or_ingest(config: RunConfig, echo: Echo) -> Manifest:
    """The manifest of the run's data set, which is ingested first when it is missing and a source is given.

    A data set that lacks images, or has another source or other classes, is used with a warning.
    """
    classes = load_class_list(config.data.classes) if config.data.classes is not None else None
    manifest = with_row_groups(config.data.path, _load_or_ingest(config, classes, echo))
    for mismatch in _mismatches(config, classes, manifest):
        echo(f"warning: {mismatch}")
    return manifest


def _mismatches(config: RunConfig, classes: ClassList | None, manifest: Manifest) -> Iterator[str]:
    """How the data set differs from what the settings name."""
    path, source, held = config.data.path, config.data.source, manifest.source.source
    if source is not None and printable(source) != held:
        yield f"{path} holds the images of {held}; to use data.source={source}, give another data.path"
    if classes is not None and (other := classes.images.keys() ^ set(manifest.class_names)):
        yield (
            f"the classes of {path} are not those of data.classes={classes.name} (they differ in {some_of(other)}); "
            "to use that list, give another data.path"
        )
    if manifest.count_warning:
        yield f"{path}: {manifest.count_warning}"


def _load_or_ingest(config: RunConfig, classes: ClassList | None, echo: Echo) -> Manifest:
    if config.data.source is not None and not has_manifest(config.data.path):
        echo(f"ingesting {config.data.source} into {config.data.path}")
        connect()
        return ingest(config.data.source, config.data.path, classes=classes)
    return read_manifest(config.data.path)
