"""Connect to Ray: to the cluster that RAY_ADDRESS names, or to one on this machine; and keep it quiet."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pipeline.checks.machine import machine_findings, ray_temporary_folder
from pipeline.errors import ConfigError, Interrupted
from pipeline.interrupts import RUN_AGAIN, signal_handlers_kept, was_interrupted
from pipeline.provenance import versions
from pipeline.ray_private import (
    address_file,
    auth_token,
    loopback_only,
    ray_answers,
    read_token_again,
    send_token_if_there_is_one,
    shorten_errors,
)

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Read by Ray when it is imported or started; a user's own settings win.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Ray Train checks its workers every 2 s, and a report waits for the check: too slow for epochs of a second.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ctrl-C ends a search as it ends any other command (pipeline/interrupts.py).
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
# Ray treats an empty variable as set: RAY_TMPDIR= would put its files into the working folder.
VARIABLES = (
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR", "TMPDIR"),
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    *("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", *QUIET),
)
ANSWER_SECONDS = 8
DASHBOARD = "RAY_API_SERVER_ADDRESS"  # the dashboard's URL, for Ray's processes
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")  # a cluster's token, or the file that holds it


def connect() -> None:
    """Connect this process to Ray, once; progress comes over the board, so workers' own output stays in Ray's logs.

    Without RAY_ADDRESS it joins the cluster that `ray start` started on this machine, if that still answers. Otherwise
    it starts one that listens on the loopback interface only: anyone who can reach Ray's ports can run code.

    Raises
    ------
    ConfigError
        When RAY_ADDRESS names a dashboard, no cluster answers there, or this machine cannot run Ray.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    address = cluster_address()
    if bad := [str(finding) for finding in machine_findings(starts_cluster=address is None) if finding.remedy]:
        raise ConfigError("Ray cannot be used on this machine: " + "\n".join(bad))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    own: AbstractContextManager[dict[str, Any]] = contextlib.nullcontext({}) if address else own_cluster()
    began = time.monotonic()
    try:
        with signal_handlers_kept(), own as options:
            if address and _is_searched_for():
                send_token_if_there_is_one()
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        shorten_errors(was_interrupted)
    except SystemExit as end:  # raised by Ray for a SIGTERM while it starts
        raise Interrupted(int(end.code or 15), RUN_AGAIN) from None
    except Exception as error:  # Ray raises a plain Exception when its processes do not start in time
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(_connection_fault(address, reason, time.monotonic() - began)) from error


def _connection_fault(address: str | None, reason: str, seconds: float) -> str:
    """What went wrong and what to do, in one line."""
    if not address:
        remedy = "if other programs keep it busy, run the command again later; otherwise run `digpro doctor`"
        return f"Ray did not start on this machine within {seconds:.0f} s ({reason}); {remedy}"
    if "Version mismatch" in reason:
        remedy = "install the same versions on both sides (constraints.txt has them)"
        return f"the Ray cluster at {address} has different versions ({reason}); {remedy}"
    return f"cannot connect to the Ray cluster at {address} ({reason}); correct or unset RAY_ADDRESS"


@contextlib.contextmanager
def own_cluster() -> Iterator[dict[str, Any]]:
    """Inside, `ray.init` with these options starts a cluster that is closed to others and knows its own dashboard.

    A helper of Ray Train asks the dashboard whether a run is still alive, and frees its workers' resources when it is
    not. Without the variable the helper looks for any cluster on the machine and fails if it finds several: the CPUs of
    a stopped trial would stay reserved for ever. Ray's processes inherit the variable; ours need not keep it.

    The cluster gets a new token, which is only in the environment of its processes. Ray would store one in
    ~/.ray/auth_token, readable by everybody; a later `ray start` would use it and refuse all nodes without the file.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if not any(os.environ.get(name) for name in TOKENS):
        os.environ[TOKENS[0]] = secrets.token_hex(32)
        read_token_again()
    with variable(DASHBOARD, f"http://127.0.0.1:{port}"), loopback_only():
        yield {"dashboard_port": port}


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Inside, an environment variable has a value."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def cluster_address() -> str | None:
    """Address of a cluster that answers; None to start one on this machine.

    Raises
    ------
    ConfigError
        When RAY_ADDRESS is not an address of a cluster, or nothing answers there.
    """
    unset_empty_variables()
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if named == "local":
        return None
    if _is_searched_for():
        recorded = _recorded_address()
        if recorded and answers(recorded):
            return recorded
        if not named:
            return None
        found = f"{recorded}, which `ray start` recorded, does not answer" if recorded else "none was started here"
        raise ConfigError(
            f"RAY_ADDRESS=auto finds no Ray cluster on this machine: {found}; start one, or unset RAY_ADDRESS"
        )
    if named.startswith("http"):
        remedy = (
            "run the command there with `digpro submit`, or unset RAY_ADDRESS to run it on this machine "
            "(RAY_API_SERVER_ADDRESS sets the dashboard for `digpro submit` only)"
        )
        raise ConfigError(f"RAY_ADDRESS={named} is a dashboard, which only accepts submitted jobs; {remedy}")
    if not answers(named):
        raise ConfigError(f"no Ray cluster answers at RAY_ADDRESS={named}; correct it, or unset it to use this machine")
    return named


def unset_empty_variables() -> None:
    """Remove Ray's empty environment variables, so that they count as unset."""
    for name in VARIABLES:
        if not os.environ.get(name, "unset").strip():
            del os.environ[name]


def _is_searched_for() -> bool:
    """Whether to look for a cluster that was started on this machine, because RAY_ADDRESS names none."""
    return os.environ.get("RAY_ADDRESS", "").strip() in ("", "auto")


def _recorded_address() -> str | None:
    """The address that this user's `ray start` recorded: in another user's cluster, code would run as that user."""
    file = address_file(ray_temporary_folder())
    with contextlib.suppress(OSError):
        if not hasattr(os, "getuid") or file.stat().st_uid == os.getuid():
            return file.read_text().strip() or None
    return None


def answers(address: str) -> bool:
    """Whether a Ray cluster answers at `host:port` or `ray://host:port`, within `ANSWER_SECONDS`.

    Ray itself retries for minutes, and for ever at a port that accepts connections but never replies.

    Raises
    ------
    ConfigError
        When the address has another form, or the cluster wants another token.
    """
    parts = re.fullmatch(r"(ray://)?(\[[\da-fA-F:]+\]|[^\s/:]+)(?::(\d+))?", address)
    if parts is None or not (parts[1] or parts[3]) or int(parts[3] or 0) > 65535:
        raise ConfigError(f"RAY_ADDRESS={address} is not an address; give host:port, such as 10.0.0.1:6379")
    mode = os.environ.get("RAY_AUTH_MODE", "token" if _is_searched_for() else "disabled").lower()
    token = "" if mode == "disabled" else auth_token()[0]
    target = f"{parts[2]}:{parts[3] or 10001}"
    try:
        return ray_answers(target, client_server=bool(parts[1]), seconds=ANSWER_SECONDS, token=token)
    except PermissionError:
        raise ConfigError(f"the Ray cluster at {address} {refusal(sent=bool(token))}") from None


def refusal(*, sent: bool) -> str:
    """The message for a cluster that refused the token or requires one, with the remedy."""
    if not sent:
        return f"requires its token; set RAY_AUTH_MODE=token, and give the token in {' or '.join(TOKENS)}"
    return f"rejects the token of {auth_token()[1]}; give the cluster's token in {' or '.join(TOKENS)}"


def on_driver_node() -> NodeAffinitySchedulingStrategy:
    """Places an actor on the driver's node, which lives as long as the run does; any other node may be lost."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def cluster_facts() -> dict[str, Any]:
    """Hardware of the connected cluster and versions in use, for summaries."""
    import ray

    resources = ray.cluster_resources()
    return {
        "hardware": {
            "machine_cpus": os.cpu_count(),
            "cluster_cpus": resources.get("CPU", 0),
            "cluster_gpus": resources.get("GPU", 0),
            "cluster_nodes": len(ray.nodes()),
        },
        "versions": versions(),
    }
