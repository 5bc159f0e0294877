"""The tracking store: its URI, and finding or creating the run in it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BATCH_PARAMS, PARAM_LENGTH, TAG_LENGTH = 100, 6000, 8000  # MLflow's limits

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_OPENED_AS = "digpro.opened_as"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRef:
    """All that a process needs to find the MLflow run, or to create it. Picklable.

    `run_id` is MLflow's, or ``pending-...`` when no server could be reached yet. Both are stable names of the run:
    store either with the checkpoint and give it back to :func:`open_run`.
    """

    uri: str
    run_id: str
    experiment: str
    name: str
    tags: Mapping[str, str] = field(repr=False)
    params: Mapping[str, str] = field(repr=False)


def client_for(uri: str) -> MlflowClient:
    """A client that writes to `uri`; MLflow is imported here, at its first use."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def tracking_uri(uri: str | None, storage_dir: str) -> str:
    """The URI with SQLite paths made absolute, because workers have another working directory.

    Without one it is MLFLOW_TRACKING_URI, as everywhere in MLflow, and then the file ``mlflow.db`` in `storage_dir`.
    """
    from sqlalchemy import make_url

    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        storage = urlsplit(storage_dir)
        if storage.scheme not in ("", "file"):
            raise ConfigError(f"storage is {storage_dir!r}, no place for an SQLite file; set tracking.uri")
        uri = f"sqlite:///{Path(unquote(storage.path) if storage.scheme else storage_dir).absolute() / 'mlflow.db'}"
    scheme, separator, _ = uri.partition("://")
    if uri != "databricks" and (not separator or scheme.split("+")[0] not in _SCHEMES):
        raise ConfigError(
            f"tracking.uri is {uri!r}; give a server (http://host:port) or a database (sqlite:////folder/mlflow.db)"
        )
    if scheme != "sqlite":
        return uri
    url = make_url(uri)
    if url.database in (None, "", ":memory:"):
        raise ConfigError(f"tracking.uri is {uri!r}, lost with its process; give a file, sqlite:////folder/mlflow.db")
    database = Path(url.database).absolute()
    database.parent.mkdir(parents=True, exist_ok=True)
    return url.set(database=str(database)).render_as_string(hide_password=False)


def attach(client: MlflowClient, ref: RunRef, *, reopen: bool) -> Run:
    """The run of `ref`, created if there is none; `reopen` sets an ended one RUNNING again."""
    from mlflow.entities import Param

    experiment_id = _experiment_id(client, ref)
    run = _find_run(client, experiment_id, ref.run_id)
    if run is None:
        if not ref.run_id.startswith("pending-"):
            _logger.warning("MLflow run %s no longer exists; a new run takes its place", ref.run_id)
        run = client.create_run(experiment_id, tags={**ref.tags, _OPENED_AS: ref.run_id}, run_name=ref.name)
    if not run.data.params:
        params = [Param(key, value) for key, value in ref.params.items()]
        for start in range(0, len(params), BATCH_PARAMS):
            client.log_batch(run.info.run_id, params=params[start : start + BATCH_PARAMS])
    if reopen and run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    return run


def _find_run(client: MlflowClient, experiment_id: str, run_id: str) -> Run | None:
    """The run with this id, or the one that was created in its stead (whoever asked for it first)."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "active":
            return run
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    successors = client.search_runs([experiment_id], f"tags.`{_OPENED_AS}` = '{run_id}'", max_results=1)
    return successors[0] if successors else None


def _experiment_id(client: MlflowClient, ref: RunRef) -> str:
    """The experiment's id; created with its files beside the database when that is SQLite."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy import make_url

    location = None
    if ref.uri.startswith("sqlite:"):
        location = (Path(str(make_url(ref.uri).database)).parent / "mlflow-artifacts").as_uri()
    if experiment := client.get_experiment_by_name(ref.experiment):
        return experiment.experiment_id
    try:
        return client.create_experiment(ref.experiment, artifact_location=location)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _experiment_id(client, ref)  # another run was quicker


def reason(error: BaseException) -> str:
    """One short line about an error, without the password that a URI in it may carry."""
    return re.sub(r"//[^/@\s]*@", "//***@", f"{type(error).__name__}: {error}".split("\n")[0])[:300]
