"""Which settings decide the result of a run, the fingerprint that they make, and the name of a run."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pipeline.config.loading import get_setting, settings_table
from pipeline.config.models import CIRCUMSTANCE, ENVIRONMENT, LATER, NAME_BYTES, RunConfig
from pipeline.config.removed import STILL_NAMED
from pipeline.storage import Place


def circumstances() -> list[str]:
    """Dotted keys of the settings that decide where and how a run is carried out, but not its result.

    Each is marked at its field in `models.py`; a new setting is not one until it is marked.
    """
    return [key for key, field in settings_table().items() if CIRCUMSTANCE in field.metadata]


def environment_settings() -> list[str]:
    """Dotted keys of the circumstances that are the same for all trials of a search: places, resources, records."""
    return [key for key, field in settings_table().items() if ENVIRONMENT in field.metadata]


def result_settings(config: RunConfig) -> dict[str, Any]:
    """Dotted key and value of the settings that decide the result: runs on the same images with equal ones are one run.

    They do not include where images, runs and records lie, how images reach the workers, or the number of workers.
    """
    values, others = config.model_dump(mode="json"), set(circumstances())
    return {key: get_setting(values, key) for key in settings_table() if key not in others}


def fingerprint(config: RunConfig) -> str:
    """Eight characters that change with every setting that decides the result, and with the data folder's name."""
    folder = Place.parse(config.data.path).name  # not where it lies: moving it changes nothing
    settings = {key: value for key, value in result_settings(config).items() if not _is_later_default(key, value)}
    values = {"images": folder, **settings, **STILL_NAMED}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _is_later_default(key: str, value: Any) -> bool:
    """Whether a run from before this setting existed is the same run."""
    field = settings_table()[key]
    return LATER in field.metadata and value == field.default


def run_name(config: RunConfig, label: str) -> str:
    """The name of a run: its own, or a label (usually the preset) and the fingerprint, as in `digits-9687ae1c`."""
    return config.name or derive_name(label, fingerprint(config))


def derive_name(label: str, digest: str) -> str:
    """A name from a label and eight characters; characters not allowed in names become hyphens, long labels are cut."""
    clean = re.sub(r"[^\w.-]", "-", label).lstrip(".-") or "run"
    kept = clean.encode()[: NAME_BYTES - 9].decode(errors="ignore")
    return f"{kept}-{digest}"
