"""What could go wrong on a cluster, checked on every node before a GPU is reserved."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from pipeline.checks.capacity import describe_nodes, worker_resources
from pipeline.checks.finding import Finding
from pipeline.checks.nodes import (
    Answer,
    alive_nodes,
    node_resources,
    probe_nodes,
    storage_finding,
    versions_finding,
)
from pipeline.checks.settings import check_settings
from pipeline.checks.working_dir import travelling_files, working_dir_finding
from pipeline.config.models import RunConfig
from pipeline.data.read import with_row_groups
from pipeline.data.shards import read_manifest
from pipeline.errors import ConfigError, DataError
from pipeline.tracking import tracking_uri
from pipeline.tracking.store import database_path, redacted


def examine(config: RunConfig) -> list[Finding]:
    """All findings for a configuration with absolute paths, on the connected cluster."""
    tracking, uri = _tracking(config, len(alive_nodes()))
    findings = [_cluster(), *_resources(config), working_dir_finding(".", travelling_files(".")), tracking]
    answers, problems = probe_nodes(config, tracking=uri)
    for node, answer in answers:
        findings += _node_findings(node, answer, alone=len(answers) == 1)
    return findings + problems


def _cluster() -> Finding:
    """Which cluster is checked: without an address it may be one that was started for this command alone."""
    address = os.environ.get("RAY_ADDRESS")
    nodes = ", ".join(node["NodeManagerAddress"] for node in alive_nodes())
    return Finding("cluster", f"{address} ({nodes})" if address else "on this machine; RAY_ADDRESS is not set")


def _resources(config: RunConfig) -> Iterator[Finding]:
    """Images, and CPUs and GPUs for them."""
    nodes = node_resources()
    have = f"nodes: {describe_nodes(nodes)}"
    try:
        manifest = with_row_groups(config.data.path, read_manifest(config.data.path))
        plan = check_settings(config, manifest)
        mode, reason = plan.mode, plan.mode_reason
        counts = f"; {manifest.count_warning}" if manifest.count_warning else ""
        yield Finding("images", f"{manifest.num_images:,} at {config.data.path}, {mode} ({reason}){counts}")
    except (ConfigError, DataError) as error:
        mode = "resident"
        yield Finding("images", str(error), "" if config.data.source else "fix this before training")
    try:
        each = worker_resources(config, mode, nodes)
        gpus = " and a GPU" if each.gpus else ""
        yield Finding("resources", f"{have}; {each.cpus:g} CPUs{gpus} for each of {config.resources.workers} workers")
    except ConfigError as error:
        yield Finding("resources", have, str(error))


def _node_findings(node: str, answer: Answer, *, alone: bool) -> Iterator[Finding]:
    yield versions_finding(node, answer)
    yield storage_finding(node, answer)
    yield _shared_memory(node, answer)
    if not alone:
        yield _interface(node, answer)
    if answer["tracking"]:
        yield Finding(
            f"MLflow from {node}", answer["tracking"], "let the node reach the server, or change tracking.uri"
        )


def _shared_memory(node: str, answer: Answer) -> Finding:
    shm, store = answer["shm"] / 2**30, answer["object_store"] / 2**30
    slow = shm < store
    remedy = (
        "enlarge /dev/shm (--shm-size, or an emptyDir in memory): otherwise Ray uses the disk, which is slow"
        if slow
        else ""
    )
    return Finding(f"shared memory of {node}", f"/dev/shm {shm:.1f} GiB, object store {store:.1f} GiB", remedy)


def _interface(node: str, answer: Answer) -> Finding:
    """Whether gloo and NCCL will use an interface that leads to the other nodes."""
    what = f"network of {node}"
    for name, asked in answer["asked_interfaces"].items():
        if not any(card.startswith(asked.lstrip("=^")) for card in answer["interfaces"]):
            found = f"{name}={asked}, but the node's interfaces are {', '.join(answer['interfaces'])}"
            return Finding(what, found, f"set {name}={answer['own_interface']} before `ray start`")
    loops = answer["hostname_address"].startswith("127.")
    if loops and "GLOO_SOCKET_IFNAME" not in answer["asked_interfaces"]:
        address = answer["hostname_address"]
        found = f"the host name resolves to {address}, where gloo would listen and no other node could reach it"
        return Finding(what, found, f"set GLOO_SOCKET_IFNAME={answer['own_interface']} before `ray start`")
    return Finding(
        what, json.dumps(answer["asked_interfaces"]) if answer["asked_interfaces"] else "chosen by the host name"
    )


def _tracking(config: RunConfig, nodes: int) -> tuple[Finding, str]:
    """Where the records go, and the URI to try from every node; no URI where there is nothing to try."""
    if not config.tracking.enabled:
        return Finding("MLflow", "nothing is recorded (tracking.enabled is false)"), ""
    try:
        uri = tracking_uri(config.tracking.uri, config.storage)
    except ConfigError as error:
        return Finding("MLflow", "no store can be used", str(error)), ""
    if database_path(uri) is not None and nodes > 1:
        remedy = "start `mlflow server` and set tracking.uri=http://..., or put the file into a shared folder"
        return Finding("MLflow", f"{uri} is a file of one machine, but the cluster has {nodes} nodes", remedy), ""
    return Finding("MLflow", redacted(uri)), uri
