"""A command of ours as a job of a Ray cluster: checked before it is sent, followed to its end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.loading import load_config
from pipeline.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

VERBS = ("ingest", "train", "tune", "evaluate")
EXCLUDES = [".git", ".venv", "/runs", "/data", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"]
LIMIT_MIB = 512  # Ray's own, on the zipped folder


def submit(
    verb: str,
    arguments: list[str],
    *,
    address: str | None = None,
    folder: str = ".",
    follow: bool = True,
    say: Callable[[str], None] = print,
) -> str:
    """Send `jobs/<verb>.py` with its arguments to a cluster, and print its log until it ends; returns the job's id.

    Parameters
    ----------
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
    """
    script = job_script(verb, folder)
    files = travelling_files(folder)
    check_size(folder, files)
    check_arguments(verb, arguments, folder, files)
    client = connect_to(address)
    entrypoint = shlex.join(["python", script, *arguments])
    job = client.submit_job(
        entrypoint=entrypoint,
        runtime_env={"working_dir": folder, "excludes": EXCLUDES, "env_vars": {"PYTHONUNBUFFERED": "1"}},
    )
    say(f"job {job}: {entrypoint}\nstop it with: digpro stop {job}{f' --address {address}' if address else ''}")
    if follow:
        asyncio.run(_follow(client, job, say))
        _conclude(client, job)
    return job


def stop(job: str, *, address: str | None = None) -> None:
    """Stop a job; a training run that is stopped goes on when it is submitted again."""
    client = connect_to(address)
    try:
        client.stop_job(job)
    except RuntimeError as error:
        raise ConfigError(f"job {job!r} cannot be stopped ({_first_line(error)}); see `ray job list`") from None


def job_script(verb: str, folder: str) -> str:
    """Path of the verb's script below the working directory."""
    if verb not in VERBS:
        raise ConfigError(f"there is no job {verb!r}; submit one of {', '.join(VERBS)}")
    script = f"jobs/{verb}.py"
    if not Path(folder, script).is_file():
        raise ConfigError(f"{folder!r} holds no {script}; give the project's own folder with --working-dir")
    return script


def travelling_files(folder: str) -> dict[str, int]:
    """The files, with their bytes, that Ray will send: without our excludes and without what .gitignore lists."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    root, found = Path(folder).resolve(), dict[str, int]()

    def note(path: Path) -> None:
        if path.is_file():
            found[str(path.relative_to(root))] = path.stat().st_size

    quiet = logging.getLogger(__name__)
    _dir_travel(root, [_get_excludes(root, EXCLUDES)], note, include_gitignore=True, logger=quiet)
    return found


def check_size(folder: str, files: dict[str, int]) -> None:
    """ConfigError when the working directory is more than Ray sends, naming its largest files."""
    total = sum(files.values()) / 2**20
    if total > LIMIT_MIB:
        largest = sorted(files, key=lambda name: files[name], reverse=True)[:3]
        named = ", ".join(f"{name} ({files[name] / 2**20:,.0f} MiB)" for name in largest)
        raise ConfigError(
            f"the working directory {folder!r} has {total:,.0f} MiB, and Ray sends {LIMIT_MIB} at most; its largest "
            f"files are {named}: move them away, or list them in .gitignore or .rayignore"
        )


def check_arguments(verb: str, arguments: list[str], folder: str, files: dict[str, int]) -> None:
    """ConfigError for what could not work on the cluster: bad settings, and paths that exist on this machine only."""
    if verb in ("train", "tune"):
        given = _options(verb, arguments)
        own = given.preset.endswith((".yaml", ".yml"))
        space = [str(Path(given.space).with_suffix(".py"))] if verb == "tune" else []
        for file in [*space, given.preset] if own else space:
            _check_travels(file, folder, files)
        config = load_config(str(Path(folder, given.preset)) if own else given.preset, given.set)
        places = {"data.path": config.data.path, "storage": config.storage}
    else:
        places = {argument: argument for argument in arguments if not argument.startswith("-") and argument != "digits"}
    for name, place in places.items():
        if not re.match(r"(\w+:)*(/|\w+://)", place):
            raise ConfigError(
                f"{name}={place!r} is relative to a folder of this machine; on the cluster give a URI such as "
                "s3://bucket/folder, or the absolute path of a folder that every node mounts"
            )


def _check_travels(file: str, folder: str, files: dict[str, int]) -> None:
    if str(Path(file)) not in files:
        raise ConfigError(
            f"{file!r} would not travel with the job: it is outside {folder!r}, or .gitignore lists it; "
            "put it into the folder"
        )


def _options(verb: str, arguments: list[str]) -> argparse.Namespace:
    """What `digpro train` or `digpro tune` would read off its command line."""
    parser = argparse.ArgumentParser(prog=f"digpro submit {verb}", exit_on_error=False)
    parser.add_argument("--preset", "-p", default="digits")
    parser.add_argument("--set", "-s", action="append", default=[])
    if verb == "tune":
        parser.add_argument("--space")  # not `required`: argparse would end the process when it is missing
        for option in ("--trials", "--scheduler", "--concurrent"):
            parser.add_argument(option)
    try:
        known, unknown = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; see `digpro {verb} --help`") from None
    if unknown:
        raise ConfigError(f"`digpro {verb}` does not know {' '.join(unknown)}; see its --help")
    if verb == "tune" and known.space is None:
        raise ConfigError("`digpro tune` needs a search space; give --space tune_spaces/digpro.py")
    return known


def connect_to(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's dashboard."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for module in ("ray._private.runtime_env", "ray.dashboard.modules"):
        logging.getLogger(module).setLevel(logging.ERROR)  # each upload and each closed socket would be a line
    try:
        return JobSubmissionClient(address)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray dashboard answers at {address or 'the default address'} ({_first_line(error)}); give its "
            "--address, for a remote cluster the end of a tunnel (`ray dashboard cluster.yaml`), and set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as the cluster has them"
        ) from None


async def _follow(client: JobSubmissionClient, job: str, say: Callable[[str], None]) -> None:
    try:
        async for lines in client.tail_job_logs(job):
            say(lines.rstrip("\n"))
    except (asyncio.CancelledError, KeyboardInterrupt):
        say(f"no longer following; job {job} goes on")
        raise


def _conclude(client: JobSubmissionClient, job: str) -> None:
    info = client.get_job_info(job)
    if str(info.status) != "SUCCEEDED":
        message = (info.message or "").strip().splitlines()
        raise RunFailed(f"job {job} is {info.status}: {message[0] if message else 'no message'}")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
