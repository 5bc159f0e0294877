"""Asking every node of a cluster whether a run could live there."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.checks.finding import Finding
from pipeline.config.models import RunConfig
from pipeline.errors import ConfigError, DataError, first_line
from pipeline.provenance import versions
from pipeline.storage import filesystem, join
from pipeline.tracking import store_fault

SAME_EVERYWHERE = ("python", "ray", "torch", "torchvision", "pyarrow", "mlflow")
NODE_SECONDS = 120  # a node that has not answered by then will not answer a training run either
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
Answer = dict[str, Any]


def check_nodes(config: RunConfig) -> None:
    """The checks of every training run on a cluster of several nodes: the same versions, and one storage.

    Raises
    ------
    ConfigError
        Naming the nodes and what to do.
    """
    if len(alive_nodes()) < 2:
        return
    answers, findings = probe_nodes(config)
    for node, answer in answers:
        findings += [versions_finding(node, answer), storage_finding(node, answer)]
    if bad := [str(finding) for finding in findings if finding.remedy]:
        raise ConfigError("the cluster is not ready: " + "\n".join(bad))


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of the nodes that are up."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_resources() -> list[dict[str, float]]:
    """What each node has in all."""
    return [node["Resources"] for node in alive_nodes()]


def probe_nodes(config: RunConfig, tracking: str = "") -> tuple[list[tuple[str, Answer]], list[Finding]]:
    """Every node's address and answer, and a finding for each that gave none; `tracking` is a server to reach as well.

    Every node reads a file that the driver wrote, and writes one that the driver reads, so separate folders of the same
    name on each machine are not mistaken for a shared one.
    """
    probes = join(config.storage, f".probe-{uuid.uuid4().hex}")
    files, root = filesystem(probes)
    files.create_dir(root, recursive=True)
    _write_probe(probes, "driver")
    nodes = alive_nodes()
    task = ray.remote(num_cpus=0, max_retries=0)(probe_node)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = [
        task.options(scheduling_strategy=place).remote(probes, place.node_id, tracking, config.tracking.experiment)
        for place in places
    ]
    ray.wait(asked, num_returns=len(asked), timeout=NODE_SECONDS)
    answers, findings = [], []
    for reference, node in zip(asked, nodes, strict=True):
        address = node["NodeManagerAddress"]
        try:
            answer = ray.get(reference, timeout=0)
            answer["seen"] = _read_probe(probes, node["NodeID"])
            answer["object_store"] = node["Resources"].get("object_store_memory", 0)
            answers.append((address, answer))
        except ray.exceptions.RayError as error:
            remedy = "read raylet.out in the node's Ray logs, or remove the node from the cluster"
            findings.append(Finding(f"node {address}", f"no answer ({type(error).__name__})", remedy))
    files.delete_dir(root)
    return answers, findings


def probe_node(probes: str, node: str, tracking: str, experiment: str) -> Answer:
    """A node's answer about itself; runs there."""
    return {
        "versions": shared_versions(),
        "read": _read_probe(probes, "driver"),
        "wrote": _write_probe(probes, node),
        "shm": shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0,
        "interfaces": [name for _, name in socket.if_nameindex()],
        "asked_interfaces": {name: os.environ[name] for name in INTERFACES if name in os.environ},
        "hostname_address": _address_of_hostname(),
        "own_interface": _interface_of(ray.util.get_node_ip_address()),
        "tracking": store_fault(tracking, experiment) if tracking.startswith("http") else "",
    }


def shared_versions() -> dict[str, str]:
    """Versions that must be the same everywhere."""
    found = versions()
    return {name: found[name] for name in SAME_EVERYWHERE}


def _read_probe(probes: str, name: str) -> str:
    """Why the file cannot be read; nothing when it can."""
    try:
        files, root = filesystem(probes)
        with files.open_input_file(f"{root}/{name}") as stream:
            return "" if stream.read() == name.encode() else "it has different content"
    except (OSError, DataError) as error:
        return first_line(error)


def _write_probe(probes: str, name: str) -> str:
    """Why the file cannot be written; nothing when it was."""
    try:
        files, root = filesystem(probes)
        with files.open_output_stream(f"{root}/{name}") as stream:
            stream.write(name.encode())
        return ""
    except (OSError, DataError) as error:
        return first_line(error)


def _address_of_hostname() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        return str(error)


def _interface_of(address: str) -> str:
    """Name of the interface that has an address."""
    cards = psutil.net_if_addrs().items()
    return next((name for name, entries in cards if any(entry.address == address for entry in entries)), "")


def versions_finding(node: str, answer: Answer) -> Finding:
    """Whether a node has the driver's versions."""
    mine = shared_versions()
    others = {name: found for name, found in answer["versions"].items() if found != mine[name]}
    if not others:
        return Finding(f"versions on {node}", f"Ray {mine['ray']}, Python {mine['python']}, torch {mine['torch']}")
    found = ", ".join(f"{name} {there}, but {mine[name]} on the driver" for name, there in others.items())
    return Finding(f"versions on {node}", found, "install the same versions on every node (constraints.txt has them)")


def storage_finding(node: str, answer: Answer) -> Finding:
    """Whether a node and the driver see the same storage."""
    steps = {
        "cannot read": answer["read"],
        "cannot write": answer["wrote"],
        "writes to a place that the driver does not see": answer["seen"],
    }
    if bad := {step: why for step, why in steps.items() if why}:
        found = ", ".join(f"{step} ({why})" for step, why in bad.items())
        return Finding(f"storage from {node}", found, "set storage to a URI, or to a folder that every node mounts")
    return Finding(f"storage from {node}", "read and written")
