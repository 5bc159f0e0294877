"""Clusters that start empty and add nodes when they are asked for, by Ray's autoscaler and its provider of local nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.util import get_node_ip_address

from tests.helpers.runs import end, family, options, outcome, settings

pytestmark = pytest.mark.chaos

PORT = 6400
BIN = Path(sys.executable).parent
HEAD = "ray.head.default"
NODE = {"resources": {"CPU": 1, "object_store_memory": 200_000_000}, "node_config": {}, "min_workers": 0}
GROWING = ["resources.autoscale=true", "resources.gpus=false", "resources.cpus_per_worker=1"]


def launch_file(address: str, most: int) -> dict[str, object]:
    """A head without CPUs, and up to `most` nodes of one CPU, which go after 20 idle seconds."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "growing",
        "max_workers": most,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "auth": {},
        "head_node_type": HEAD,
        "idle_timeout_minutes": 0.3,
        "available_node_types": {HEAD: head, "small": {**NODE, "max_workers": most}},
    }


@pytest.fixture
def address() -> Iterator[str]:
    """The address of an empty cluster that may have three nodes."""
    folder = Path(tempfile.mkdtemp(prefix="g", dir="/tmp"))  # Ray's socket paths must be short
    address = f"{get_node_ip_address()}:{PORT}"
    (folder / "cluster.json").write_text(json.dumps(launch_file(address, most=3)))
    asked = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": "f" * 51 + "00000",  # by which the provider knows the head
    }
    command = ["ray", "start", "--head", "--block", f"--port={PORT}", "--num-cpus=0", "--disable-usage-stats"]
    command += [f"--autoscaling-config={folder / 'cluster.json'}", f"--temp-dir={folder}"]
    command += ["--object-store-memory=200000000"]
    environment = os.environ | asked | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    yield address
    end([*family(head.pid), psutil.Process(head.pid)])
    head.wait()


def start(address: str, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `digpro` on the cluster."""
    environment = os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


def test_an_empty_cluster_grows_for_training_and_assigning(address: str, tmp_path: Path) -> None:
    time.sleep(5)
    mine = settings(tmp_path, "name=grown", "resources.workers=2", *GROWING)
    log = tmp_path / "train.log"
    assert start(address, log, "train", "--preset", "digits", *options(mine)).wait(400) == 0, log.read_text()
    history, labels = outcome(tmp_path / "runs/grown")
    assert len(history) == 4
    assert len(labels) == 1797
    log = tmp_path / "assign.log"
    out = str(tmp_path / "assigned")
    assigning = start(address, log, "assign", str(tmp_path / "runs/grown"), str(tmp_path / "digits"), out, "--no-gpus")
    assert assigning.wait(300) == 0, log.read_text()
    assert json.loads(Path(out, "summary.json").read_text())["images"] == 1797
