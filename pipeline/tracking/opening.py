"""Opening a run: what is written of it once, by the driver."""

from __future__ import annotations

import json
import logging
import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config.models import RunConfig
from pipeline.tracking.store import PARAM_LENGTH, TAG_LENGTH, RunRef, attach, client_for, reason, tracking_uri

_PACKAGES = ("ray", "torch", "torchvision", "mlflow", "pyarrow")

_logger = logging.getLogger(__name__)


def open_run(
    config: RunConfig, storage_dir: str, run_name: str, resume_run_id: str | None, tags: Mapping[str, str]
) -> RunRef:
    """Create the MLflow run of a training run, or continue `resume_run_id`; call it once, in the driver.

    Parameters
    ----------
    config : RunConfig
        Logged as params with dotted keys, when the run is created. `tracking.uri` null means
        MLFLOW_TRACKING_URI, or else the SQLite file ``mlflow.db`` in `storage_dir`.
    storage_dir : str
        Local folder, or URI of a remote one.
    run_name : str
        Shown by MLflow.
    resume_run_id : str or None
        `RunRef.run_id` of the interrupted run. One that no longer exists is replaced by a new run, with a warning.
    tags : mapping
        More tags; ``mlflow.parentRunId`` makes the run the child of another.

    Returns
    -------
    RunRef
        With a ``pending-...`` id when the server did not answer; the writer then creates the run later.

    Raises
    ------
    ConfigError
        `tracking.uri` is nothing that MLflow can write to, or is null while the storage is not a local folder.
    """
    ref = RunRef(
        uri=tracking_uri(config.tracking.uri, storage_dir),
        run_id=resume_run_id or f"pending-{uuid.uuid4().hex}",
        experiment=config.tracking.experiment,
        name=run_name,
        tags={key: value[:TAG_LENGTH] for key, value in {**environment(), **tags}.items()},
        params=flatten(config),
    )
    try:
        run = attach(client_for(ref.uri), ref, reopen=True)
    except Exception as error:
        _logger.warning("MLflow cannot be reached, the run is created once it answers: %s", reason(error))
        return ref
    return replace(ref, run_id=run.info.run_id)


def flatten(config: BaseModel) -> dict[str, str]:
    """Dotted key -> value as an override would be written: ``{"optim.lr": "0.05", "name": "null"}``."""

    def leaves(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from leaves(f"{prefix}.{key}" if prefix else key, inner)
        else:
            yield prefix, (value if isinstance(value, str) else json.dumps(value))[:PARAM_LENGTH]

    return dict(leaves("", config.model_dump(mode="json")))


def environment() -> dict[str, str]:
    """Tags that say what the run was made with: versions, commit, and the driver's machine."""
    import torch
    from mlflow.utils.git_utils import get_git_commit

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    tags = {f"env.{name}": metadata.version(name) for name in _PACKAGES}
    tags |= {"env.python": platform.python_version(), "env.hostname": platform.node()}
    tags |= {"env.cpus": str(os.cpu_count()), "env.gpus": ", ".join(gpus) or "none"}
    commit = get_git_commit(str(Path(__file__).parent))
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})
