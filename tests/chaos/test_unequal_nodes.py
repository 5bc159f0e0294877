"""Clusters of unequal nodes: a head without GPUs, and nodes of other sizes whose GPUs are names only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import tune
from ray.cluster_utils import Cluster

from pipeline.config.loading import load_config
from pipeline.runs.assign import assign_images
from pipeline.tuning.search import search
from pipeline.tuning.space import Space
from tests.chaos.test_nodes import Driver, cluster_with_head
from tests.helpers.fake_gpu_nodes import connect, hosts
from tests.helpers.runs import settings

pytestmark = pytest.mark.chaos
READERS = "MapWorker(MapBatches(PieceReader))"

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
    """A head of 4 CPUs without a GPU, to which this process is connected; a test adds nodes."""
    for started in cluster_with_head(monkeypatch, num_cpus=4):
        connect(monkeypatch)
        yield started


def test_gpu_workers_and_pools_leave_a_head_without_gpus_alone(cluster: Cluster, tmp_path: Path) -> None:
    """By the total, 12 CPUs, a worker would get 5, which no node has."""
    gpus = [cluster.add_node(num_cpus=3, num_gpus=1), cluster.add_node(num_cpus=5, num_gpus=1)]
    driver = Driver(tmp_path, "name=unequal", *FROZEN)
    driver.join(900)  # on a busy machine
    summary = driver.result()
    assert hosts("RayTrainWorker") == {node.node_id for node in gpus}
    assigned = assign_images(summary["folder"], "digits", str(tmp_path / "assigned"), echo=driver.lines.append)
    assert assigned["images"] == 1797
    assert cluster.head_node.node_id not in hosts(
        "RayTrainWorker", "MapWorker(Map(Assigner))", "MapWorker(Map(CacheWriter))"
    )


def test_trials_leave_a_head_without_gpus_alone(cluster: Cluster, tmp_path: Path) -> None:
    """Two GPUs are room for two trials of one worker; a trial's own actor needs none, and may be on the head."""
    gpus = [cluster.add_node(num_cpus=3, num_gpus=1), cluster.add_node(num_cpus=5, num_gpus=1)]
    config = load_config("digits", settings(tmp_path, "name=search", "resources.workers=1"))
    lines: list[str] = []
    space = Space("rates", {"optim.lr": tune.loguniform(0.05, 0.2)})
    summary = search(config, space, trials=3, scheduler="none", echo=lines.append)
    plan = next(line for line in lines if line.startswith("search "))
    assert "3 trials of 3 epochs, 2 at a time, each with 1 worker of 3 CPUs and a GPU" in plan
    assert [trial["status"] for trial in summary["trials"]] == ["finished"] * 3
    assert hosts("RayTrainWorker") == {node.node_id for node in gpus}


STREAMED = ["data.mode=streaming", "data.image_size=128"]  # more than the workers read themselves


def test_nodes_without_gpus_read_for_those_with_few_cpus(cluster: Cluster, tmp_path: Path) -> None:
    """Each of the workers takes the only CPU of its node; the head's four are free."""
    gpus = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    mine = ["name=streamed", *STREAMED, "optim.epochs=2", "resources.workers=2", "resources.cpus_per_worker=1"]
    driver = Driver(tmp_path, *mine)
    driver.join(900)
    driver.result()
    assert hosts("RayTrainWorker") == {node.node_id for node in gpus}
    assert hosts(READERS) == {cluster.head_node.node_id}


def test_readers_of_trials_that_fill_their_node_run_on_another(cluster: Cluster, tmp_path: Path) -> None:
    """Each trial reserves a CPU to compute and one to read; readers would wait forever on a node that trials fill."""
    cluster.add_node(num_cpus=4)
    mine = ["name=search", *STREAMED, "resources.workers=1", "resources.cpus_per_worker=1"]
    config = load_config("digits", settings(tmp_path, *mine))
    space = Space("rates", {"optim.lr": tune.loguniform(0.05, 0.2)})
    summary = search(config, space, trials=4, scheduler="none", concurrent=4)
    assert [trial["status"] for trial in summary["trials"]] == ["finished"] * 4
