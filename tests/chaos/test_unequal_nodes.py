"""Clusters of unequal nodes: a head without GPUs, and nodes of other sizes whose GPUs are names only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from pipeline.cluster import QUIET, answers
from pipeline.config.loading import load_config
from pipeline.runs.assign import assign_images
from pipeline.runs.train import train
from tests.chaos.test_nodes import Driver, cluster_with_head
from tests.helpers.fake_gpu_nodes import patch_devices
from tests.helpers.runs import settings

pytestmark = pytest.mark.chaos

FROZEN = [
    "model.encoder=python:tests.helpers.backbones:with_input",
    "model.freeze=true",
    "views.size=null",
    "views.cached=2",
    "data.image_size=null",
    "optim.epochs=2",
    "resources.workers=2",
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head of 4 CPUs without a GPU; a test adds nodes."""
    patch_devices(monkeypatch)
    yield from cluster_with_head(monkeypatch, num_cpus=4)


def hosts(*classes: str) -> set[str]:
    """The nodes that actors of these classes are or were on."""
    return {actor.node_id for name in classes for actor in list_actors(filters=[("class_name", "=", name)], limit=1000)}


def test_gpu_workers_and_pools_leave_a_head_without_gpus_alone(cluster: Cluster, tmp_path: Path) -> None:
    """By the total, 12 CPUs, a worker would get 5, which no node has."""
    gpus = [cluster.add_node(num_cpus=3, num_gpus=1), cluster.add_node(num_cpus=5, num_gpus=1)]
    driver = Driver(tmp_path, "name=unequal", *FROZEN)
    summary = driver.result()
    assert hosts("RayTrainWorker") == {node.node_id for node in gpus}
    assigned = assign_images(summary["folder"], "digits", str(tmp_path / "assigned"), echo=driver.lines.append)
    assert assigned["images"] == 1797
    assert cluster.head_node.node_id not in hosts("RayTrainWorker", "MapWorker(MapAssigner)", "MapWorker(MapEmbedder)")


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster that starts with a head of 1 CPU, and adds nodes with a GPU on demand.

    Not `ray.cluster_utils.AutoscalingCluster`, which stops every Ray process of the machine.
    """
    patch_devices(monkeypatch)
    short = tempfile.mkdtemp(prefix="r")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    types = {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "provider": {"type": "fake_multinode", "module": "", "gcs_address": address},
        "auth": {},
        "available_node_types": types,
        "head_node_type": "ray.head.default",
    }
    Path(short, "growing.json").write_text(json.dumps(config))
    environment = {
        **QUIET,
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_TMPDIR": short,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1", "--num-gpus=0"]
    options = [f"--port={address.rpartition(':')[2]}", f"--autoscaling-config={short}/growing.json"]
    with open(f"{short}/log", "wb") as log:
        head = subprocess.Popen([*command, *options], start_new_session=True, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not answers(address):
        assert head.poll() is None, Path(short, "log").read_text()
        assert time.monotonic() < deadline, Path(short, "log").read_text()
        time.sleep(1)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.delenv("RAY_FAKE_CLUSTER")
    yield address
    ray.shutdown()
    os.kill(head.pid, signal.SIGTERM)
    head.wait(60)


def test_a_cluster_that_starts_without_gpus_grows_for_a_run(growing: str, tmp_path: Path) -> None:
    asked = ["resources.gpus=true", "resources.autoscale=true"]
    lines: list[str] = []
    summary: dict[str, Any] = train(
        load_config("digits", settings(tmp_path, "name=grown", *FROZEN, *asked)), echo=lines.append
    )
    assert summary["hardware"]["cluster_gpus"] == 2
    assert len(hosts("RayTrainWorker")) == 2
