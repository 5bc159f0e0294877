"""The life of one trial: a whole distributed training run, inside an actor of Ray Tune.

`run_trial` is all that the actor does: start the run or resume it, report its epochs to Tune, and fail with a reason.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.train import Result, TrainingFailedError, UserCallback

from pipeline.alarms import collapse
from pipeline.backbone_features.neighbours import complete_neighbours
from pipeline.checks.capacity import READING_CPUS
from pipeline.checks.settings import check_settings
from pipeline.config.loading import with_settings
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError, DataError, RunFailed, UserError, first_line
from pipeline.plan import has_estep
from pipeline.runs.identity import claim_folder, record_start
from pipeline.storage import Folder
from pipeline.tracking import RECORD, RunRef, load_ref, open_run
from pipeline.training.fit import failure_reason, fit, new_board, worker_errors
from pipeline.training.job import Job
from pipeline.training.progress import POLL_SECONDS
from pipeline.tuning.space import Space

TRIAL = "trial.json"  # in the folder of a trial: why it failed for good
Metrics = dict[str, Any]  # of one epoch, or of a save inside one


@dataclass(frozen=True)
class SearchJob:
    """What the trials of a search have in common.

    Attributes
    ----------
    config : RunConfig
        Of the search, with its name and storage, the space's own settings and the resources of a trial.
    space : Space
    manifest : Manifest
    trials_path : str
        Folder of the trials.
    parent_run : str
        MLflow's id of the search.
    label : str
        What is searched for, usually a preset's name.
    feature_cache : str or None
        Folder with the cached backbone features, the same for all trials.
    """

    config: RunConfig
    space: Space
    manifest: Manifest
    trials_path: str
    parent_run: str
    label: str
    feature_cache: str | None = None

    def folder(self, trial: str) -> Folder:
        """Folder of a trial, by its id; also the folder of its run."""
        return Folder(self.trials_path).subfolder(trial)


def run_trial(settings: dict[str, Any], search: SearchJob) -> None:
    """Train with the settings that Tune gave, and report every complete epoch to it.

    A permanent failure is recorded: Tune starts each failed trial once more, in case its node was lost, and a trial
    that is known to fail is not run again.
    """
    trial = tune.get_context().get_trial_id()
    folder = search.folder(trial).make()
    if (reason := (folder.read(TRIAL) or {}).get("failed")) is not None:
        raise RunFailed(reason)
    try:
        job = trial_job(settings, search, trial)
        claim_folder(job.config)
        record_start(job.folder, job.manifest, search.label)
        train_and_report(job, search.space)
    except Exception as error:
        reason = reason_of(error)
        if is_permanent(error):
            folder.update(TRIAL, failed=reason)
        raise RunFailed(reason) from error


def reason_of(error: Exception) -> str:
    """Why a trial failed: the first worker's own error, Ray's, or all of our own message on one line."""
    if isinstance(error, (TrainingFailedError, ray.exceptions.RayError)):
        return failure_reason(error)
    return " ".join(str(error).split()) if isinstance(error, UserError) else first_line(error)


def is_permanent(error: Exception) -> bool:
    """Whether the run itself failed, rather than something under it, such as a node or all of Ray."""
    if isinstance(error, TrainingFailedError):
        failed = worker_errors(error).values()
        return bool(failed) and not any(isinstance(cause, ray.exceptions.RayError) for cause in failed)
    return isinstance(error, (ConfigError, DataError, RunFailed))


def trial_job(settings: dict[str, Any], search: SearchJob, trial: str, *, ended: bool = False) -> Job:
    """The run of a trial, ready to be started, or to be read when it has `ended`."""
    config = trial_config(settings, search, trial)
    plan = check_settings(config, search.manifest)
    tracking = (ended_trial_run if ended else open_trial_run)(config, search, trial)
    if search.feature_cache is not None:
        complete_neighbours(Folder(search.feature_cache), config.views.neighbours)
    return Job(
        config,
        search.manifest,
        plan,
        tracking,
        feature_cache=search.feature_cache,
        reading_cpus=READING_CPUS,
    )


def trial_config(settings: dict[str, Any], search: SearchJob, trial: str) -> RunConfig:
    """The configuration of a trial."""
    config = with_settings(search.config, settings, f"trial {trial}")
    return config.model_copy(update={"name": trial, "storage": search.trials_path})


def open_trial_run(config: RunConfig, search: SearchJob, trial: str) -> RunRef:
    """MLflow's run of a trial, a child of the search's run; all starts of the trial share it."""
    tags = {"mlflow.parentRunId": search.parent_run, "digpro.trial": trial}
    return open_run(config, search.folder(trial).make(), name=f"{search.config.name}-{trial}", tags=tags)


def ended_trial_run(config: RunConfig, search: SearchJob, trial: str) -> RunRef:
    """The same run without reopening it, so that it keeps its end time; a trial that had none gets one."""
    folder = search.folder(trial)
    if not config.tracking.enabled or folder.read(RECORD) is None:
        return open_trial_run(config, search, trial)
    return load_ref(folder, config.tracking.uri)


def train_and_report(job: Job, space: Space) -> None:
    """Start the run of a trial, or resume it, and report its complete epochs until it ends."""
    board = new_board()
    run = in_background(lambda: fit(job, callbacks=[Relay(board)]))
    reports = 0
    for metrics in received_metrics(board, run):
        reports += report_epoch(metrics, job.config, space)
    if (result := run.result()) and not reports:  # it had ended before, but Tune was killed before it was told
        report_epoch(result.return_value, job.config, space)


class Relay(UserCallback):
    """Forwards the workers' reports from Ray Train's controller to a board, once their checkpoint is registered."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_report(self, run_context: Any, metrics: list[Metrics], checkpoint: Any) -> None:
        """Post rank 0's metrics."""
        ray.get(self.board.post.remote(metrics[0]))


def in_background(call: Callable[[], Result]) -> Future[Result]:
    """Run a call in a daemon thread, which does not keep the process alive when Tune stops its trial."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def received_metrics(board: Any, run: Future[Result]) -> Iterator[Metrics]:
    """Metrics of every report until the run has ended."""
    while True:
        ended = run.done()
        yield from ray.get(board.take.remote())
        if ended:
            return
        time.sleep(POLL_SECONDS)


def report_epoch(metrics: Metrics, config: RunConfig, space: Space) -> bool:
    """Report the metrics of a complete epoch to Tune; RunFailed when they show that the run has failed."""
    if not is_complete_epoch(metrics, config):
        return False
    if reason := failure_of(metrics, config, space):
        raise RunFailed(reason)
    tune.report(metrics)
    return True


def is_complete_epoch(metrics: Metrics, config: RunConfig) -> bool:
    """Whether metrics are of an epoch with training and an E-step, and so include all that the run ever reports."""
    return "step" not in metrics and metrics["epoch"] > 0 and has_estep(config, metrics["epoch"])


def failure_of(metrics: Metrics, config: RunConfig, space: Space) -> str | None:
    """Why a run has failed, judged by the metrics of a complete epoch; None if it has not."""
    epoch = metrics["epoch"]
    if missing := [metric for metric in space.metrics if metric not in metrics]:
        known = ", ".join(sorted(metrics))
        return f"the run does not report {', '.join(missing)}; it reports {known}"
    if bad := [f"{metric} is {metrics[metric]}" for metric in space.metrics if not math.isfinite(metrics[metric])]:
        return f"{', '.join(bad)} after epoch {epoch}"
    if epoch > config.optim.warmup_epochs and (reason := collapse(metrics)):
        return f"{reason} after epoch {epoch}"
    return None
