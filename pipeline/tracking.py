"""Tracking with MLflow: one MLflow run per training run, one writer, and training never waits for a server.

The driver calls :func:`open_run` and hands the :class:`RunRef` to the workers; rank 0 holds the :class:`RunWriter`.
Every point and file goes to a spool on disk first and leaves it when the server has confirmed it. Whatever a server
that is away leaves behind is sent by the next flush, the next writer on the same spool, or :func:`deliver`.

A point (key, step) arrives once. A resumed run replays steps, and a lost reply makes us send again, so before
anything is sent the run is asked for the last step of each key (one request). Only for a key whose pending steps do
not lie after that is the history read. The value that arrived first stays.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel

from pipeline.config import ConfigError, RunConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

# `mlflow` takes 1.5 s to import, so it is imported where it is used; these settings have to be there before.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "1")
# MLflow would retry for minutes; the spool retries better and in the meantime lets training go on.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

Status = Literal["FINISHED", "FAILED", "KILLED"]

BATCH_METRICS, BATCH_PARAMS, PARAM_LENGTH, TAG_LENGTH = 1000, 100, 6000, 8000  # MLflow's limits
SEND_SECONDS = 10.0  # between two sends while the server answers
LONGEST_PAUSE_SECONDS = 600.0  # between two tries while it does not; doubles from SEND_SECONDS

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_METRIC_NAME = re.compile(r"\w[\w\-. :]*(/\w[\w\-. :]*)*")  # what MLflow takes, less "." and ".." as path parts
_OPENED_AS = "digpro.opened_as"
_PACKAGES = ("ray", "torch", "torchvision", "mlflow", "pyarrow", "kornia")

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


def open_run(
    config: RunConfig, storage_dir: str, run_name: str, resume_run_id: str | None, tags: Mapping[str, str]
) -> RunRef:
    """Create the MLflow run of a training run, or continue `resume_run_id`; call it once, in the driver.

    Parameters
    ----------
    config : RunConfig
        Logged as params with dotted keys, when the run is created. `tracking.uri` null means the SQLite file
        ``mlflow.db`` in `storage_dir`.
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
        uri=_tracking_uri(config.tracking.uri, storage_dir),
        run_id=resume_run_id or f"pending-{uuid.uuid4().hex}",
        experiment=config.tracking.experiment,
        name=run_name,
        tags={key: value[:TAG_LENGTH] for key, value in {**environment(), **tags}.items()},
        params=flatten(config),
    )
    try:
        run = _attach(_client(ref.uri), ref, reopen=True)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a server, it is no reason not to train
        _logger.warning("MLflow cannot be reached, the run is created once it answers: %s", _reason(error))
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


class RunWriter:
    """Writes one run's metrics and files; use it as a context manager on rank 0.

    No method raises because of the server: one warning says that it went away, one line that it is back.
    Leaving the context finishes the run: FINISHED, or FAILED after an exception, KILLED after an interrupt.

    Parameters
    ----------
    ref : RunRef
        From :func:`open_run`.
    spool : Path
        Local JSONL file that belongs to this run alone; files wait in a folder beside it. What an earlier writer
        left there is sent first.
    system_metrics : bool, default False
        Also log this machine's CPU, memory, disk, network and GPU every 10 s, by MLflow's own monitor.
    """

    def __init__(self, ref: RunRef, spool: Path, *, system_metrics: bool = False) -> None:
        self._spool = _Spool(spool)
        self._spool.status = None  # an earlier end of this run: it goes on now
        self._sender = _Sender(ref, self._spool, reopen=True)
        self._system_metrics = system_metrics
        self._monitor: SystemMetricsMonitor | None = None
        self._away = self._finished = False
        self._pause = SEND_SECONDS
        self._next_send = 0.0
        self.flush()

    @property
    def ref(self) -> RunRef:
        """The run, with MLflow's id as soon as it is known."""
        return self._sender.ref

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
            Point(key, step, value, now) if math.isfinite(value) else Point(f"non_finite/{key}", step, 1.0, now)
            for key, value in values.items()
        ]
        for point in points:
            if len(point.key) > 250 or not _METRIC_NAME.fullmatch(point.key):
                raise ValueError(f"metric name {point.key!r}; use up to 250 letters, digits, spaces and _ - . : /")
        self._spool.add(points)
        if time.monotonic() >= self._next_send:
            self.flush()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Log a file, or a folder with all in it, as ``<folder>/<name>``; a copy is taken now."""
        self._spool.add_file(path, folder)
        self.flush()

    def flush(self) -> None:
        """Send what is pending; while the server is away only now and then, so that training does not wait."""
        if not self._away or time.monotonic() >= self._next_send:
            self._try_to_send()

    def finish(self, status: Status) -> None:
        """Send everything and end the run; what cannot be sent stays in the spool for :func:`deliver`."""
        if self._finished:
            return
        self._finished = True
        self._stop_monitor()
        self._spool.end(status)
        self._try_to_send()
        if self._spool.pending:
            _logger.warning("%d points and files wait for MLflow in %s", self._spool.pending, self._spool.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _try_to_send(self) -> None:
        try:
            self._sender.send()
        except Exception as error:  # noqa: BLE001 - any failure of server, network or database: training goes on
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS) if self._away else SEND_SECONDS
            if not self._away:
                _logger.warning("MLflow is away, points wait in %s: %s", self._spool.path, _reason(error))
                self._stop_monitor()  # its thread ends at the first failed request
            self._away = True
        else:
            if self._away:
                _logger.info("MLflow is back, everything pending was delivered")
            self._away, self._pause = False, SEND_SECONDS
            self._start_monitor()
        self._next_send = time.monotonic() + self._pause

    def _start_monitor(self) -> None:
        if not self._system_metrics or self._monitor or self._finished:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        try:
            self._monitor = SystemMetricsMonitor(self.ref.run_id, resume_logging=True, tracking_uri=self.ref.uri)
            self._monitor.start()
        except Exception as error:  # noqa: BLE001 - e.g. counters that a container hides
            self._system_metrics = False
            _logger.warning("system metrics are off: %s", _reason(error))

    def _stop_monitor(self) -> None:
        if self._monitor:
            self._monitor.finish()
        self._monitor = None


def deliver(spool: Path, ref: RunRef) -> int:
    """Send what an earlier process left in its spool, and the status it ended with.

    Returns
    -------
    int
        Points and files still waiting: 0 when all arrived. A failure of the server is logged, not raised.

    Raises
    ------
    FileNotFoundError
        No writer ever used this `spool`.
    """
    if not spool.exists():
        raise FileNotFoundError(f"no spool at {spool}; give the path that the run's writer was given")
    waiting = _Spool(spool)
    try:
        _Sender(ref, waiting, reopen=False).send()
    except Exception as error:  # noqa: BLE001 - the server is still away: nothing is lost, the caller sees it in the count
        _logger.warning("not all of %s was delivered: %s", spool, _reason(error))
    return waiting.pending


def log_final_model(writer: RunWriter, model: torch.nn.Module, example: np.ndarray) -> None:
    """Log `model` as the run's artifact ``model``; load it with ``mlflow.pytorch.load_model("runs:/<id>/model")``.

    It is stored as a `torch.export` program (pt2), which needs neither pickle nor our code to load, on the CPU and
    in evaluation mode. `model` itself is left as it is.

    Parameters
    ----------
    writer : RunWriter
    model : torch.nn.Module
        One tensor in, one tensor out.
    example : ndarray of shape (N, ...)
        N >= 2, since the export would turn a batch of one into a constant. Two rows are kept with the model.

    Raises
    ------
    ValueError
        `example` has fewer than two rows.
    """
    import copy

    import mlflow.pytorch
    import torch
    from mlflow.models import infer_signature

    if len(example) < 2:
        raise ValueError(f"example has shape {example.shape}; give at least 2 rows, so that the batch stays free")
    example = example[:2].copy()
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    output = model(torch.from_numpy(example)).numpy()
    with TemporaryDirectory() as folder:
        mlflow.pytorch.save_model(
            model,
            Path(folder, "model"),
            signature=infer_signature(example, output),
            input_example=example,
            serialization_format="pt2",
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("torch", "numpy")],
        )
        writer.artifact(Path(folder, "model"))


class Point(NamedTuple):
    """One metric value; `timestamp` in milliseconds since 1970, kept so that sending twice sends the same."""

    key: str
    step: int
    value: float
    timestamp: int


class _Spool:
    """What the server has not confirmed: points and the final status in a JSONL file, files in a folder beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: dict[tuple[str, int], Point] = {}
        self.status: tuple[str, int] | None = None
        self._folder = path.with_suffix(".files")
        self._folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()
        self.save()  # without damaged lines, and existing: `deliver` can tell an empty spool from a wrong path

    @property
    def pending(self) -> int:
        """Points and files that wait, and one for the status."""
        return len(self.points) + len(self.files()) + (self.status is not None)

    def add(self, points: list[Point]) -> None:
        """Append points; a (key, step) that already waits keeps its first value."""
        fresh = {point[:2]: point for point in points if point[:2] not in self.points}
        self.points |= fresh
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(point) + "\n" for point in fresh.values())

    def add_file(self, path: Path, folder: str) -> None:
        """Copy a file or folder; a file appears in the spool whole or not at all."""
        for source in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            target = self._folder / folder / source.relative_to(path.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            shutil.copyfile(source, part)
            part.replace(target)

    def files(self) -> list[tuple[Path, str]]:
        """The copies that wait, each with the artifact folder it goes to ("" is the run's root)."""
        found = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return [(path, path.parent.relative_to(self._folder).as_posix().removeprefix(".")) for path in found]

    def end(self, status: Status) -> None:
        """Note how the run ended, and when."""
        self.status = (status, int(time.time() * 1000))
        self.save()

    def save(self) -> None:
        """Write the file anew from what is still pending."""
        part = self.path.with_suffix(".part")
        rows: list[tuple[Any, ...]] = [*self.points.values(), *([self.status] if self.status else [])]
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        part.replace(self.path)

    def _read(self) -> None:
        for number, line in enumerate(self.path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            try:
                row = json.loads(line)
                if len(row) == 2:
                    self.status = (row[0], row[1])
                else:
                    self.points[row[0], row[1]] = Point(*row)
            except (ValueError, TypeError):  # the process died while it wrote this line
                _logger.warning("%s line %d is damaged and left out: %.100r", self.path, number, line)


class _Sender:
    """Moves a spool's content to the server. Raises what the server raises, and can be called again."""

    def __init__(self, ref: RunRef, spool: _Spool, *, reopen: bool) -> None:
        self.ref = ref
        self._spool, self._reopen = spool, reopen
        self._connection: MlflowClient | None = None
        self._last_step: dict[str, int] = {}
        self._steps: dict[str, set[int]] = {}

    def send(self) -> None:
        """Deliver points, then files, then the status, connecting first if necessary."""
        try:
            client = self._connection = self._connection or self._connect()
            self._send_points(client)
            for path, folder in self._spool.files():
                client.log_artifact(self.ref.run_id, str(path), folder or None)
                path.unlink()
            if self._spool.status:
                client.set_terminated(self.ref.run_id, *self._spool.status)
                self._spool.status = None
                self._spool.save()
        except Exception:
            self._connection = None  # a lost reply leaves it open what arrived: ask again before the next try
            raise

    def _connect(self) -> MlflowClient:
        client = _client(self.ref.uri)
        run = _attach(client, self.ref, reopen=self._reopen)
        self.ref = replace(self.ref, run_id=run.info.run_id)
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._steps = {}
        return client

    def _send_points(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        waiting = list(self._spool.points.values())
        try:
            for start in range(0, len(waiting), BATCH_METRICS):
                batch = waiting[start : start + BATCH_METRICS]
                fresh = [point for point in batch if not self._has_arrived(client, point)]
                if fresh:
                    client.log_batch(self.ref.run_id, [Metric(p.key, p.value, p.timestamp, p.step) for p in fresh])
                for point in batch:
                    self._confirm(point)
        finally:
            if waiting:
                self._spool.save()

    def _has_arrived(self, client: MlflowClient, point: Point) -> bool:
        last = self._last_step.get(point.key)
        if last is None or point.step > last:
            return False
        if point.key not in self._steps:
            history = client.get_metric_history(self.ref.run_id, point.key)
            self._steps[point.key] = {metric.step for metric in history}
        return point.step in self._steps[point.key]

    def _confirm(self, point: Point) -> None:
        del self._spool.points[point.key, point.step]
        self._last_step[point.key] = max(point.step, self._last_step.get(point.key, point.step))
        if point.key in self._steps:
            self._steps[point.key].add(point.step)


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _tracking_uri(uri: str | None, storage_dir: str) -> str:
    """The URI with SQLite paths made absolute, because workers have another working directory."""
    from sqlalchemy import make_url

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


def _attach(client: MlflowClient, ref: RunRef, *, reopen: bool) -> Run:
    """The run of `ref`, created if there is none; `reopen` sets an ended one RUNNING again."""
    from mlflow.entities import Param

    experiment_id = _experiment_id(client, ref)
    run = _find(client, experiment_id, ref.run_id)
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


def _find(client: MlflowClient, experiment_id: str, run_id: str) -> Run | None:
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


def _reason(error: BaseException) -> str:
    """One short line about an error, without the password that a URI in it may carry."""
    return re.sub(r"//[^/@\s]*@", "//***@", f"{type(error).__name__}: {error}".split("\n")[0])[:300]
