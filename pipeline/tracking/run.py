"""The MLflow run of a training run: its reference, opening it in the driver, and finding it from anywhere."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from shlex import quote
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError
from pipeline.provenance import git_commit, hardware, versions
from pipeline.storage import HIDDEN, Folder, redacted
from pipeline.tracking.diagnosis import WAY_OUT, check_artifacts, check_store, is_unreachable, refusal, summary_of
from pipeline.tracking.store import ENVIRONMENT, client_for, database_path, local_path, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

RECORD = "mlflow.json"  # in a run's folder: its RunRef, without a password
BATCH_PARAMS, PARAM_LENGTH, TAG_LENGTH = 100, 6000, 8000  # MLflow's limits

ATTEMPT = "digpro.attempt"  # MLflow's tag: which start of the run is the latest
ENDED = "ended by the driver: "  # prefix of its value once no worker may reopen the run
PENDING = "pending-"  # prefix of the id of a run that MLflow has not created yet
CUT = " ... (cut; run.json has the whole)"  # ends a value that is longer than MLflow takes
_OPENED_AS = "digpro.opened_as"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRef:
    """All that a process needs to find the MLflow run, or to create it. Picklable.

    `attempt` is new for each start of the run by a driver. `remote` is the run's folder if it lies in remote storage,
    where copies of the spool go; it is empty if the folder is local.

    `run_id` is MLflow's, or ``pending-...`` when the store could not be reached yet; both are stable names of the
    run. `uri` may carry a password: show :attr:`public_uri`. `run_id` and `uri` are empty where records are off.
    """

    uri: str = field(repr=False)
    run_id: str
    experiment: str
    name: str
    tags: Mapping[str, str] = field(repr=False)
    params: Mapping[str, str] = field(repr=False)
    attempt: str = ""
    remote: str = field(default="", repr=False)

    @property
    def enabled(self) -> bool:
        """Whether there are records at all (tracking.enabled)."""
        return bool(self.uri)

    @property
    def public_uri(self) -> str:
        """The URI without user and password, for screens, files and logs."""
        return redacted(self.uri)

    @property
    def output(self) -> dict[str, str]:
        """Where the records are, as one of a summary's outputs; empty where there are none."""
        return {"mlflow": self.public_uri} if self.enabled else {}


def open_run(config: RunConfig, folder: Folder, *, name: str | None = None, tags: Mapping[str, str] = {}) -> RunRef:
    """Create the MLflow run of a training run, or continue the one that `folder` has; call it once, in the driver.

    The reference is kept in the folder as ``mlflow.json``, so that the next start, :func:`load_ref` and
    `deliver_run` find the same run.

    Parameters
    ----------
    config : RunConfig
        Logged as params with dotted keys, when the run is created. `tracking.uri` null means
        MLFLOW_TRACKING_URI, or else the SQLite file ``mlflow.db`` in `storage`.
    folder : Folder
        Of the training run; it exists. If MLflow no longer has its run, a new one replaces it, with a warning.
    name : str, optional
        Shown by MLflow; the folder's name by default. A folder that was copied to another name is a run of its own.
    tags : mapping
        More tags; ``mlflow.parentRunId`` makes the run the child of another.

    Returns
    -------
    RunRef
        With a ``pending-...`` id when the store is unreachable; the writer then creates the run later.

    Raises
    ------
    ConfigError
        The store answers but cannot be used, or `tracking.uri` is not a store.
    """
    name = name or folder.name
    record = folder.read(RECORD) or {}
    known_id = record.get("run_id") if record.get("name") == name else None
    ref = replace(_new_ref(config, known_id, name, tags), remote=_remote(folder))
    if ref.enabled:
        check_store(ref.uri)
        ref = _open_in_store(ref)
    save_ref(folder, ref)
    return ref


def save_ref(folder: Folder, ref: RunRef) -> None:
    """Keep the reference in a run's folder; the password stays out of the file."""
    folder.write(RECORD, asdict(ref) | {"uri": ref.public_uri, "remote": ""})


def load_ref(folder: Folder, uri: str | None = None) -> RunRef:
    """The reference that a run's folder has.

    Parameters
    ----------
    folder : Folder
    uri : str, optional
        Where the records go now, instead of the URI in the folder. A URI with a password has to be given again: here
        or as MLFLOW_TRACKING_URI.

    Raises
    ------
    ConfigError
        There is no reference, it is damaged, or its password is not known.
    """
    values = folder.read(RECORD)
    if values is None:
        raise ConfigError(f"{folder.path} has no {RECORD}; give the folder of a training run that was started")
    try:
        ref = replace(RunRef(**values), remote=_remote(folder))
    except TypeError as error:
        remedy = f"delete it to record the run again (known fields: {', '.join(RunRef.__dataclass_fields__)})"
        raise ConfigError(f"{folder.file(RECORD)} is damaged ({error}); {remedy}") from None
    if uri is not None:
        return replace(ref, uri=tracking_uri(uri, folder.path))
    return replace(ref, uri=_with_password(ref.uri)) if HIDDEN in ref.uri else ref


def store_fault(uri: str, experiment: str) -> str:
    """Why runs cannot record to a store, with the remedy; empty when they can.

    It makes the first call of a run, and a change that needs the same permission as a run. Problems with the login,
    the allowed hosts, the path prefix and the right to write show up there, but not at a server's `/health`.
    """
    try:
        client = client_for(uri)
        if found := client.get_experiment_by_name(experiment):
            client.set_experiment_tag(found.experiment_id, "digpro.checked", "by digpro doctor")
    except Exception as error:
        return summary_of(error) if is_unreachable(error) else str(refusal(error, uri))
    return ""


def tag_run(ref: RunRef, tags: Mapping[str, str]) -> None:
    """Set tags of a run, also of one that has ended; a failure is logged, not raised."""
    if not ref.enabled:
        return
    try:
        client = client_for(ref.uri)
        run_id = find_or_create_run(client, ref, reopen=False).info.run_id
        for key, value in tags.items():
            client.set_tag(run_id, key, value[:TAG_LENGTH])
    except Exception as error:
        _logger.warning("MLflow run %s could not be tagged: %s", ref.name, summary_of(error))


def config_params(config: BaseModel) -> dict[str, str]:
    """Dotted key -> value as an override would be written, ``{"optim.lr": "0.05"}``; passwords in URIs are hidden."""

    def leaves(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from leaves(f"{prefix}.{key}" if prefix else key, inner)
        else:
            yield prefix, _cut(redacted(value if isinstance(value, str) else json.dumps(value)), PARAM_LENGTH)

    return dict(leaves("", config.model_dump(mode="json")))


def _cut(text: str, length: int) -> str:
    """The text, cut and marked if it is too long."""
    return text if len(text) <= length else text[: length - len(CUT)] + CUT


def environment_tags() -> dict[str, str]:
    """Tags that say what the run was made with: versions, commit, and the driver's machine."""
    machine = {key: ", ".join(value) or "none" if key == "gpus" else value for key, value in hardware().items()}
    tags = {f"env.{name}": str(value) for name, value in (versions() | machine).items()}
    if (commit := git_commit()) is None:
        return tags
    return tags | {"env.commit": commit, "mlflow.source.git.commit": commit.removesuffix("-dirty")}


def find_or_create_run(client: MlflowClient, ref: RunRef, *, reopen: bool) -> Run:
    """MLflow's run of `ref`, created if there is none; `reopen` sets one that has ended RUNNING again."""
    from mlflow.entities import Param

    experiment_id = _experiment_id(client, ref)
    run = _find_run(client, experiment_id, ref.run_id)
    if run is None:
        if not ref.run_id.startswith(PENDING):
            _logger.warning("MLflow run %s no longer exists; a new run takes its place", ref.run_id)
        tags = {**ref.tags, _OPENED_AS: ref.run_id, ATTEMPT: ref.attempt}
        run = client.create_run(experiment_id, tags=tags, run_name=ref.name)
    if not run.data.params:
        params = [Param(key, value) for key, value in ref.params.items()]
        for start in range(0, len(params), BATCH_PARAMS):
            client.log_batch(run.info.run_id, params=params[start : start + BATCH_PARAMS])
    if reopen:
        _reopen(client, run, ref.attempt)
    return run


def _reopen(client: MlflowClient, run: Run, attempt: str) -> None:
    latest = run.data.tags.get(ATTEMPT, "")
    if latest == ENDED + attempt:  # with a slow store the driver can end the run before a worker opens it
        return
    if latest != attempt:
        client.set_tag(run.info.run_id, ATTEMPT, attempt)
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")


def _new_ref(config: RunConfig, known_id: str | None, name: str, tags: Mapping[str, str]) -> RunRef:
    if not config.tracking.enabled:
        return RunRef("", "", config.tracking.experiment, name, {}, {})
    return RunRef(
        uri=tracking_uri(config.tracking.uri, config.storage),
        run_id=known_id or f"{PENDING}{uuid.uuid4().hex}",
        experiment=config.tracking.experiment,
        name=name,
        tags={key: value[:TAG_LENGTH] for key, value in {**environment_tags(), **tags}.items()},
        params=config_params(config),
        attempt=uuid.uuid4().hex,
    )


def _remote(folder: Folder) -> str:
    return "" if folder.is_local else folder.path


def _open_in_store(ref: RunRef) -> RunRef:
    """The reference with its run's id, or unchanged if the store is unreachable; ConfigError for an unusable one."""
    try:
        client = client_for(ref.uri)
        run = find_or_create_run(client, ref, reopen=True)
        try:
            check_artifacts(run.info.artifact_uri)
        except ConfigError:
            client.set_terminated(run.info.run_id, "FAILED")
            raise
    except ConfigError:
        raise
    except Exception as error:
        if not is_unreachable(error):
            raise refusal(error, ref.uri) from error
        _logger.warning("MLflow is unreachable; the run is created once it answers: %s", summary_of(error))
        return ref
    return replace(ref, run_id=run.info.run_id)


def _with_password(hidden: str) -> str:
    """The full URI for one stored without its password, which only MLFLOW_TRACKING_URI can supply."""
    full = os.environ.get(ENVIRONMENT, "")
    if redacted(full) != hidden:
        raise ConfigError(
            f"the records go to {hidden}, whose password is not stored; set {ENVIRONMENT} to the complete URI"
        )
    return full


def _find_run(client: MlflowClient, experiment_id: str, run_id: str) -> Run | None:
    """The run with this id, or the one created in its place (by whoever asked for it first)."""
    from mlflow.exceptions import MlflowException

    try:
        if not run_id.startswith(PENDING):  # MLflow's login app refuses to say whether a run exists
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

    database = database_path(ref.uri)
    location = (database.parent / "mlflow-artifacts").as_uri() if database else None
    if experiment := client.get_experiment_by_name(ref.experiment):
        _check_experiment(experiment, ref, location)
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(ref.experiment, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return _experiment_id(client, ref)  # another run was quicker


def _check_experiment(experiment: Experiment, ref: RunRef, location: str | None) -> None:
    """ConfigError for an experiment that was deleted; a warning for one whose files are not beside their database."""
    if experiment.lifecycle_stage == "deleted":
        restore = f"MLFLOW_TRACKING_URI={quote(ref.public_uri)} mlflow experiments restore --experiment-id"
        raise ConfigError(
            f"the MLflow experiment {ref.experiment!r} at {ref.public_uri} was deleted; restore it "
            f"(`{restore} {experiment.experiment_id}`), choose another (--set tracking.experiment=...), {WAY_OUT}"
        )
    folder = local_path(experiment.artifact_location)
    if location and experiment.artifact_location != location and folder and not folder.exists():
        _logger.warning(
            "MLflow's experiment %r stores its files in %s, which does not exist, perhaps because this storage was "
            "moved. New files go there, too; choose another experiment (--set tracking.experiment=...) to store them "
            "here",
            ref.experiment,
            folder,
        )
