"""Which settings decide the result of a run, and the fingerprint that they make."""

from __future__ import annotations

import hashlib
import json
from functools import reduce
from operator import getitem
from typing import Any

from pipeline.config.loading import settings_table
from pipeline.config.models import RunConfig

# Settings, and beginnings of settings, that say where and how a run is done, and not what comes out of it.
CIRCUMSTANCES = (
    "name",
    "storage",
    "data.path",
    "data.source",
    "data.mode",
    "data.resident_limit_gb",
    "data.shuffle_buffer",
    "data.prefetch_batches",
    "estep.batch_size",
    "estep.probe",
    "checkpoint.",
    "resources.",
    "tracking.",
)


def result_settings(config: RunConfig) -> dict[str, Any]:
    """Dotted key and value of the settings that decide the result: runs on the same images that share them are one.

    Where images, runs and records lie, how the images travel, and on how many workers it runs are not among them.
    """
    values = config.model_dump(mode="json")
    keys = [key for key in settings_table() if not key.startswith(CIRCUMSTANCES)]
    return {key: reduce(getitem, key.split("."), values) for key in keys}


def fingerprint(config: RunConfig) -> str:
    """Eight characters that change with every setting that decides the result, and with the data folder's name."""
    folder = config.data.path.rstrip("/").rpartition("/")[2]  # not where it lies: moving it changes nothing
    values = {"images": folder, **result_settings(config)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
