"""Tracking with MLflow: one MLflow run per training run, one writer, and training never waits for a store.

The driver calls :func:`open_run`, which refuses a store that answers but cannot be used, and hands the
:class:`RunRef` to the workers; rank 0 holds the :class:`RunWriter`. Every point and file goes to a spool on disk
first. A thread of the writer sends it, and it leaves the spool when the store has confirmed it. Records that wait
because the store is unreachable are sent later by that thread, by the next writer on the same spool, by
:func:`end_run` or by :func:`deliver_run`.

A point (key, step) arrives once, although a resumed run replays steps and a lost reply makes the writer send again.
Before anything is sent, the writer asks for the last step of each of the run's keys (one request), and reads the
history only of keys with pending steps up to that one. The value that arrived first stays.
"""

from __future__ import annotations

import logging
import os

from pipeline.tracking.copies import records_wait
from pipeline.tracking.delivery import Delivery, deliver_run, end_run
from pipeline.tracking.model import MODEL, register_model
from pipeline.tracking.run import RECORD, RunRef, load_ref, open_run, save_ref, store_fault, tag_run
from pipeline.tracking.spool import RunStatus, spool_path
from pipeline.tracking.store import database_path, redacted, tracking_uri
from pipeline.tracking.writer import RunWriter

__all__ = [
    "MODEL",
    "RECORD",
    "Delivery",
    "RunRef",
    "RunStatus",
    "RunWriter",
    "database_path",
    "deliver_run",
    "end_run",
    "load_ref",
    "open_run",
    "records_wait",
    "redacted",
    "register_model",
    "save_ref",
    "spool_path",
    "store_fault",
    "tag_run",
    "tracking_uri",
]

# `mlflow` takes 1.5 s to import, so it is imported where it is used; these settings must be made before.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # at a run's end, with any password that the URI has
# MLflow would retry for minutes; the spool retries better and lets training continue in the meantime.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it names every table that it creates
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # it warns where uv left out pip
