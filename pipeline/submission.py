"""Run a command as a job on a Ray cluster: check it before it is sent, and follow it to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backbones.names import DEFAULT
from pipeline.checks.working_dir import EXCLUDES, travelling_files, working_dir_finding
from pipeline.cluster import DASHBOARD, answers, refusal, unset_empty_variables, variable
from pipeline.config.loading import load_config
from pipeline.data.class_lists import class_list_names, load_class_list
from pipeline.errors import ConfigError, RunFailed, first_line
from pipeline.interrupts import interruptible
from pipeline.ray_private import auth_token, cluster_versions
from pipeline.storage import refuse_secrets

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

VERBS = (
    *("doctor", "ingest", "embed", "train", "tune", "assign", "evaluate", "sweep-k"),
    *("label", "report", "export", "deliver", "sort", "compare", "combine"),
)
ADDRESS_VARIABLES = (DASHBOARD, "RAY_ADDRESS")
# For every job. Ray kills a job 3 s after it asks it to stop; a last checkpoint and its record take longer.
JOB_VARIABLES = {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
PYTHON = "3.11"  # the oldest that pyproject.toml allows
ANSWER_SECONDS = 10
EVERYWHERE = re.compile(r"(\w+:)*(/|\w+://)")  # an absolute path or a URI, perhaps after the kind of a source


class Location(str):
    """An argument that is a folder, a file or a URI."""

    def is_path(self) -> bool:
        """Whether the value is one, which every node must then be able to open."""
        return True


class ImageSource(Location):
    """A source of images: a path, except for `digits`, which comes with the package."""

    def is_path(self) -> bool:
        return self != "digits"


class ModelReference(Location):
    """A trained model: the path of its run, or its name in MLflow."""

    def is_path(self) -> bool:
        from pipeline.runs.models import model_uri

        return model_uri(self) is None


def submit(
    verb: str,
    arguments: list[str],
    parameters: Mapping[str, Any],
    *,
    address: str | None = None,
    folder: str = ".",
    env: Iterable[str] = (),
    follow: bool = True,
    echo: Callable[[str], None] = print,
) -> str:
    """Send the verb's script of `jobs/` to a cluster, and print its log until it ends; returns the job's id.

    Parameters
    ----------
    arguments : list of str
        As they stand on the command line.
    parameters : mapping
        The arguments parsed: all values by name, folders, files and URIs as `Location`.
    address : str, optional
        The cluster's dashboard, http://host:port; RAY_API_SERVER_ADDRESS or RAY_ADDRESS when absent.
    folder : str
        The working directory to send: the one that holds `jobs/` and `pipeline/`.
    env : iterable of str
        Environment variables of the job, NAME=VALUE or the NAME of one of this process. We neither print nor store
        them; Ray stores them with the job.
    follow : bool
        False returns as soon as the cluster has the job.

    Raises
    ------
    ConfigError
        For errors found before anything is sent.
    RunFailed
        When the job failed or was stopped, or the connection was lost while its log was followed.
    Interrupted
        When Ctrl-C or SIGTERM came while the log was followed; the job continues.
    """
    script = job_script(verb, folder)
    files = travelling_files(folder)
    if (size := working_dir_finding(folder, files)).remedy:
        raise ConfigError(str(size))
    check_parameters(parameters, folder, files)
    variables = JOB_VARIABLES | read_variables(env)
    client = connect_to(address)
    check_versions(client)
    entrypoint = shlex.join(["python", script, *arguments])
    job = _send(client, entrypoint, {"working_dir": folder, "excludes": EXCLUDES, "env_vars": variables})
    there = f" --address {address}" if address else ""
    stop_command = f"digpro stop {job}{there}"
    echo(f"job {job}: {entrypoint}\nstop it with: {stop_command}")
    if follow:
        with interruptible(f"job {job} continues on the cluster; stop it with: {stop_command}"):
            info = _follow(client, job, there, echo)
        if str(info.status) != "SUCCEEDED":
            raise RunFailed(f"job {job} is {info.status}: {(info.message or 'no message').strip().splitlines()[0]}")
    return job


def stop(job: str, *, address: str | None = None) -> None:
    """Stop a job; a training run that is stopped resumes when it is submitted again."""
    client = connect_to(address)
    try:
        client.stop_job(job)
    except RuntimeError as error:
        raise ConfigError(f"job {job!r} cannot be stopped ({first_line(error)}); see `ray job list`") from None


def job_script(verb: str, folder: str) -> str:
    """Path of the verb's script below the working directory; ConfigError when there is none."""
    if verb not in VERBS:
        raise ConfigError(f"{verb!r} is not a command that runs as a job; submit one of {', '.join(VERBS)}")
    script = f"jobs/{verb.replace('-', '_')}.py"
    if not Path(folder, script).is_file():
        raise ConfigError(f"{folder!r} does not contain {script}; set --working-dir to the project's folder")
    return script


def check_parameters(parameters: Mapping[str, Any], folder: str, files: Mapping[str, int]) -> None:
    """ConfigError for what could not work on the cluster: bad settings, and paths that exist on this machine only."""
    paths = _paths(parameters)
    if "space" in parameters:
        _check_travels(str(Path(parameters["space"]).with_suffix(".py")), folder, files)
    for names in parameters.get("names", []):  # cluster names, or a file of them
        if "=" not in names and not EVERYWHERE.match(names):
            _check_travels(names, folder, files)
    if "preset" in parameters and not parameters.get("start_from"):  # which has settings of its own
        preset = parameters["preset"]
        if own := preset.endswith((".yaml", ".yml")):
            _check_travels(preset, folder, files)
        config = load_config(str(Path(folder, preset)) if own else preset, parameters["settings"])
        if "data" not in parameters:  # otherwise the command line gives the places
            paths |= {"data.path": config.data.path, "storage": config.storage}
        if config.model.weights not in (None, DEFAULT):
            paths["model.weights"] = config.model.weights
    if isinstance(classes := parameters.get("classes"), str):  # in `assign` it is a flag
        _check_class_list(classes, folder, files)
    for name, path in paths.items():
        refuse_secrets(path)
        if not EVERYWHERE.match(path):
            raise ConfigError(
                f"{name}={path!r} is a relative path, which the cluster cannot resolve; give a URI such as "
                "s3://bucket/folder, or the absolute path of a folder that every node mounts"
            )


def _paths(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The paths and URIs among parsed arguments, by name; several of one parameter are numbered."""
    listed = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in parameters.items()}
    return {
        name if len(values) == 1 else f"{name} {number}": value
        for name, values in listed.items()
        for number, value in enumerate(values, start=1)
        if value and isinstance(value, Location) and value.is_path()
    }


def _check_class_list(given: str, folder: str, files: Mapping[str, int]) -> None:
    """Refuse a faulty list, and a file that would not travel; a list at an absolute path or URI is left to the job."""
    if EVERYWHERE.match(given):
        return
    load_class_list(given, folder)
    if given not in class_list_names():
        _check_travels(given, folder, files)


def _check_travels(file: str, folder: str, files: Mapping[str, int]) -> None:
    if str(Path(file)) not in files:
        raise ConfigError(
            f"{file!r} would not be sent with the job: it is outside {folder!r}, or .gitignore excludes it; "
            "move it into the folder, or change .gitignore"
        )


def read_variables(given: Iterable[str]) -> dict[str, str]:
    """Variables from NAME=VALUE, or from the NAME of one of this process; ConfigError, without values, for others."""
    variables = dict[str, str]()
    for item in given:
        name, equals, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ConfigError(
                f"--env {name!r} is not a variable name; give NAME=VALUE, or NAME to copy it from this environment"
            )
        if not equals and name not in os.environ:
            raise ConfigError(f"--env {name}: this environment has no such variable; export it, or give {name}=VALUE")
        variables[name] = value if equals else os.environ[name]
        if re.search(r"\$[\w{]", variables[name]):
            raise ConfigError(
                f"--env {name}: Ray would expand the variable after the $ in its value; choose a value without it, "
                "or set the variable where the nodes start Ray"
            )
    return variables


def connect_to(address: str | None) -> JobSubmissionClient:
    """A client of the dashboard at --address, or else of the environment's; ConfigError when none answers."""
    unset_empty_variables()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    modules = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk")  # which set their own levels
    for module in ("_private.runtime_env", "_private.authentication", *modules):
        logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)  # each upload and closed socket would log a line
    named = next((name for name in ADDRESS_VARIABLES if name in os.environ), None)
    where = address or (f"{named}={os.environ[named]}" if named else "this machine's default address")
    # Ray's client prefers the variables to its argument
    first: AbstractContextManager[None] = variable(DASHBOARD, address) if address else nullcontext()
    try:
        _check_answers(address or os.environ.get(named or "", ""), by_url=named != "RAY_ADDRESS" or bool(address))
        with first:
            return JobSubmissionClient(address)
    except AuthenticationError:
        sent = os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and bool(auth_token()[0])
        raise ConfigError(f"the Ray dashboard at {where} {refusal(sent=sent)}") from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray dashboard answers at {where} ({first_line(error)}); set --address to its URL, such "
            "as http://127.0.0.1:8265; for a remote cluster, open a tunnel first (`ray dashboard cluster.yaml`)"
        ) from None


def _check_answers(address: str, *, by_url: bool) -> None:
    """ConnectionError when no cluster answers in time: Ray's own client would wait for ever."""
    import requests

    if not address.startswith("http"):
        if address not in ("", "auto") and (by_url or not answers(address)):
            raise ConnectionError("not a URL that starts with http" if by_url else "no Ray cluster is there")
        return
    try:
        requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_SECONDS)
    except requests.Timeout:
        raise ConnectionError(f"no answer in {ANSWER_SECONDS} seconds") from None
    except requests.RequestException as error:
        raise ConnectionError(type(error).__name__) from None


def check_versions(client: JobSubmissionClient) -> None:
    """ConfigError when the cluster has another minor version of Ray, or a Python too old for this code.

    Nothing is pickled here for a job, so Python need not be the same.
    """
    from ray import __version__ as ours

    ray, python = cluster_versions(client)
    if _minor(ray) != _minor(ours) or _minor(python) < _minor(PYTHON):
        raise ConfigError(
            f"the cluster runs Ray {ray} on Python {python}, but this project needs Ray {ours} on Python {PYTHON} or "
            "newer; install the versions in constraints.txt on the cluster"
        )


def _minor(version: str) -> list[int]:
    return [int(part) for part in version.split(".")[:2]]


def _send(client: JobSubmissionClient, entrypoint: str, runtime_env: dict[str, Any]) -> str:
    try:
        return str(client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"the cluster did not accept the job ({first_line(error)}); try again") from None


def _follow(client: JobSubmissionClient, job: str, there: str, echo: Callable[[str], None]) -> JobDetails:
    """Print a job's log until it ends; RunFailed when the connection is lost before that."""
    from aiohttp import ClientError

    try:
        asyncio.run(_print_log(client, job, echo))
        return client.get_job_info(job)
    except (OSError, RuntimeError, ClientError) as error:
        raise RunFailed(
            f"the connection to the cluster was lost ({first_line(error)}), but job {job} continues there; follow it "
            f"with: ray job logs --follow{there} {job}"
        ) from None


async def _print_log(client: JobSubmissionClient, job: str, echo: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        echo(lines.rstrip("\n"))
