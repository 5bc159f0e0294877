"""Clusters that start empty and grow: Ray's autoscaler, with its provider of nodes on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.util import get_node_ip_address

from pipeline.cluster import answers
from pipeline.data.ingest import ingest
from tests.helpers.fake_gpu_nodes import hosts
from tests.helpers.runs import end, family, options, outcome, outcome_in_process, settings, start_command

pytestmark = pytest.mark.chaos

PORT = 6400
BIN = Path(sys.executable).parent
HEAD = "ray.head.default"
NO_SSH = {"disable_node_updaters": True, "disable_launch_config_check": True}
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
START = ("head_start_ray_commands", "worker_start_ray_commands")
FILES = ("cluster_synced_files", "rsync_exclude", "rsync_filter")
UNUSED: dict[str, object] = {key: {} for key in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")}
UNUSED |= {key: [] for key in (*COMMANDS, *START, *FILES)}  # the autoscaler wants all of them
ON_NODE = {"CPU": 1, "object_store_memory": 200_000_000}
GROWING = ["resources.autoscale=true", "resources.gpus=false", "resources.cpus_per_worker=1"]


def launch_file(address: str, most: int, on_node: dict[str, int]) -> dict[str, object]:
    """A head without CPUs, and up to `most` nodes with these resources, which go after 20 idle seconds."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    node = {"resources": on_node, "node_config": {}, "min_workers": 0, "max_workers": most}
    return {
        **UNUSED,
        "cluster_name": "growing",
        "max_workers": most,
        "upscaling_speed": 1.0,
        "file_mounts_sync_continuously": False,
        "provider": {"type": "fake_multinode", "gcs_address": address, **NO_SSH},
        "head_node_type": HEAD,
        "idle_timeout_minutes": 0.3,
        "available_node_types": {HEAD: head, "small": node},
    }


@pytest.fixture
def address() -> Iterator[str]:
    """The address of an empty cluster that may have three nodes of one CPU."""
    yield from empty_cluster(ON_NODE)


@pytest.fixture
def gpu_address() -> Iterator[str]:
    """The same with a GPU on each node, which is a name only."""
    yield from empty_cluster({**ON_NODE, "CPU": 2, "GPU": 1})


def empty_cluster(on_node: dict[str, int]) -> Iterator[str]:
    """The address of a cluster that has a head alone, and may have three nodes with these resources."""
    folder = Path(tempfile.mkdtemp(prefix="g", dir="/tmp"))  # Ray's socket paths must be short
    address = f"{get_node_ip_address()}:{PORT}"
    (folder / "cluster.json").write_text(json.dumps(launch_file(address, 3, on_node)))
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
    deadline = time.monotonic() + 60
    while not answers(address):
        assert time.monotonic() < deadline, (folder / "head.log").read_text()
        time.sleep(0.5)
    yield address
    end(family(os.getpid()))  # the cluster, and commands that a failed test has left
    head.wait()


def start(address: str, log: Path, *arguments: str, module: str = "pipeline.cli") -> subprocess.Popen[bytes]:
    """Start `digpro`, or another module with its arguments, on the cluster."""
    return start_command(arguments, log, module=module, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")


def test_an_empty_cluster_grows_for_training_and_assigning(address: str, tmp_path: Path) -> None:
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


SPACE = """
from ray import tune

SPACE = {"optim.lr": tune.loguniform(0.05, 0.2)}
"""


def test_an_elastic_run_and_a_search_share_a_cluster_that_grows(address: str, tmp_path: Path) -> None:
    """There is room for two workers and a trial. In float64 any number of workers gives the labels of one."""
    (tmp_path / "space.py").write_text(SPACE)
    ingest("digits", str(tmp_path / "digits"))
    mine = settings(tmp_path, "optim.precision=float64", *GROWING)
    elastic = ["name=elastic", "optim.epochs=12", "resources.workers={min: 1, max: 2}", "resources.resize_seconds=2"]
    logs = [tmp_path / name for name in ("train.log", "tune.log")]
    run = start(address, logs[0], "train", "--preset", "digits", *options([*mine, *elastic]))
    space = ["--space", str(tmp_path / "space.py"), "--preset", "digits"]
    more = ["--trials", "3", "--concurrent", "1", "--scheduler", "none"]
    searching = start(address, logs[1], "tune", *space, *more, *options([*mine, "name=search", "resources.workers=1"]))
    assert run.wait(500) == 0, logs[0].read_text()
    saved = (tmp_path / "runs/elastic").glob("checkpoint_2*/about.json")
    assert 2 in {json.loads(about.read_text())["workers"] for about in saved}
    assert searching.wait(500) == 0, logs[1].read_text()
    assert len(json.loads((tmp_path / "runs/search/summary.json").read_text())["trials"]) == 3
    _, labels = outcome(tmp_path / "runs/elastic")
    _, expected = outcome_in_process([*mine, "optim.epochs=12", "storage=" + str(tmp_path / "alone")])
    assert labels == expected


FROZEN = [
    "model.encoder=python:tests.helpers.backbones:slow",
    "model.freeze=true",
    "views.size=16",
    "views.cached=2",
    "resources.gpus=true",
    "resources.autoscale=true",
]


def test_pools_and_trials_grow_on_nodes_with_gpus(
    gpu_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From zero nodes: `embed` asks for GPUs until all nodes are there; then a search trains on what it has cached."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ingest("digits", str(tmp_path / "digits"))
    log, features = tmp_path / "embed.log", str(tmp_path / "features")
    mine = options(settings(tmp_path, f"data.features={features}", *FROZEN))
    embedding = start(gpu_address, log, "embed", str(tmp_path / "digits"), features, "--preset", "digits", *mine)
    assert embedding.wait(400) == 0, log.read_text()
    assert len(hosts("MapWorker(Map(CacheWriter))", address=gpu_address)) == 3
    (tmp_path / "space.py").write_text(SPACE)
    log = tmp_path / "tune.log"
    more = ["--trials", "2", "--concurrent", "2", "--scheduler", "none", "--set", "name=search"]
    arguments = ["tune", "--space", str(tmp_path / "space.py"), "--preset", "digits", *more, *mine]
    searching = start(gpu_address, log, *arguments, module="tests.helpers.fake_gpu_nodes")
    assert searching.wait(500) == 0, log.read_text()
    trials = json.loads((tmp_path / "runs/search/summary.json").read_text())["trials"]
    assert [trial["status"] for trial in trials] == ["finished"] * 2
    assert "already complete" in log.read_text()
