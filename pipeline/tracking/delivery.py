"""From the spool to the store, each point once: by the writer, by the driver at a run's end, or long after it."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import ConfigError
from pipeline.storage import Folder, absolute
from pipeline.tracking.copies import keep_copy, waiting_spools
from pipeline.tracking.diagnosis import check_store, is_unreachable, refusal, summary_of
from pipeline.tracking.run import ATTEMPT, ENDED, TAG_LENGTH, RunRef, find_or_create_run, load_ref
from pipeline.tracking.spool import End, MetricPoint, RunStatus, Spool
from pipeline.tracking.store import client_for, database_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

BATCH_METRICS = 1000  # MLflow's limit

_logger = logging.getLogger(__name__)


class Delivery(NamedTuple):
    """Points, tags, files, models and statuses of a spool: how many the store confirmed, and how many still wait.

    `uri` says where they go, without a password; it is empty where records are off.
    """

    sent: int
    waiting: int
    uri: str


def deliver_run(run_folder: str, uri: str | None = None) -> Delivery:
    """Send what a run left in its spool on this machine and in its remote storage, and the status it ended with.

    The run is not reopened.

    Parameters
    ----------
    run_folder : str
        Local path or URI of the run's folder.
    uri : str, optional
        Where the records go now, for a store that has moved or a URI with a password; see :func:`load_ref`.

    Returns
    -------
    Delivery
        With `waiting` above 0 when the store is unreachable, which is logged.

    Raises
    ------
    ConfigError
        The folder is not a run's, or the store answers but cannot be used.
    """
    folder = Folder(absolute(run_folder))
    ref = load_ref(folder, uri)
    sent = waiting = 0
    for spool in waiting_spools(folder) if ref.enabled else ():
        before = spool.pending
        _check_reachable_database(ref, folder)
        _deliver(ref, spool)
        sent, waiting = sent + max(0, before - spool.pending), waiting + spool.pending
    return Delivery(sent, waiting, ref.public_uri)


def _check_reachable_database(ref: RunRef, folder: Folder) -> None:
    """ConfigError, before anything is sent, for a store that is known to be unusable."""
    database = database_path(ref.uri)
    if database is not None and not database.is_file():
        raise ConfigError(
            f"the records of {folder.path} go to {database}, which does not exist; give its current URI with --uri"
        )
    check_store(ref.uri)


def _deliver(ref: RunRef, spool: Spool) -> None:
    try:
        Sender(ref, spool, reopen=False).send()
    except ConfigError:
        raise
    except Exception as error:
        if not is_unreachable(error):
            raise refusal(error, ref.uri) from error
        _logger.warning("MLflow is unreachable; records wait in %s: %s", spool.path, summary_of(error))


def end_run(ref: RunRef, spool: Path, status: RunStatus, *, ended: float | None = None) -> int:
    """End a run from the driver: its writer lives in a worker, or died there. The run is not reopened.

    What the writer left on this machine is sent too. Nothing is raised because of the store: what cannot be sent
    stays in the spool for :func:`deliver_run`.

    Parameters
    ----------
    ended : float, optional
        When the run ended, in seconds since 1970; now by default. A run that has ended already keeps its time.

    Returns
    -------
    int
        Points, files, models and statuses that wait.
    """
    if not ref.enabled:
        return 0
    records = Spool(spool)
    records.set_end(end_now(ref, status, by_driver=True, ended=ended))
    try:
        Sender(ref, records, reopen=False).send()
    except Exception as error:
        _logger.warning("%d records wait for MLflow in %s: %s", records.pending, spool, summary_of(error))
    keep_copy(records, ref)
    return records.pending


def end_now(ref: RunRef, status: RunStatus, *, by_driver: bool, ended: float | None = None) -> End:
    """The end of the attempt of a reference."""
    return End(status, int((time.time() if ended is None else ended) * 1000), ref.attempt, by_driver)


class Sender:
    """Moves a spool's content to the store. Raises what the store raises, and can be called again.

    Only a writer sets `reopen`: at the first connection, and only then, a run that had ended becomes RUNNING again. A
    writer that outlives the end of its run neither reopens the run nor changes how the driver has ended it.

    Attributes
    ----------
    logged : list of MetricPoint
        All that a writer has logged: if its run is deleted during training, the run in its place gets them too.
    tagged : dict of str
        The same for its tags.
    """

    def __init__(self, ref: RunRef, spool: Spool, *, reopen: bool) -> None:
        self.ref = ref
        self.logged: list[MetricPoint] = []
        self.tagged: dict[str, str] = {}
        self._spool, self._reopen = spool, reopen
        self._connection: MlflowClient | None = None
        self._experiment = ""
        self._last_step: dict[str, int] = {}
        self._steps: dict[str, set[int]] = {}

    def send(self) -> None:
        """Deliver points, then tags, the status, files and models, connecting first if necessary.

        Files and models come last, because the file store may be unreachable while the store of points answers. What
        the store refuses does not hold back the rest; the first refusal is raised at the end.
        """
        try:
            client = self._connection = self._connection or self._connect()
            self._spool.reload()
            files = [partial(self._send_file, client, *file) for file in self._spool.files()]
            models = [partial(self._send_model, client, folder) for folder in self._spool.models()]
            records = [partial(send, client) for send in (self._send_points, self._send_tags, self._send_end)]
            _do_all([*records, *files, *models])
        except Exception:
            self._connection = None  # after a lost reply it is unknown what arrived: ask before the next try
            raise

    def _connect(self) -> MlflowClient:
        client = client_for(self.ref.uri)
        run = find_or_create_run(client, self.ref, reopen=self._reopen)
        self._experiment = run.info.experiment_id
        self._reopen = False
        if run.info.run_id != self.ref.run_id:
            self._spool.add(list(self.logged))
            for key, value in dict(self.tagged).items():
                self._spool.set_tag(key, value)
        self.ref = replace(self.ref, run_id=run.info.run_id)
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._steps = {}
        return client

    def _send_points(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        waiting = self._spool.waiting_points()
        arrived: list[MetricPoint] = []
        try:
            for start in range(0, len(waiting), BATCH_METRICS):
                batch = waiting[start : start + BATCH_METRICS]
                fresh = [point for point in batch if not self._has_arrived(client, point)]
                if fresh:
                    client.log_batch(self.ref.run_id, [Metric(p.key, p.value, p.timestamp, p.step) for p in fresh])
                for point in batch:
                    self._remember(point)
                arrived += batch
        finally:
            if arrived:
                self._spool.confirm(arrived)

    def _send_tags(self, client: MlflowClient) -> None:
        tags = dict(self._spool.tags)
        for key, value in tags.items():
            client.set_tag(self.ref.run_id, key, value[:TAG_LENGTH])
        if tags:
            self._spool.confirm_tags(tags)

    def _send_file(self, client: MlflowClient, path: Path, folder: str) -> None:
        try:
            client.log_artifact(self.ref.run_id, str(path), folder or None)
        except FileNotFoundError:
            if path.exists():
                raise
        path.unlink(missing_ok=True)  # another process may have delivered it in the meantime

    def _send_model(self, client: MlflowClient, folder: Path) -> None:
        """Make the folder a LoggedModel of the run, or the new content of the one that has its name."""
        from mlflow.entities import LoggedModelOutput

        model = find_model(client, self._experiment, self.ref.run_id, folder.name)
        if model is None:
            model = client.create_logged_model(self._experiment, name=folder.name, source_run_id=self.ref.run_id)
            client.log_outputs(self.ref.run_id, [LoggedModelOutput(model.model_id, step=0)])
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        shutil.rmtree(folder, ignore_errors=True)  # another process may have delivered it in the meantime

    def _send_end(self, client: MlflowClient) -> None:
        """End the run; the end of an earlier attempt is ignored, and so is a worker's if the run has already ended.

        Clocks are not compared, because those of two machines differ.
        """
        end = self._spool.end
        if end is None:
            return
        run = client.get_run(self.ref.run_id)
        if run.data.tags.get(ATTEMPT, "").removeprefix(ENDED) == end.attempt:
            if end.by_driver:
                client.set_tag(self.ref.run_id, ATTEMPT, ENDED + end.attempt)
            if run.info.status == "RUNNING":
                client.set_terminated(self.ref.run_id, end.status, end.ended)
            elif end.by_driver and run.info.status != end.status:
                client.update_run(self.ref.run_id, status=end.status)  # the store knows better when it ended
        self._spool.set_end(None)

    def _has_arrived(self, client: MlflowClient, point: MetricPoint) -> bool:
        last = self._last_step.get(point.key)
        if last is None or point.step > last:
            return False
        if point.key not in self._steps:
            history = client.get_metric_history(self.ref.run_id, point.key)
            self._steps[point.key] = {metric.step for metric in history}
        return point.step in self._steps[point.key]

    def _remember(self, point: MetricPoint) -> None:
        self._last_step[point.key] = max(point.step, self._last_step.get(point.key, point.step))
        if point.key in self._steps:
            self._steps[point.key].add(point.step)


def find_model(client: MlflowClient, experiment_id: str, run_id: str, name: str) -> LoggedModel | None:
    """The LoggedModel of this name that a run has; None without one."""
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'")
    return next(iter(found), None)


def _do_all(parts: Sequence[Callable[[], None]]) -> None:
    """Do every part even if some are refused, then raise the first refusal; an unreachable store ends it at once."""
    refused: Exception | None = None
    for part in parts:
        try:
            part()
        except Exception as error:
            if is_unreachable(error):
                raise
            refused = refused or error
    if refused:
        raise refused
