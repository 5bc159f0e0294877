"""The one writer of a run."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pipeline.tracking.copies import keep_copy
from pipeline.tracking.delivery import Sender, end_now
from pipeline.tracking.diagnosis import is_unreachable, summary_of
from pipeline.tracking.run import RunRef
from pipeline.tracking.spool import MetricPoint, RunStatus, Spool

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SEND_SECONDS = 10.0  # between two sends while the store answers
LONGEST_PAUSE_SECONDS = 600.0  # between two tries while it does not; doubles from SEND_SECONDS

_METRIC_NAME = re.compile(r"\w[\w\-. :]*(/\w[\w\-. :]*)*")  # what MLflow takes, except "." and ".." as path parts

_logger = logging.getLogger(__name__)


class RunWriter:
    """Writes one run's metrics and files; use it as a context manager on rank 0.

    Records go to the spool at once, and a thread sends them, so only callers of :meth:`flush` and :meth:`finish` wait
    for a slow or unreachable store. No method raises because of the store: one warning says that records wait, one
    line that they were delivered.
    Leaving the context finishes the run: FINISHED, or FAILED after an exception, KILLED after an interrupt. A run
    that the driver has ended in the meantime (:func:`end_run`) stays as the driver ended it.

    Parameters
    ----------
    ref : RunRef
        From :func:`open_run`. Where records are off, every method does nothing.
    spool : Path
        Local JSONL file that belongs to this run alone, usually :func:`spool_path` of its folder; files wait in a
        folder beside it. What an earlier writer left there is sent first.
    system_metrics : bool, default False
        Also log this machine's CPU, memory, disk, network and GPU every 10 s, by MLflow's own monitor.
    reopen : bool, default True
        Set a run that has ended to RUNNING again. Otherwise the run keeps the time and the status that it ended with.
    """

    _spool: Spool  # these two exist where records are on
    _sender: Sender

    def __init__(self, ref: RunRef, spool: Path, *, system_metrics: bool = False, reopen: bool = True) -> None:
        self._opened = ref
        self._system_metrics = system_metrics
        self._monitor: SystemMetricsMonitor | None = None
        self._failing = False
        self._finished = not ref.enabled
        self._pause = SEND_SECONDS
        self._next_send = 0.0
        self._sending = threading.Lock()
        self._news = threading.Event()  # set when something should be sent before the pause is over
        self._thread = threading.Thread(target=self._send_in_background, name="mlflow", daemon=True)
        if ref.enabled:
            self._spool = Spool(spool)
            if reopen:
                self._spool.set_end(None)  # an earlier end of this run, which is now resumed
            self._sender = Sender(ref, self._spool, reopen=reopen)
            self._news.set()
            self._thread.start()

    @property
    def ref(self) -> RunRef:
        """The run, with MLflow's id as soon as it is known."""
        return self._sender.ref if self._opened.enabled else self._opened

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one value per key; each (key, step) counts once, and steps may come in any order.

        A value that is not finite would spoil every chart, so it is logged as ``non_finite/<key>`` = 1 instead.

        Raises
        ------
        ValueError
            A key that MLflow refuses; nothing of the call is logged then.
        """
        now = int(time.time() * 1000)
        values = {key: float(value) for key, value in metrics.items()}
        points = [
            MetricPoint(key, step, value, now)
            if math.isfinite(value)
            else MetricPoint(f"non_finite/{key}", step, 1.0, now)
            for key, value in values.items()
        ]
        for point in points:
            if len(point.key) > 250 or not _METRIC_NAME.fullmatch(point.key):
                raise ValueError(f"metric name {point.key!r}; use up to 250 letters, digits, spaces and _ - . : /")
        if self._opened.enabled:
            self._sender.logged += points
            self._spool.add(points)

    def tag(self, key: str, value: str) -> None:
        """Tag the run, in place of an earlier value."""
        if self._opened.enabled:
            self._sender.tagged[key] = value
            self._spool.set_tag(key, value)
            self._news.set()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or a folder with all in it, as ``<folder>/<name>``; a copy is taken now."""
        if self._opened.enabled:
            self._spool.add_file(path, folder)
            self._news.set()

    def model(self, folder: Path) -> None:
        """Log a folder that holds an MLflow model as the run's LoggedModel of the folder's name; a copy is taken now.

        It loads from ``runs:/<id>/<name>``.
        """
        if self._opened.enabled:
            self._spool.add_model(folder)
            self._news.set()

    def flush(self) -> None:
        """Send what is pending and wait for it; while sending fails, try only now and then."""
        with self._sending:
            if not self._finished and (not self._failing or time.monotonic() >= self._next_send):
                self._try_to_send()

    def finish(self, status: RunStatus) -> None:
        """Send everything and end the run; what cannot be sent stays in the spool for :func:`deliver_run`."""
        if self._finished:
            return
        with self._sending:
            self._finished = True
            self._stop_monitor()
            self._spool.set_end(end_now(self._opened, status, by_driver=False), unless_known=True)
            self._try_to_send()
        self._news.set()
        self._thread.join()
        keep_copy(self._spool, self._opened)
        if self._spool.pending:
            _logger.warning("%d records wait for MLflow in %s", self._spool.pending, self._spool.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _send_in_background(self) -> None:
        while not self._finished:
            self._news.wait(self._pause)
            self._news.clear()
            self.flush()

    def _try_to_send(self) -> None:
        try:
            self._sender.send()
        except Exception as error:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) if self._failing else SEND_SECONDS
            if not self._failing:
                problem = "cannot be reached" if is_unreachable(error) else "refuses the records"
                _logger.warning("MLflow %s; records wait in %s: %s", problem, self._spool.path, summary_of(error))
                self._stop_monitor()  # its thread ends at the first failed request
            self._failing = True
            if not self._finished:
                keep_copy(self._spool, self._opened)
        else:
            if self._failing:
                _logger.info("MLflow answers again; all waiting records were sent")
            self._failing, self._pause = False, SEND_SECONDS
            self._start_monitor()
        self._next_send = time.monotonic() + self._pause

    def _start_monitor(self) -> None:
        if not self._system_metrics or self._monitor or self._finished:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        try:
            self._monitor = SystemMetricsMonitor(self.ref.run_id, resume_logging=True, tracking_uri=self.ref.uri)
            self._monitor.start()
        except Exception as error:
            self._system_metrics = False
            _logger.warning("system metrics are not recorded: %s", summary_of(error))

    def _stop_monitor(self) -> None:
        if self._monitor:
            self._monitor.finish()
        self._monitor = None
