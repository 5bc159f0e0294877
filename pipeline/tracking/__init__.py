"""Tracking with MLflow: one MLflow run per training run, one writer, and training never waits for a server.

The driver calls :func:`open_run` and hands the :class:`RunRef` to the workers; rank 0 holds the :class:`RunWriter`.
Every point and file goes to a spool on disk first and leaves it when the server has confirmed it. Whatever a server
that is away leaves behind is sent by the next flush, the next writer on the same spool, or :func:`deliver`.

A point (key, step) arrives once. A resumed run replays steps, and a lost reply makes us send again, so before
anything is sent the run is asked for the last step of each key (one request). Only for a key whose pending steps do
not lie after that is the history read. The value that arrived first stays.
"""

from __future__ import annotations

import logging
import os

from pipeline.tracking.model import log_final_model
from pipeline.tracking.opening import environment, flatten, open_run
from pipeline.tracking.registry import register_model, tag_run
from pipeline.tracking.spool import spool_path
from pipeline.tracking.store import RunRef, tracking_uri
from pipeline.tracking.writer import RunWriter, deliver

__all__ = [
    "RunRef",
    "RunWriter",
    "deliver",
    "environment",
    "flatten",
    "log_final_model",
    "open_run",
    "register_model",
    "spool_path",
    "tag_run",
    "tracking_uri",
]

# `mlflow` takes 1.5 s to import, so it is imported where it is used; these settings have to be there before.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "1")
# MLflow would retry for minutes; the spool retries better and in the meantime lets training go on.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # tells of every table that it creates
