"""A command of ours as a job of a Ray cluster: checked before it is sent, followed to its end."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backbones.names import DEFAULT
from pipeline.checks.working_dir import EXCLUDES, travelling_files, working_dir_finding
from pipeline.cluster import unset_empty_variables
from pipeline.config.loading import load_config
from pipeline.data.class_lists import class_list_names, load_class_list
from pipeline.errors import ConfigError, RunFailed, first_line
from pipeline.interrupts import interruptible

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

VERBS = ("ingest", "embed", "train", "tune", "assign", "evaluate", "sweep-k")
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ANSWER_SECONDS = 10
EVERYWHERE = re.compile(r"(\w+:)*(/|\w+://)")  # an absolute path or a URI, perhaps behind the kind of a source


def submit(
    verb: str,
    arguments: list[str],
    parameters: Mapping[str, Any],
    places: Mapping[str, str],
    *,
    address: str | None = None,
    folder: str = ".",
    follow: bool = True,
    echo: Callable[[str], None] = print,
) -> str:
    """Send the verb's script of `jobs/` to a cluster, and print its log until it ends; returns the job's id.

    Parameters
    ----------
    arguments : list of str
        As they stand on the command line.
    parameters, places : mapping
        What the command line makes of them: all values by name, and those that are folders, files or URIs.
    address : str, optional
        Of the cluster's dashboard, http://host:port; RAY_API_SERVER_ADDRESS or RAY_ADDRESS when absent.
    folder : str
        The working directory that travels: the one that holds `jobs/` and `pipeline/`.
    follow : bool
        False returns as soon as the cluster has the job.

    Raises
    ------
    ConfigError
        For what can be known beforehand; nothing is sent then.
    RunFailed
        When the job failed or was stopped.
    Interrupted
        When Ctrl-C or SIGTERM came while the log was followed; the job continues.
    """
    script = job_script(verb, folder)
    files = travelling_files(folder)
    if (size := working_dir_finding(folder, files)).remedy:
        raise ConfigError(str(size))
    check_parameters(parameters, places, folder, files)
    client = connect_to(address)
    entrypoint = shlex.join(["python", script, *arguments])
    job = client.submit_job(
        entrypoint=entrypoint,
        runtime_env={"working_dir": folder, "excludes": EXCLUDES, "env_vars": {"PYTHONUNBUFFERED": "1"}},
    )
    stop_command = f"digpro stop {job}{f' --address {address}' if address else ''}"
    echo(f"job {job}: {entrypoint}\nstop it with: {stop_command}")
    if follow:
        with interruptible(f"job {job} continues on the cluster; stop it with: {stop_command}"):
            asyncio.run(_follow(client, job, echo))
        _conclude(client, job)
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
        raise ConfigError(f"{folder!r} holds no {script}; give the project's own folder with --working-dir")
    return script


def check_parameters(
    parameters: Mapping[str, Any], places: Mapping[str, str], folder: str, files: Mapping[str, int]
) -> None:
    """ConfigError for what could not work on the cluster: bad settings, and paths that exist on this machine only."""
    if "space" in parameters:
        _check_travels(str(Path(parameters["space"]).with_suffix(".py")), folder, files)
    if "preset" in parameters:
        preset = parameters["preset"]
        if own := preset.endswith((".yaml", ".yml")):
            _check_travels(preset, folder, files)
        config = load_config(str(Path(folder, preset)) if own else preset, parameters["settings"])
        if "data" not in parameters:  # otherwise the command line gives the places
            places = {**places, "data.path": config.data.path, "storage": config.storage}
        if config.model.weights not in (None, DEFAULT):
            places = {**places, "model.weights": config.model.weights}
    if (classes := parameters.get("classes")) is not None:
        _check_class_list(classes, folder, files)
    for name, place in places.items():
        if not EVERYWHERE.match(place):
            raise ConfigError(
                f"{name}={place!r} is relative to a folder of this machine; on the cluster give a URI such as "
                "s3://bucket/folder, or the absolute path of a folder that every node mounts"
            )


def _check_class_list(given: str, folder: str, files: Mapping[str, int]) -> None:
    """A list with a fault is refused here, and so is a file that the job would not have; others the job reads."""
    if EVERYWHERE.match(given):
        return
    load_class_list(given, folder)
    if given not in class_list_names():
        _check_travels(given, folder, files)


def _check_travels(file: str, folder: str, files: Mapping[str, int]) -> None:
    if str(Path(file)) not in files:
        raise ConfigError(
            f"{file!r} would not travel with the job: it is outside {folder!r}, or .gitignore lists it; "
            "put it into the folder"
        )


def connect_to(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's dashboard; ConfigError when none answers."""
    unset_empty_variables()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("ray._private.runtime_env", "ray.dashboard.modules"):
        logging.getLogger(module).setLevel(logging.ERROR)  # each upload and each closed socket would be a line
    named = next((name for name in ADDRESS_VARIABLES if name in os.environ), None)
    where = address or (f"{named}={os.environ[named]}" if named else "this machine's default address")
    try:
        _check_answers(address or os.environ.get(named or "", ""))
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray dashboard answers at {where} ({first_line(error)}); give its --address, for a remote cluster the "
            "end of a tunnel (`ray dashboard cluster.yaml`), and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as the "
            "cluster has them"
        ) from None


def _check_answers(address: str) -> None:
    """ConnectionError when a dashboard gives no answer in time: Ray's own client would wait for ever."""
    import requests

    if not address.startswith("http"):
        return
    try:
        requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_SECONDS)
    except requests.Timeout:
        raise ConnectionError(f"no answer in {ANSWER_SECONDS} seconds") from None
    except requests.RequestException as error:
        raise ConnectionError(type(error).__name__) from None


async def _follow(client: JobSubmissionClient, job: str, echo: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        echo(lines.rstrip("\n"))


def _conclude(client: JobSubmissionClient, job: str) -> None:
    info = client.get_job_info(job)
    if str(info.status) != "SUCCEEDED":
        raise RunFailed(f"job {job} is {info.status}: {(info.message or 'no message').strip().splitlines()[0]}")
