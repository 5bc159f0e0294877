"""One trial: a whole distributed training run, inside an actor of Ray Tune."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.train import Result, UserCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from pipeline.checks.settings import check_run
from pipeline.config.models import RunConfig
from pipeline.data.shards import Manifest
from pipeline.errors import ConfigError, DataError, RunFailed
from pipeline.plan import choose_mode
from pipeline.tracking import RunRef, open_run
from pipeline.training.fit import fit, new_board, ray_reason
from pipeline.training.progress import POLL_SECONDS
from pipeline.training.run_folder import IDENTITY, RunFolder
from pipeline.tuning.schedule import CHECKPOINT, START_FROM
from pipeline.tuning.space import Point, Space, configured

TRIAL = "trial.json"  # in the folder of a trial: its MLflow run, and why it failed
COLLAPSED = {"feature_spread": 0.01, "size_entropy": 0.1}  # less than untrained features have; all in one cluster
Page = dict[str, Any]


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a search have in common.

    Attributes
    ----------
    config : RunConfig
        Of the search, with its name and storage, the space's own settings and the resources of a trial.
    trials : str
        Folder of the trials.
    parent : str
        MLflow's id of the search.
    label : str
        What is searched for, usually a preset's name.
    """

    config: RunConfig
    space: Space
    manifest: Manifest
    trials: str
    parent: str
    label: str


def run_trial(settings: dict[str, Any], job: TrialJob) -> None:
    """Train with the values of a point, and report every epoch to Tune.

    A failure is written down where it would come again: Tune tries failed trials once more, for those that died with
    their node, and one that is known to fail is spared that.
    """
    trial = tune.get_context().get_trial_id()
    home = RunFolder(job.trials, trial).make()
    if (known := (home.read(TRIAL) or {}).get("failed")) is not None:
        raise RunFailed(known)
    try:
        train_trial(settings, job, home)
    except Exception as error:
        reason = ray_reason(error) if isinstance(error, TrainingFailedError) else str(error)
        if lasting(error):
            home.update(TRIAL, failed=reason)
        raise RunFailed(reason) from error


def lasting(error: Exception) -> bool:
    """Whether the run itself failed, and not something under it, such as a node or all of Ray."""
    if isinstance(error, TrainingFailedError):
        failures = getattr(error, "worker_failures", None) or {0: error}
        causes = [getattr(failure, "cause", None) or failure for failure in failures.values()]
        return not any(isinstance(cause, (ray.exceptions.RayError, TrainingFailedError)) for cause in causes)
    return isinstance(error, (ConfigError, DataError, RunFailed))


def point_of(settings: dict[str, Any]) -> Point:
    """The values that a search chose, out of a trial's settings."""
    return {key: value for key, value in settings.items() if key != START_FROM}


def run_name(trial: str, settings: dict[str, Any]) -> str:
    """Name of a trial's run, by which Ray Train finds the checkpoints to go on from.

    It is the trial's own as long as that goes on by itself, and another one when it takes over from somebody else.
    """
    source = settings.get(START_FROM)
    return f"{trial}-{hashlib.sha256(source.encode()).hexdigest()[:6]}" if source else trial


def trial_config(settings: dict[str, Any], job: TrialJob, trial: str) -> RunConfig:
    """The configuration of a trial."""
    config = configured(job.config, point_of(settings), origin=f"trial {trial}")
    return config.model_copy(update={"name": run_name(trial, settings), "storage": job.trials})


def train_trial(settings: dict[str, Any], job: TrialJob, home: RunFolder) -> None:
    """Start the run of a trial, or go on with it, and pass its pages on until it ends."""
    config = trial_config(settings, job, home.name)
    check_run(config, job.manifest)
    folder, tracking = RunFolder.claim(config), open_record(config, job, home)
    folder.update(IDENTITY, mlflow_run=tracking.run_id, manifest=job.manifest.model_dump(mode="json"))
    mode, board = choose_mode(config, job.manifest)[0], new_board()
    take_over = settings.get(START_FROM)
    run = in_background(
        lambda: fit(config, job.manifest, mode, folder, tracking, start_from=take_over, callbacks=[Relay(board)])
    )
    reports = 0
    for page in pages(board, run, folder.path):
        reports += report(page, config, job.space)
    if (result := run.result()) and not reports:  # it had ended before, and Tune was killed before it knew
        report(result.return_value, config, job.space)


def open_record(config: RunConfig, job: TrialJob, home: RunFolder) -> RunRef:
    """MLflow's run of a trial, a child of the search's: one, however often the trial is started and takes over."""
    known = (home.read(TRIAL) or {}).get("mlflow_run")
    tags = {"mlflow.parentRunId": job.parent, "digpro.trial": home.name}
    record = open_run(config, job.config.storage, f"{job.config.name}-{home.name}", known, tags)
    home.update(TRIAL, mlflow_run=record.run_id)
    return record


def report(page: Page, config: RunConfig, space: Space) -> bool:
    """Give Tune the page of an epoch, if it is a whole one; RunFailed when it shows that the run is lost."""
    if not whole(page, config):
        return False
    if reason := fault(page, config, space):
        raise RunFailed(reason)
    tune.report(page)
    return True


class Relay(UserCallback):
    """Takes what workers report from Ray Train's controller to a board, once its checkpoint is registered."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_report(self, run_context: Any, metrics: list[Page], checkpoint: Any) -> None:
        """Post rank 0's metrics, and the name of the checkpoint's folder."""
        name = checkpoint.path.rstrip("/").rpartition("/")[2] if checkpoint else None
        ray.get(self.board.post.remote({"page": metrics[0], "checkpoint": name}))


def in_background(call: Callable[[], Result]) -> Future[Result]:
    """Run a call in a thread that does not keep the process alive: Tune ends a stopped trial's process around it."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def pages(board: Any, run: Future[Result], folder: str) -> Iterator[Page]:
    """Metrics of every report until the run has ended, each with the path of the newest checkpoint."""
    newest = None
    while True:
        ended = run.done()
        for item in ray.get(board.take.remote()):
            newest = f"{folder}/{item['checkpoint']}" if item["checkpoint"] else newest
            yield item["page"] | {CHECKPOINT: newest}
        if ended:
            return
        time.sleep(POLL_SECONDS)


def whole(page: Page, config: RunConfig) -> bool:
    """Whether a page is of an epoch with training and an E-step, and has all metrics that the run will ever have."""
    epoch = page["epoch"]
    return "step" not in page and epoch > 0 and (epoch % config.estep.every == 0 or epoch == config.optim.epochs)


def fault(page: Page, config: RunConfig, space: Space) -> str | None:
    """Why a run is lost, as a whole page shows it."""
    metrics, epoch = [metric for metric, _ in space.objectives], page["epoch"]
    if missing := [metric for metric in metrics if metric not in page]:
        known = ", ".join(sorted(key for key in page if key != CHECKPOINT))
        return f"the run reports no {', '.join(missing)}; it reports {known}"
    if bad := [f"{metric} is {page[metric]}" for metric in metrics if not math.isfinite(page[metric])]:
        return f"{', '.join(bad)} after epoch {epoch}"
    low = {key: page[key] for key, least in COLLAPSED.items() if page.get(key, least) < least}
    if low and epoch > config.optim.warmup_epochs:
        return f"collapsed: {', '.join(f'{key} is {value:.4f}' for key, value in low.items())} after epoch {epoch}"
    return None
